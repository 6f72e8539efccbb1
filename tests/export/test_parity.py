"""Contract 1: a bundle embeds as transformers' own DPR classes do, to 1e-4; and the comparison can fail.

The reference shares no code with the exporter: transformers loads the checkpoint and tokenizes the text.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import CLASSES, Pair, write_dpr
from safetensors.torch import load_file
from transformers import (
    BatchEncoding,
    BertModel,
    BertTokenizerFast,
    DPRContextEncoderTokenizerFast,
    DPRQuestionEncoderTokenizerFast,
)

from narrows.bundle import Bundle, Role, open_bundle
from narrows.towers import Tower, load_towers
from narrows_export import corpus
from narrows_export.export import ExportRequest, export_bundle

LIMIT = 1e-4
BATCH_SIZES = (1, 3, 8, 64)
ROLES: tuple[Role, ...] = ("question_encoder", "context_encoder")
TOKENIZERS = {"question_encoder": DPRQuestionEncoderTokenizerFast, "context_encoder": DPRContextEncoderTokenizerFast}

Vectors = npt.NDArray[np.float32]
Text = str | tuple[str, str]  # a question, or (title, text)


class Reference:
    """One DPR tower as transformers runs it. The switches turn on the known mistakes."""

    def __init__(self, directory: Path, role: Role) -> None:
        self.model = CLASSES[role].from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()
        self.tokenizer = TOKENIZERS[role].from_pretrained(directory)

    def embed(self, texts: Sequence[Text], *, segment_ids: bool = False, mask: bool = True) -> Vectors:
        tokens = tokenize(self.tokenizer, texts)
        with torch.no_grad():
            output = self.model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"] if mask else torch.ones_like(tokens["attention_mask"]),
                token_type_ids=tokens["token_type_ids"] if segment_ids else torch.zeros_like(tokens["input_ids"]),
            )
        return output.pooler_output.numpy()


class MeanPooled:
    """BERT, the mean over the mask, unit length: a sentence-transformers model, written out."""

    def __init__(self, directory: Path) -> None:
        self.model = BertModel.from_pretrained(
            directory, attn_implementation="eager", dtype=torch.float32, add_pooling_layer=False
        ).eval()
        self.tokenizer = BertTokenizerFast.from_pretrained(directory)

    def embed(self, texts: Sequence[Text]) -> Vectors:
        tokens = tokenize(self.tokenizer, texts)
        with torch.no_grad():
            hidden = self.model(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()


def tokenize(tokenizer: BertTokenizerFast, texts: Sequence[Text]) -> BatchEncoding:
    columns = [texts] if isinstance(texts[0], str) else list(zip(*texts, strict=True))
    return tokenizer(*map(list, columns), padding=True, truncation="longest_first", max_length=256, return_tensors="pt")


def embed(tower: Tower, role: Role, texts: Sequence[Text]) -> Vectors:
    tokenizer = tower.tokenizer
    tokenized = tokenizer.questions(texts) if role == "question_encoder" else tokenizer.passages(texts)
    return tower.encoder.encode([text.ids for text in tokenized])


def real_texts(role: Role, count: int = 64) -> list[Text]:
    """Texts in both languages, short and long in turn, one of them longer than 256 tokens."""
    texts: list[Text] = []
    for language in corpus.LANGUAGES:
        passages = corpus.passages(language)[: count // 2]
        long = " ".join(passage.text for passage in passages)
        if role == "question_encoder":
            texts += [question.question for question in corpus.questions(language)[: count // 2 - 1]] + [long]
        else:
            texts += [(passage.title, passage.text) for passage in passages[:-1]] + [("A long text", long)]
    return texts


def worst_error(
    tower: Tower,
    role: Role,
    reference: Reference | MeanPooled,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    **mistakes: bool,
) -> float:
    """Over 64 texts, in right-padded batches of every size."""
    texts = real_texts(role)
    batches = [texts[i : i + size] for size in batch_sizes for i in range(0, len(texts), size)]
    return max(float(np.abs(embed(tower, role, batch) - reference.embed(batch, **mistakes)).max()) for batch in batches)


def export(pair: Pair, out: Path) -> Bundle:
    request = ExportRequest(str(pair.question), str(pair.context), out, out.stem, allow_unpaired=True)
    export_bundle(request, step=lambda what: None)
    return open_bundle(out)


def as_half(directory: Path, role: Role) -> Path:
    """Rewrites a checkpoint in float16."""
    CLASSES[role].from_pretrained(directory).half().save_pretrained(directory)
    return directory


def as_bin(directory: Path) -> Path:
    """Rewrites a checkpoint's weights as pytorch_model.bin."""
    weights = directory / "model.safetensors"
    torch.save(load_file(weights), directory / "pytorch_model.bin")
    weights.unlink()
    return directory


