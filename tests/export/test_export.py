"""Whole exports: what a bundle holds, what is refused and leaves nothing behind, and what the command line shows."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import HIDDEN, LAYERS, Pair, write_dpr
from transformers import DPRQuestionEncoder

import narrows
from narrows import durable
from narrows.bundle import STAMP, Bundle, Role, open_bundle
from narrows.encoder import Encoder, Golden, load_encoder
from narrows.errors import CheckpointError, ExportError, UnpairedTowersError
from narrows.padding import ATTENTION_MASK, EMBEDDING, INPUT_IDS
from narrows.tokenizer import TowerTokenizer, build_tokenizer, load_tokenizer
from narrows.towers import Tower, load_towers
from narrows_export import checkpoint, checks, corpus, graph, source
from narrows_export.checkpoint import TorchTower
from narrows_export.export import ExportRequest, export_bundle
from narrows_tools.cli.main import main

ROLES: tuple[Role, ...] = ("question_encoder", "context_encoder")
SMALL_FUSIONS = {
    "EmbedLayerNormalization": 1,
    "Attention": LAYERS,
    "SkipLayerNormalization": 2 * LAYERS,
    "BiasGelu": LAYERS,
}
SMALL_PACKED = {
    "EmbedLayerNormalization": 1,
    "MultiHeadAttention": LAYERS,
    "LayerNormalization": 2 * LAYERS,
    "BiasGelu": LAYERS,
    "NonZero": 1,
}


def export(question: Path, context: Path, out: Path) -> None:
    """Short texts, to be quick."""
    export_bundle(ExportRequest(str(question), str(context), out, "test", max_tokens=16), step=lambda what: None)


def everything_in(directory: Path) -> list[str]:
    return sorted(str(file.relative_to(directory)) for file in directory.rglob("*"))


def tokenizer_of(bundle: Bundle, role: Role) -> TowerTokenizer:
    tower = bundle.tower(role)
    return load_tokenizer(bundle, tower)


# What a bundle holds


def test_the_files_of_a_bundle(small_bundle: Bundle):
    files = ["golden.fp32.npz", "model.fp32.onnx", "tokenizer.json"]
    expected = [*ROLES, "manifest.json"] + [f"{role}/{name}" for role in ROLES for name in files]
    assert set(everything_in(small_bundle.path)) - {".verified"} == set(expected)  # a stamp, once a server opened it
    for role in ROLES:
        tower = small_bundle.tower(role)
        variant = tower.variants["fp32"]
        assert list(tower.variants) == ["fp32"]
        assert variant.sha256 == durable.sha256_file(small_bundle.path / role / "model.fp32.onnx")
        assert variant.golden_sha256 == durable.sha256_file(small_bundle.path / role / "golden.fp32.npz")
        assert tower.tokenizer_sha256 == durable.sha256_file(small_bundle.path / role / "tokenizer.json")
        assert variant.size_bytes == (small_bundle.path / role / "model.fp32.onnx").stat().st_size


def test_the_manifest_of_a_dpr_pair(small_bundle: Bundle, small_pair: Pair):
    manifest = small_bundle.manifest
    assert (manifest.name, manifest.created_by) == ("small", f"narrows {narrows.__version__}")
    assert (manifest.similarity, manifest.dim) == ("inner_product", HIDDEN)
    for role, directory in zip(ROLES, (small_pair.question, small_pair.context), strict=True):
        tower = manifest.towers[role]
        assert (tower.directory, tower.pooling, tower.normalize) == (role, "cls", False)
        assert (tower.max_tokens, tower.projection_dim, tower.segment_ids) == (256, 0, "zero")
        assert tower.variants["fp32"].parity_max_abs_error <= checks.PARITY_LIMIT
        assert tower.source.name == "/".join(directory.parts[-2:])
        assert (tower.source.kind, tower.source.revision) == ("dpr", "")
        assert tower.source.weights_sha256 == durable.sha256_file(directory / "model.safetensors")
    assert manifest.towers["question_encoder"].tower_id != manifest.towers["context_encoder"].tower_id


@pytest.mark.parametrize("role", ROLES)
def test_the_graph_is_fused_and_takes_no_segment_ids(small_bundle: Bundle, role: Role):
    tower = small_bundle.tower(role)
    assert tower.variants["fp32"].fused_ops == SMALL_PACKED
    model = onnx.load(small_bundle.file(tower, tower.variants["fp32"].file))
    assert [value.name for value in model.graph.input] == [INPUT_IDS, ATTENTION_MASK] == ["input_ids", "attention_mask"]
    assert [value.name for value in model.graph.output] == [EMBEDDING] == ["embedding"]
    operators = [node.op_type for node in model.graph.node]
    assert {name: operators.count(name) for name in SMALL_PACKED} == SMALL_PACKED


@pytest.mark.parametrize("role", ROLES)
def test_32_golden_pairs_in_both_languages_are_reproduced(small_bundle: Bundle, role: Role):
    tower = small_bundle.tower(role)
    golden = Golden.load(small_bundle.file(tower, tower.variants["fp32"].golden_file))
    assert len(golden.token_ids) == 32
    assert golden.embeddings.shape == (32, HIDDEN)
    tokenizer = tokenizer_of(small_bundle, role)
    for place, language in ((0, "en"), (16, "es")):
        question = corpus.questions(language)[0].question
        assert golden.token_ids[place].tolist() == tokenizer.questions([question])[0].ids.tolist()
        passage = corpus.passages(language)[0]
        assert (
            golden.token_ids[place + 14].tolist() == tokenizer.passages([(passage.title, passage.text)])[0].ids.tolist()
        )
    encoder = load_encoder(small_bundle, role, "fp32", tokenizer.pad_id, threads=1)
    assert np.array_equal(encoder.encode(golden.token_ids), golden.embeddings)


def test_a_sentence_transformers_model_is_stored_once(minilm_bundle: Bundle):
    names = ["golden.fp32.npz", "model.fp32.onnx", "tokenizer.json"]
    found = [name for name in everything_in(minilm_bundle.path) if name != STAMP]  # which a server leaves
    assert found == sorted(["manifest.json", "shared_encoder", *(f"shared_encoder/{name}" for name in names)])
    question, context = (minilm_bundle.tower(role) for role in ROLES)
    assert question == context
    assert question.directory == "shared_encoder"
    assert (question.pooling, question.normalize, question.dim) == ("mean", True, 384)
    assert question.source.kind == "sentence-transformers"
    assert minilm_bundle.manifest.similarity == "cosine"
    assert question.variants["fp32"].fused_ops == {
        "EmbedLayerNormalization": 1,
        "MultiHeadAttention": 6,
        "LayerNormalization": 12,
        "BiasGelu": 6,
        "NonZero": 1,
    }


# The pair check


def test_an_export_takes_no_more_threads_than_it_has_cores(
    small_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given: list[int] = []

    def encoder(model_file: Path, pad_id: int, threads: int) -> Encoder:
        given.append(threads)
        return Encoder(model_file, pad_id, threads)

    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("narrows_export.export.Encoder", encoder)
    export_bundle(
        ExportRequest(str(small_pair.question), str(small_pair.context), tmp_path / "b", "b", allow_unpaired=True),
        step=lambda what: None,
    )
    assert given == [1, 1]


def test_the_real_minilm_is_a_pair(minilm_bundle: Bundle):
    pair = minilm_bundle.manifest.pair_check
    assert pair.passed
    assert (pair.language, pair.pairs) == ("en", 64)
    assert pair.correct >= 48


def test_towers_that_do_not_belong_together_fail_the_pair_check(minilm_bundle: Bundle):
    """The same encoder on both sides, but the passages are read with another vocabulary."""
    tower = load_towers(minilm_bundle, "fp32", threads=2, roles=["question_encoder"])["question_encoder"]
    tokens = tower.tokenizer.tokens(np.arange(tower.manifest.tokenizer.vocabulary_size))
    shuffled = tokens[:1000] + [tokens[i] for i in 1000 + np.random.default_rng(0).permutation(len(tokens) - 1000)]
    settings = tower.tokenizer.settings
    other = TowerTokenizer(build_tokenizer(settings, shuffled), settings, 32)
    questions = TowerTokenizer(build_tokenizer(settings, tokens), settings, 32)
    pair = checks.pair_check((tower.encoder, questions), (tower.encoder, other))
    assert not pair.passed
    assert pair.correct < checks.PAIRS_NEEDED
    assert pair.language in corpus.LANGUAGES


def test_unpaired_towers_are_recorded_when_they_are_allowed(small_bundle: Bundle):
    pair = small_bundle.manifest.pair_check
    assert not pair.passed
    assert pair.correct < checks.PAIRS_NEEDED <= 16
    assert pair.pairs == 64


def test_swapped_towers_fail_the_pair_check(small_bundle: Bundle):
    towers = load_towers(small_bundle, "fp32", threads=1, roles=ROLES)

    def side(tower: Tower) -> tuple[Encoder, TowerTokenizer]:
        return tower.encoder, tower.tokenizer

    assert not checks.pair_check(side(towers["context_encoder"]), side(towers["question_encoder"])).passed


def test_unpaired_towers_are_refused_and_nothing_is_left(small_pair: Pair, tmp_path: Path):
    with pytest.raises(UnpairedTowersError) as raised:
        export(small_pair.question, small_pair.context, tmp_path / "out.bundle")
    assert "these towers are probably NOT A PAIR: the right passage came first for" in str(raised.value)
    assert "--allow-unpaired exports them all the same" in str(raised.value)
    assert everything_in(tmp_path) == []


# Refusals


@pytest.mark.parametrize("what", ["a file", "a directory that is not empty"])
def test_an_existing_output_is_refused_before_any_work(small_pair: Pair, tmp_path: Path, what: str):
    out = tmp_path / "out.bundle"
    kept = out if what == "a file" else out / "thesis.txt"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("years of work")
    steps: list[str] = []
    with pytest.raises(ExportError, match=r"out\.bundle exists already: delete it, or choose another --out"):
        export_bundle(ExportRequest("no/such", "no/such", out, "test"), steps.append)
    assert steps == []
    assert kept.read_text() == "years of work"


def test_towers_of_different_dimensions_are_refused(small_pair: Pair, tmp_path: Path, vocabulary: list[str]):
    projected = write_dpr(tmp_path / "projected", "context_encoder", vocabulary, seed=2, projection_dim=32)
    out = tmp_path / "out"
    with pytest.raises(ExportError, match=r"the towers' embeddings differ in size: 64 and 32"):
        export(small_pair.question, projected, out / "test.bundle")
    assert everything_in(out) == []


def test_towers_of_different_kinds_are_refused(small_pair: Pair, minilm_checkpoint: Path, tmp_path: Path):
    with pytest.raises(ExportError, match=r"different kinds \(dpr and sentence-transformers\); give two of one kind"):
        export(small_pair.question, minilm_checkpoint, tmp_path / "out.bundle")
    assert everything_in(tmp_path) == []


def test_a_wrong_tower_leaves_nothing(small_pair: Pair, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"was given as the question encoder, but .* holds a context encoder"):
        export(small_pair.context, small_pair.question, tmp_path / "out.bundle")
    assert everything_in(tmp_path) == []


def test_a_vocabulary_larger_than_the_model_is_refused(small_pair: Pair, tmp_path: Path, vocabulary: list[str]):
    directory = shutil.copytree(small_pair.question, tmp_path / "question")
    size = len(vocabulary)
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in [*vocabulary, "one-more"]), "utf-8")
    with pytest.raises(ExportError, match=rf"the vocabulary has {size + 1} tokens, the model {size}"):
        export(directory, small_pair.context, tmp_path / "out" / "test.bundle")
    assert everything_in(tmp_path / "out") == []


# Proofs that can fail


@pytest.fixture(scope="module")
def exported(small_pair: Pair, small_bundle: Bundle) -> tuple[Encoder, TowerTokenizer]:
    """The small question encoder as its bundle holds it."""
    tokenizer = tokenizer_of(small_bundle, "question_encoder")
    return load_encoder(small_bundle, "question_encoder", "fp32", tokenizer.pad_id, threads=1), tokenizer


@pytest.fixture
def torch_tower(small_pair: Pair) -> TorchTower:
    """The small question encoder in PyTorch, to spoil."""
    return checkpoint.load(source.resolve(str(small_pair.question)), "question_encoder", None)


def run_parity(tower: TorchTower, exported: tuple[Encoder, TowerTokenizer]) -> checks.Parity:
    encoder, tokenizer = exported
    return checks.parity(tower, encoder, checks.sample_texts(tokenizer, "question_encoder"), tokenizer.pad_id)


def test_parity_measures_and_passes(torch_tower: TorchTower, exported: tuple[Encoder, TowerTokenizer]):
    parity = run_parity(torch_tower, exported)
    assert 0 < parity.max_abs_error <= checks.PARITY_LIMIT
    assert parity.texts == 26
    assert min(parity.torch_question_ms, parity.onnx_question_ms) > 0
    assert min(parity.torch_texts_per_s, parity.onnx_texts_per_s) > 0


def test_parity_texts_are_short_and_long(exported: tuple[Encoder, TowerTokenizer]):
    _, tokenizer = exported
    for role in ROLES:
        lengths = [len(ids) for ids in checks.sample_texts(tokenizer, role)]
        assert lengths.count(256) >= 2
        assert min(lengths) < 128


def test_parity_fails_when_a_weight_changed(torch_tower: TorchTower, exported: tuple[Encoder, TowerTokenizer]):
    with torch.no_grad():
        torch_tower.model.get_parameter("question_encoder.bert_model.encoder.layer.0.attention.self.value.bias")[5] += (
            0.01
        )
    with pytest.raises(ExportError, match=r"differs from the PyTorch model by .*e-0\d; the limit is 1e-04"):
        run_parity(torch_tower, exported)


def test_parity_fails_in_train_mode(torch_tower: TorchTower, exported: tuple[Encoder, TowerTokenizer]):
    torch.manual_seed(0)
    torch_tower.model.train()
    with pytest.raises(ExportError, match=r"differs from the PyTorch model"):
        run_parity(torch_tower, exported)


def test_parity_fails_when_an_embedding_depends_on_its_batch(tmp_path: Path, vocabulary: list[str]):
    """As ONNX Runtime's products do whose inner dimension is over 128, here that of a head, when a text is padded."""
    wide = write_dpr(tmp_path / "wide", "question_encoder", vocabulary, seed=1, layers=1, hidden=136, heads=1)
    out = tmp_path / "wide.bundle"
    with pytest.raises(ExportError, match=r"depends on its batch \(by .*\), .* attention heads are wider than 128,"):
        export_bundle(ExportRequest(str(wide), str(wide), out, "wide"), step=lambda what: None)
    assert not out.exists()


