"""Which checkpoints load as which tower, which are refused and with what words, and what tower_id depends on."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import CLASSES, Pair
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, DPRConfig, DPRContextEncoder, DPRQuestionEncoder

from narrows.bundle import Bundle, Role
from narrows.errors import CheckpointError
from narrows_export import checkpoint, graph, source
from narrows_export.checkpoint import SentenceTower, TorchTower
from narrows_export.tower_id import tower_id
from narrows_export.vocabulary import read as read_vocabulary

Tensors = dict[str, torch.Tensor]


def load(directory: Path, role: Role = "question_encoder", max_tokens: int | None = None) -> TorchTower:
    return checkpoint.load(source.resolve(str(directory)), role, max_tokens)


def identity(directory: Path, role: Role = "question_encoder", max_tokens: int | None = None) -> str:
    settings, _ = read_vocabulary(source.resolve(str(directory)), "hf")
    return tower_id(load(directory, role, max_tokens), settings)


def refusal(directory: Path, role: Role = "question_encoder", max_tokens: int | None = None) -> str:
    """The message of the CheckpointError; one line, for people."""
    with pytest.raises(CheckpointError) as raised:
        load(directory, role, max_tokens)
    message = str(raised.value)
    assert "\n" not in message
    assert "\x1b" not in message
    return message


def edit_json(file: Path, **changes: object) -> None:
    content = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**content, **changes}), "utf-8")


@pytest.fixture
def question(small_pair: Pair, tmp_path: Path) -> Path:
    """A copy of the small question encoder, to spoil."""
    return shutil.copytree(small_pair.question, tmp_path / "question")


@pytest.fixture
def rewrite(question: Path) -> Callable[[Callable[[Tensors], object]], Path]:
    """Changes the weights of `question` in place."""

    def change_weights(change: Callable[[Tensors], object]) -> Path:
        file = question / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)
        return question

    return change_weights


@pytest.fixture
def sentence_model(tmp_path: Path, vocabulary: list[str]) -> Path:
    """A small sentence-transformers model: BERT, mean pooling, normalization."""
    return write_sentence_transformers(tmp_path / "sentence-model", vocabulary)


def write_sentence_transformers(directory: Path, vocabulary: list[str]) -> Path:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=384,
    )
    BertModel(config).save_pretrained(directory)  # with the pooler that published models carry and nobody uses
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), "utf-8")
    edit_json(directory / "tokenizer_config.json", do_lower_case=True)
    kinds = ["Transformer", "Pooling", "Normalize"]
    write_modules(directory, kinds)
    (directory / "1_Pooling").mkdir()
    edit_json(directory / "1_Pooling" / "config.json", pooling_mode_cls_token=False, pooling_mode_mean_tokens=True)
    edit_json(directory / "sentence_bert_config.json", max_seq_length=128, do_lower_case=False)
    return directory


def write_modules(directory: Path, kinds: list[str]) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules), "utf-8")


# The class follows the weights


def test_the_class_follows_the_prefix_of_the_weights(small_pair: Pair):
    assert type(load(small_pair.question, "question_encoder").model) is DPRQuestionEncoder
    assert type(load(small_pair.context, "context_encoder").model) is DPRContextEncoder


def test_every_weight_is_the_one_in_the_file(small_pair: Pair):
    tower = load(small_pair.context, "context_encoder")
    in_file = load_file(small_pair.context / "model.safetensors")
    loaded = tower.model.state_dict()
    assert set(loaded) == set(in_file)
    assert all(torch.equal(loaded[name], in_file[name]) for name in in_file)
    assert not tower.model.training


@pytest.mark.parametrize(
    ("given_as", "says"),
    [("question_encoder", "question encoder"), ("context_encoder", "context encoder")],
)
def test_the_other_tower_is_refused(small_pair: Pair, given_as: Role, says: str):
    other = {"question_encoder": small_pair.context, "context_encoder": small_pair.question}[given_as]
    holds = {"question_encoder": "a context encoder", "context_encoder": "a question encoder"}[given_as]
    assert refusal(other, given_as).endswith(f"was given as the {says}, but its model.safetensors holds {holds}")


def test_a_config_that_lies_about_the_class_changes_nothing(question: Path):
    edit_json(question / "config.json", architectures=["DPRContextEncoder"])
    assert type(load(question).model) is DPRQuestionEncoder
    assert "holds a question encoder" in refusal(question, "context_encoder")


@pytest.mark.parametrize("role", ["question_encoder", "context_encoder"])
def test_a_reader_is_refused(rewrite: Callable[..., Path], role: Role):
    def to_reader(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors["span_predictor.encoder." + name.split(".", 1)[1]] = tensors.pop(name)

    assert refusal(rewrite(to_reader), role).endswith("but its model.safetensors holds a reader")


def test_both_towers_in_one_file_are_refused(rewrite: Callable[..., Path]):
    def add_context(tensors: Tensors) -> None:
        tensors.update({name.replace("question_encoder.", "ctx_encoder."): t.clone() for name, t in tensors.items()})

    assert "holds a context encoder and a question encoder" in refusal(rewrite(add_context))


def test_a_plain_bert_is_refused(tmp_path: Path):
    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path / "bert")
    assert "holds no weights named question_encoder., ctx_encoder., span_predictor." in refusal(tmp_path / "bert")


# Weights


def test_a_missing_weight_is_named(rewrite: Callable[..., Path]):
    name = "question_encoder.bert_model.encoder.layer.1.output.dense.bias"
    message = refusal(rewrite(lambda tensors: tensors.pop(name)))
    assert f"missing weights {name}; unexpected none" in message


def test_many_missing_weights_are_counted(rewrite: Callable[..., Path]):
    def drop_a_layer(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".layer.1." in name]:
            del tensors[name]

    assert "and 11 more; unexpected none" in refusal(rewrite(drop_a_layer))


@pytest.mark.parametrize(
    "name",
    [
        "question_encoder.bert_model.encoder.layer.2.output.dense.bias",
        "question_encoder.bert_model.pooler.dense.scale",
        "question_encoder.encode_proj.weight",
        "question_encoder.bert_model.embeddings.token_ids",
    ],
)
def test_an_unexpected_weight_is_named(rewrite: Callable[..., Path], name: str):
    message = refusal(rewrite(lambda tensors: tensors.update({name: torch.zeros(64)})))
    assert f"missing weights none; unexpected {name}" in message


def test_the_unused_weights_of_published_checkpoints_change_nothing(small_pair: Pair, rewrite: Callable[..., Path]):
    base = "question_encoder.bert_model."
    published = {
        base + "pooler.dense.weight": torch.randn(64, 64),
        base + "pooler.dense.bias": torch.randn(64),
        base + "embeddings.position_ids": torch.arange(512)[None],
    }
    assert identity(rewrite(lambda tensors: tensors.update(published))) == identity(small_pair.question)


def test_a_wrong_shape_is_named(rewrite: Callable[..., Path]):
    name = "question_encoder.bert_model.embeddings.LayerNorm.weight"
    message = refusal(rewrite(lambda tensors: tensors.update({name: torch.ones(65)})))
    assert message.endswith(f"{name} has shape (65,), but config.json asks for (64,)")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(rewrite: Callable[..., Path], value: float):
    def spoil(tensors: Tensors) -> None:
        tensors["question_encoder.bert_model.encoder.layer.0.attention.self.query.weight"][3, 5] = value

    message = refusal(rewrite(spoil))
    assert "encoder.layer.0.attention.self.query.weight holds NaN or infinity" in message


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5])
def test_a_damaged_safetensors_file_is_refused(question: Path, keep: float):
    file = question / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    assert "model.safetensors cannot be read" in refusal(question)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5])
def test_a_damaged_bin_file_is_refused(question: Path, keep: float, zipped: bool):
    file = to_bin(question, zipped)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    message = refusal(question)
    assert "pytorch_model.bin" in message
    assert "damaged" in message


def to_bin(directory: Path, zipped: bool = True) -> Path:
    """Replaces the safetensors file by a pytorch_model.bin."""
    weights = directory / "model.safetensors"
    file = directory / "pytorch_model.bin"
    torch.save(load_file(weights), file, _use_new_zipfile_serialization=zipped)
    weights.unlink()
    return file


class RunsCode:
    """Creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.file,)