@pytest.fixture(scope="module")
def towers(small_bundle: Bundle) -> dict[Role, Tower]:
    return load_towers(small_bundle, "fp32", threads=1, roles=ROLES)


@pytest.fixture(scope="module")
def references(small_pair: Pair) -> dict[Role, Reference]:
    return {
        "question_encoder": Reference(small_pair.question, "question_encoder"),
        "context_encoder": Reference(small_pair.context, "context_encoder"),
    }


@pytest.mark.parametrize("role", ROLES)
def test_embeddings_equal_those_of_transformers(
    towers: dict[Role, Tower], references: dict[Role, Reference], role: Role
):
    assert worst_error(towers[role], role, references[role]) <= LIMIT


@pytest.mark.parametrize(
    "packaging",
    ["projection, safetensors and .bin", "float16, safetensors and .bin"],
)
def test_parity_holds_for_every_packaging(packaging: str, vocabulary: list[str], tmp_path: Path):
    projection_dim = 32 if packaging.startswith("projection") else 0
    directories: dict[Role, Path] = {
        role: write_dpr(tmp_path / role, role, vocabulary, seed=seed, projection_dim=projection_dim)
        for seed, role in enumerate(ROLES)
    }
    if packaging.startswith("float16"):
        for role, directory in directories.items():
            assert as_half(directory, role) == directory
        assert {tensor.dtype for tensor in load_file(directories[ROLES[0]] / "model.safetensors").values()} == {
            torch.float16
        }
    as_bin(directories["context_encoder"])

    bundle = export(Pair(directories["question_encoder"], directories["context_encoder"]), tmp_path / "out.bundle")

    assert bundle.manifest.dim == (projection_dim or 64)
    assert bundle.tower("question_encoder").source.weights_file == "model.safetensors"
    assert bundle.tower("context_encoder").source.weights_file == "pytorch_model.bin"
    towers = load_towers(bundle, "fp32", threads=1, roles=ROLES)
    for role in ROLES:
        assert worst_error(towers[role], role, Reference(directories[role], role), batch_sizes=[8]) <= LIMIT


def test_red_with_the_segment_ids_of_the_tokenizer(towers: dict[Role, Tower], references: dict[Role, Reference]):
    role: Role = "context_encoder"
    segment_ids = tokenize(references[role].tokenizer, real_texts(role))["token_type_ids"]
    assert set(segment_ids.flatten().tolist()) == {0, 1}, "the tokenizer must mark the text as the second segment"
    assert worst_error(towers[role], role, references[role], batch_sizes=[8], segment_ids=True) > 100 * LIMIT


@pytest.mark.parametrize("role", ROLES)
def test_red_without_the_mask(towers: dict[Role, Tower], references: dict[Role, Reference], role: Role):
    assert worst_error(towers[role], role, references[role], batch_sizes=[8], mask=False) > 100 * LIMIT


def test_red_with_swapped_towers(towers: dict[Role, Tower], references: dict[Role, Reference]):
    question, context = ROLES
    assert worst_error(towers[context], question, references[question], batch_sizes=[8]) > 100 * LIMIT
    assert worst_error(towers[question], context, references[context], batch_sizes=[8]) > 100 * LIMIT


def test_the_real_minilm_equals_transformers(minilm_bundle: Bundle, minilm_checkpoint: Path):
    towers = load_towers(minilm_bundle, "fp32", threads=2, roles=ROLES)
    reference = MeanPooled(minilm_checkpoint)
    for role in ROLES:
        texts = real_texts(role, 32)
        for batch in (texts[:1], texts[1:4], texts[4:]):
            assert np.abs(embed(towers[role], role, batch) - reference.embed(batch)).max() <= LIMIT


@pytest.mark.slow
def test_a_trained_pair_equals_transformers(shared: Path, tmp_path: Path):
    checkpoints = shared / "models" / "tiny-dpr"
    if not checkpoints.is_dir():
        pytest.skip("needs the trained pair")
    pair = Pair(checkpoints / "question_encoder", checkpoints / "context_encoder")
    bundle = export(pair, tmp_path / "tiny-dpr.bundle")
    towers = load_towers(bundle, "fp32", threads=2, roles=ROLES)
    for role, directory in zip(ROLES, (pair.question, pair.context), strict=True):
        assert worst_error(towers[role], role, Reference(directory, role), batch_sizes=[8]) <= LIMIT
    # And one tower is not the other, though both began as the same model.
    reference = Reference(pair.context, "context_encoder")
    assert worst_error(towers["question_encoder"], "context_encoder", reference, batch_sizes=[8]) > 100 * LIMIT