def test_parity_fails_when_embeddings_are_not_finite(torch_tower: TorchTower, exported: tuple[Encoder, TowerTokenizer]):
    """Finite weights whose product is not, met by one rare token only: its batches alone turn NaN."""
    encoder, tokenizer = exported
    texts = checks.sample_texts(tokenizer, "question_encoder")
    last = next(int(token) for token in texts[-2] if not any(token in text for text in texts[:-2]))
    with torch.no_grad():
        torch_tower.model.get_parameter("question_encoder.bert_model.embeddings.word_embeddings.weight")[last] = 3e38
    with pytest.raises(ExportError, match=r"differs from the PyTorch model by nan"):
        checks.parity(torch_tower, encoder, texts, tokenizer.pad_id)


@pytest.mark.parametrize(
    ("setting", "value", "supported", "unfused"),
    [
        ("position_embedding_type", "relative_key", "absolute", "Attention"),
        ("hidden_act", "gelu_new", "gelu", "BiasGelu"),
    ],
)
def test_a_fusion_that_does_not_happen_is_refused(
    torch_tower: TorchTower, tmp_path: Path, setting: str, value: str, supported: str, unfused: str
):
    """A model that the optimizer cannot fuse, behind a config that hides it: only the counts can tell."""
    config = copy.deepcopy(torch_tower.model.config)
    setattr(config, setting, value)
    model = DPRQuestionEncoder(config).eval()
    setattr(model.config, setting, supported)
    with pytest.raises(ExportError) as raised:
        graph.export_fp32(dataclasses.replace(torch_tower, model=model), tmp_path / "model.onnx")
    fused, demanded = str(raised.value).split(" where the recipe demands ")
    assert demanded == f"{SMALL_FUSIONS}; check the versions installed"
    assert fused.startswith("the optimizer fused {")
    assert f"'{unfused}'" not in fused
    assert everything_in(tmp_path) == []