def test_a_pickle_with_code_is_refused_and_not_run(question: Path, tmp_path: Path):
    file = to_bin(question)
    tensors = torch.load(file, weights_only=True)
    torch.save({**tensors, "question_encoder.hook": RunsCode(tmp_path / "was-run")}, file)
    message = refusal(question)
    assert "loading those may run code, so it is refused" in message
    assert "weights_only" not in message, "torch advises to load it all the same"
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"model": {"weight": torch.zeros(2)}}, {"epoch": 3}])
def test_a_file_that_is_no_table_of_tensors_is_refused(question: Path, content: object):
    torch.save(content, to_bin(question))
    assert refusal(question).endswith("does not hold a plain table of tensors")


def test_no_weights_are_refused(question: Path):
    (question / "model.safetensors").unlink()
    (question / "tf_model.h5").write_bytes(b"TensorFlow's")
    assert refusal(question).endswith("holds no weights: expected model.safetensors or pytorch_model.bin")


def test_sharded_weights_are_refused(small_pair: Pair, question: Path):
    (question / "model.safetensors").unlink()
    DPRQuestionEncoder.from_pretrained(small_pair.question).save_pretrained(question, max_shard_size="200KB")
    assert (question / "model.safetensors.index.json").is_file()
    assert "holds no weights" in refusal(question)


def test_safetensors_come_before_bin(question: Path):
    torch.save({"question_encoder.nonsense": torch.zeros(1)}, question / "pytorch_model.bin")
    assert source.resolve(str(question)).weights.name == "model.safetensors"
    load(question)


# Settings


def test_no_config_is_refused(question: Path):
    (question / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json, so it is not a Hugging Face checkpoint"):
        source.resolve(str(question))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"hidden_size": 63, "num_attention_heads": 4}', "built"),
    ],
)
def test_an_impossible_config_is_refused(question: Path, content: str, says: str):
    (question / "config.json").write_text(content, "utf-8")
    message = refusal(question)
    assert "config.json" in message
    assert says in message


@pytest.mark.parametrize(("setting", "value"), [("hidden_act", "relu"), ("position_embedding_type", "relative_key")])
def test_a_bert_that_the_recipe_does_not_cover_is_refused(question: Path, tmp_path: Path, setting: str, value: str):
    config = DPRConfig.from_pretrained(question)
    setattr(config, setting, value)
    DPRQuestionEncoder(config).save_pretrained(question)
    with pytest.raises(CheckpointError, match=rf"only BERT with gelu and absolute positions .* tower has .*{value}"):
        graph.export_fp32(load(question), tmp_path / "model.onnx")
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize("max_tokens", [-1, 0, 7, 513])
def test_max_tokens_must_fit_the_positions(small_pair: Pair, max_tokens: int):
    message = refusal(small_pair.question, max_tokens=max_tokens)
    assert message.startswith(f"a maximum of {max_tokens} tokens does not fit")
    assert message.endswith("it must be 8 to 512; choose with --max-tokens")


@pytest.mark.parametrize("max_tokens", [8, 512])
def test_max_tokens_may_be_at_its_bounds(small_pair: Pair, max_tokens: int):
    assert load(small_pair.question, max_tokens=max_tokens).max_tokens == max_tokens


def test_dpr_cuts_at_256_tokens(small_pair: Pair):
    assert load(small_pair.question).max_tokens == 256


# sentence-transformers