# The corpus


@pytest.mark.parametrize(("language", "passages", "questions"), [("en", 300, 130), ("es", 100, 70)])
def test_the_corpus_is_sound(language: str, passages: int, questions: int):
    by_id = {passage.id: passage for passage in corpus.passages(language)}
    asked = corpus.questions(language)
    assert len(by_id) == len(corpus.passages(language)) == passages
    assert len({question.id for question in asked}) == len({question.question for question in asked}) == questions
    for passage in by_id.values():
        assert passage.title.strip() == passage.title != ""
        assert passage.text.strip() == passage.text != ""
    for question in asked:
        assert question.question.endswith("?")
        assert question.positive_passage_ids
        assert set(question.positive_passage_ids) <= set(by_id)
        assert question.answers[0].casefold() in by_id[question.positive_passage_ids[0]].text.casefold()
    assert len({question.positive_passage_ids[0] for question in asked[: checks.PAIRS]}) == checks.PAIRS


# The command line


def export_arguments(question: Path, context: Path, out: Path, *options: str) -> list[str]:
    return ["export", f"--question-encoder={question}", f"--context-encoder={context}", f"--out={out}", *options]


def test_the_table(small_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "table.v1.bundle"
    arguments = export_arguments(small_pair.question, small_pair.context, out, "--allow-unpaired")
    assert main(arguments) == 0
    manifest = open_bundle(out).manifest
    assert manifest.name == "table.v1"

    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert lines[0].split("  ")[0] == "tower"
    for line, role in zip(lines[1:3], ROLES, strict=True):
        assert line.startswith(role.replace("_", " "))
        assert line.endswith(manifest.towers[role].tower_id)
        assert "1 MiB" in line
        assert "(26 texts)" in line
        assert "ms (PyTorch" in line
        assert "texts/s (PyTorch" in line
    pair = manifest.pair_check
    assert lines[4:] == [
        f"pair check: {pair.correct} of 64 right passages first ({pair.language}; chance 1)",
        f"wrote {out} (fp32)",
    ]
    warning = shown.err.splitlines()[-1]
    assert warning.startswith("WARNING: these towers are probably NOT A PAIR")
    assert "Traceback" not in shown.err
    assert "11/11" in shown.err, "the progress must reach its end"


def test_the_report_as_json(small_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out.bundle"
    out.mkdir()  # an empty directory may be there already
    options = ["--allow-unpaired", "--json", "--name=my towers", "--max-tokens=32"]
    assert main(export_arguments(small_pair.question, small_pair.context, out, *options)) == 0
    manifest = open_bundle(out).manifest
    assert manifest.name == "my towers"
    assert {tower.max_tokens for tower in manifest.towers.values()} == {32}

    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert (report["bundle"], report["variant"]) == (str(out), "fp32")
    assert report["pair_check"] == dataclasses.asdict(manifest.pair_check)
    for tower, role in zip(report["towers"], ROLES, strict=True):
        assert tower["tower_id"] == manifest.towers[role].tower_id
        assert tower["fused_ops"] == SMALL_PACKED
        assert tower["parity"]["max_abs_error"] == manifest.towers[role].variants["fp32"].parity_max_abs_error
    assert "WARNING: these towers are probably NOT A PAIR" in shown.err
    assert [file.name for file in tmp_path.iterdir()] == ["out.bundle"], "nothing temporary may be left beside it"


@pytest.mark.parametrize(
    ("swapped", "options", "says"),
    [
        (True, [], "was given as the question encoder, but its model.safetensors holds a context encoder"),
        (False, ["--max-tokens=0"], "a maximum of 0 tokens does not fit"),
        (False, ["--revision=main"], "--revision main was given, but"),
        (False, ["--max-tokens=16"], "these towers are probably NOT A PAIR"),
    ],
)
def test_an_error_is_one_line_and_status_1(
    small_pair: Pair,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    swapped: bool,
    options: list[str],
    says: str,
):
    checkpoints = (small_pair.question, small_pair.context)
    question, context = reversed(checkpoints) if swapped else checkpoints
    assert main(export_arguments(question, context, tmp_path / "out.bundle", *options)) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    message = shown.err.rstrip("\n").splitlines()[-1]
    assert message.startswith("narrows: ")
    assert says in message
    assert everything_in(tmp_path) == []