def test_a_sentence_transformers_model_loads(sentence_model: Path):
    tower = load(sentence_model, "context_encoder")
    assert type(tower.model) is SentenceTower
    assert (tower.pooling, tower.normalize, tower.dim, tower.max_tokens) == ("mean", True, 32, 128)


def test_the_settings_of_newer_sentence_transformers_are_read(sentence_model: Path):
    old = identity(sentence_model)
    (sentence_model / "1_Pooling" / "config.json").write_text(
        json.dumps({"embedding_dimension": 32, "pooling_mode": "mean", "include_prompt": True})
    )
    (sentence_model / "sentence_bert_config.json").write_text(json.dumps({"transformer_task": "feature-extraction"}))
    edit_json(sentence_model / "tokenizer_config.json", model_max_length=128)
    assert identity(sentence_model) == old
    edit_json(sentence_model / "tokenizer_config.json", model_max_length=10**30)
    assert load(sentence_model).max_tokens == 384


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_cls_token": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_sqrt_len_tokens": True},
        {"pooling_mode": "cls"},
        {"pooling_mode": ["cls", "mean"]},
        {},
    ],
)
def test_other_pooling_is_refused(sentence_model: Path, pooling: dict[str, object]):
    (sentence_model / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    assert "only mean pooling is supported" in refusal(sentence_model)


@pytest.mark.parametrize(
    "kinds",
    [
        ["Transformer", "Pooling"],
        ["Transformer", "Pooling", "Dense", "Normalize"],
        ["Transformer", "Pooling", "Normalize", "Dense"],
        ["StaticEmbedding"],
        [],
    ],
)
def test_other_modules_are_refused(sentence_model: Path, kinds: list[str]):
    write_modules(sentence_model, kinds)
    message = refusal(sentence_model)
    assert f"its modules are {kinds}; supported is Transformer, Pooling, Normalize" in message


def test_a_default_prompt_is_refused(sentence_model: Path):
    (sentence_model / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": None}))
    load(sentence_model)
    (sentence_model / "config_sentence_transformers.json").write_text(json.dumps({"default_prompt_name": "query"}))
    assert "default prompt" in refusal(sentence_model)


@pytest.mark.parametrize("content", ["{", "null", '{"0": "Transformer"}', '[{"path": ""}]'])
def test_a_damaged_list_of_modules_is_refused(sentence_model: Path, content: str):
    (sentence_model / "modules.json").write_text(content)
    assert "modules.json is not a list of modules" in refusal(sentence_model)


def test_a_sentence_transformers_model_that_is_not_bert_is_refused(sentence_model: Path):
    edit_json(sentence_model / "config.json", model_type="mpnet")
    assert refusal(sentence_model).endswith("only sentence-transformers models over BERT are supported")


# tower_id


def test_tower_id_is_the_same_for_every_packaging(small_pair: Pair, tmp_path: Path):
    half = tmp_path / "half"
    shutil.copytree(small_pair.question, half)
    DPRQuestionEncoder.from_pretrained(half).half().save_pretrained(half)
    full = tmp_path / "full"
    shutil.copytree(half, full)
    DPRQuestionEncoder.from_pretrained(half, dtype=torch.float32).save_pretrained(full)
    sizes = [(directory / "model.safetensors").stat().st_size for directory in (half, full)]
    assert sizes[1] > 1.9 * sizes[0], "one file must hold float16, the other float32"

    expected = identity(half)
    assert identity(full) == expected
    for directory, zipped in ((half, True), (full, False)):
        to_bin(directory, zipped)
        assert identity(directory) == expected
    assert identity(small_pair.question) != expected, "rounding to float16 made other weights"


def test_tower_id_is_the_same_for_a_re_export(small_pair: Pair, small_bundle: Bundle):
    assert small_bundle.tower("question_encoder").tower_id == identity(small_pair.question)
    assert small_bundle.tower("context_encoder").tower_id == identity(small_pair.context, "context_encoder")


def test_tower_id_is_32_hex_digits(small_pair: Pair):
    tower = identity(small_pair.question)
    assert len(tower) == 32
    assert set(tower) <= set("0123456789abcdef")


def test_tower_id_differs_for_another_weight(small_pair: Pair, rewrite: Callable[..., Path]):
    def change_one_bit(tensors: Tensors) -> None:
        bias = tensors["question_encoder.bert_model.encoder.layer.1.output.dense.bias"]
        bias[7] = torch.nextafter(bias[7], torch.tensor(torch.inf))

    assert identity(rewrite(change_one_bit)) != identity(small_pair.question)


def test_tower_id_differs_when_two_weights_change_places(small_pair: Pair, rewrite: Callable[..., Path]):
    def swap(tensors: Tensors) -> None:
        key, value = (f"question_encoder.bert_model.encoder.layer.0.attention.self.{x}.bias" for x in ("key", "value"))
        tensors[key], tensors[value] = tensors[value], tensors[key]

    assert identity(rewrite(swap)) != identity(small_pair.question)


def test_tower_id_differs_for_max_tokens(small_pair: Pair):
    assert identity(small_pair.question, max_tokens=256) == identity(small_pair.question)
    assert identity(small_pair.question, max_tokens=255) != identity(small_pair.question)


@pytest.mark.parametrize(
    "settings", [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
)
def test_tower_id_differs_for_tokenizer_settings(small_pair: Pair, question: Path, settings: dict[str, bool]):
    edit_json(question / "tokenizer_config.json", **settings)
    assert identity(question) != identity(small_pair.question)


def test_tower_id_differs_for_another_vocabulary(small_pair: Pair, question: Path, vocabulary: list[str]):
    other = [*vocabulary[:-2], vocabulary[-1], vocabulary[-2]]
    (question / "vocab.txt").write_text("".join(f"{token}\n" for token in other), "utf-8")
    assert identity(question) != identity(small_pair.question)


@pytest.mark.parametrize("setting", [{"num_attention_heads": 2}, {"layer_norm_eps": 1e-5}])
def test_tower_id_differs_for_architecture_that_no_weight_shows(
    small_pair: Pair, question: Path, setting: dict[str, object]
):
    edit_json(question / "config.json", **setting)
    assert identity(question) != identity(small_pair.question)


def test_tower_id_differs_for_a_projection(small_pair: Pair, question: Path):
    tower = CLASSES["question_encoder"].from_pretrained(question)
    config = tower.config
    config.projection_dim = 64
    projected = DPRQuestionEncoder(config)
    projected.load_state_dict(tower.state_dict(), strict=False)
    projected.save_pretrained(question)
    assert load(question).projection_dim == 64
    assert identity(question) != identity(small_pair.question)


@pytest.mark.parametrize("change", [{"pooling": "mean"}, {"normalize": True}, {"projection_dim": 64}])
def test_tower_id_differs_for_each_setting_alone(small_pair: Pair, change: dict[str, object]):
    tower = load(small_pair.question)
    settings, _ = read_vocabulary(source.resolve(str(small_pair.question)), "hf")
    assert tower_id(dataclasses.replace(tower, **change), settings) != tower_id(tower, settings)


def test_tower_id_differs_for_pooling(sentence_model: Path, tmp_path: Path):
    """The same BERT weights and tokenizer, read as a DPR tower."""
    dpr = shutil.copytree(sentence_model, tmp_path / "dpr")
    (dpr / "modules.json").unlink()
    tensors = load_file(dpr / "model.safetensors")
    save_file({f"question_encoder.bert_model.{name}": t for name, t in tensors.items()}, dpr / "model.safetensors")
    as_sentences, as_dpr = load(sentence_model), load(dpr, max_tokens=128)
    assert as_sentences.tensors.keys() == as_dpr.tensors.keys()
    assert as_sentences.max_tokens == as_dpr.max_tokens
    assert (as_sentences.pooling, as_dpr.pooling) == ("mean", "cls")
    assert identity(sentence_model) != identity(dpr, max_tokens=128)
