"""Tokenizer settings and vocabulary, read from a checkpoint's tokenizer files."""

import json
from pathlib import Path
from typing import Any

import pytest

from narrows.bundle import TokenizerSettings
from narrows.errors import CheckpointError
from narrows.tokenizer import TowerTokenizer, build_tokenizer, vocabulary_sha256
from narrows_export import vocabulary
from narrows_export.source import CheckpointFiles

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TOKENS = [*SPECIAL, "río", "rio", "Río", "##s", "largo", "?"]
DEFAULTS = {"lowercase": True, "strip_accents": None, "clean_text": True, "handle_chinese_chars": True}


def fast_tokenizer(tokens: list[str] = TOKENS, *, max_word_chars: int = 100, **normalizer: object) -> dict[str, Any]:
    """A tokenizer.json of a BERT WordPiece tokenizer, as `tokenizers` writes it."""
    settings = TokenizerSettings(
        **{**DEFAULTS, **normalizer},
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        max_word_chars=max_word_chars,
        vocabulary_sha256="",
        vocabulary_size=len(tokens),
        text_preset="hf",
    )
    return json.loads(build_tokenizer(settings, tokens).to_str())


class Checkpoint:
    """A checkpoint directory under test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, name: str, content: object) -> "Checkpoint":
        """Writes bytes, the tokens of a vocabulary, or JSON."""
        if name == "vocab.txt" and isinstance(content, list):
            content = "".join(f"{token}\n" for token in content).encode()
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (self.directory / name).write_bytes(data)
        return self

    def read(self) -> tuple[TokenizerSettings, list[str]]:
        return vocabulary.read(CheckpointFiles(self.directory, "tests/checkpoint", "", "", ""), "hf")

    def settings(self) -> TokenizerSettings:
        return self.read()[0]

    def error(self) -> str:
        """The message that reading raises; it names the checkpoint."""
        with pytest.raises(CheckpointError) as raised:
            self.read()
        assert str(self.directory) in str(raised.value)
        return str(raised.value)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return Checkpoint(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Checkpoint:
    (tmp_path / "other").mkdir()
    return Checkpoint(tmp_path / "other")


def test_vocab_txt_alone_gives_bert_defaults(checkpoint: Checkpoint) -> None:
    settings, tokens = checkpoint.write("vocab.txt", TOKENS).read()

    assert tokens == TOKENS
    assert settings == TokenizerSettings(
        lowercase=True,
        strip_accents=None,
        clean_text=True,
        handle_chinese_chars=True,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        mask_token="[MASK]",
        max_word_chars=100,
        vocabulary_sha256=vocabulary_sha256(TOKENS),
        vocabulary_size=len(TOKENS),
        text_preset="hf",
    )


@pytest.mark.parametrize("lowercase", [True, False])
def test_vocab_txt_and_tokenizer_json_checkpoints_read_the_same(
    checkpoint: Checkpoint, other: Checkpoint, lowercase: bool
) -> None:
    checkpoint.write("vocab.txt", TOKENS).write("tokenizer_config.json", {"do_lower_case": lowercase})
    other.write("tokenizer.json", fast_tokenizer(lowercase=lowercase))

    assert checkpoint.read() == other.read()
    assert checkpoint.settings().lowercase is lowercase


def test_tokenizer_json_tokens_come_in_the_order_of_their_ids(checkpoint: Checkpoint) -> None:
    fast = fast_tokenizer()
    fast["model"]["vocab"] = {token: TOKENS.index(token) for token in sorted(TOKENS)}
    assert list(fast["model"]["vocab"]) != TOKENS

    assert checkpoint.write("tokenizer.json", fast).read()[1] == TOKENS


def test_tokenizer_config_overrides_tokenizer_json(checkpoint: Checkpoint) -> None:
    checkpoint.write("tokenizer.json", fast_tokenizer(lowercase=True, strip_accents=True, handle_chinese_chars=True))
    checkpoint.write(
        "tokenizer_config.json", {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": False}
    )
    settings = checkpoint.settings()

    assert settings.lowercase is False
    assert settings.strip_accents is False
    assert settings.handle_chinese_chars is False


def test_null_strip_accents_in_tokenizer_config_overrides_tokenizer_json(checkpoint: Checkpoint) -> None:
    checkpoint.write("tokenizer.json", fast_tokenizer(strip_accents=True))
    checkpoint.write("tokenizer_config.json", {"strip_accents": None})

    assert checkpoint.settings().strip_accents is None


def test_what_only_tokenizer_json_says_is_kept(checkpoint: Checkpoint) -> None:
    checkpoint.write("vocab.txt", TOKENS)
    checkpoint.write("tokenizer.json", fast_tokenizer(max_word_chars=40, clean_text=False))

    assert checkpoint.settings().max_word_chars == 40
    assert checkpoint.settings().clean_text is False


@pytest.mark.parametrize(("switches", "expected"), [({"do_lower_case": False}, "Río"), ({}, "rio")])
def test_switches_reach_the_token_ids(checkpoint: Checkpoint, switches: dict, expected: str) -> None:
    settings, tokens = checkpoint.write("vocab.txt", TOKENS).write("tokenizer_config.json", switches).read()
    tokenizer = TowerTokenizer(build_tokenizer(settings, tokens), settings, 16)

    assert tokenizer.tokens(tokenizer.questions(["Río"])[0].ids) == ["[CLS]", expected, "[SEP]"]


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "as_written",
    [
        pytest.param(lambda token: token, id="string"),
        pytest.param(lambda token: {"content": token, "lstrip": False, "normalized": False}, id="object"),
    ],
)
def test_special_tokens_are_read_as_strings_or_objects(checkpoint: Checkpoint, file: str, as_written) -> None:
    names = {
        "unk_token": "<unk>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    }
    checkpoint.write("vocab.txt", [*names.values(), "río"])
    settings = checkpoint.write(file, {name: as_written(token) for name, token in names.items()}).settings()

    assert {name: getattr(settings, name) for name in names} == names


def test_special_tokens_not_named_are_berts(checkpoint: Checkpoint) -> None:
    checkpoint.write("vocab.txt", [*TOKENS, "<mask>"]).write("special_tokens_map.json", {"mask_token": "<mask>"})

    assert checkpoint.settings().mask_token == "<mask>"
    assert checkpoint.settings().sep_token == "[SEP]"


def test_vocab_txt_with_windows_line_ends_reads_the_same(checkpoint: Checkpoint, other: Checkpoint) -> None:
    checkpoint.write("vocab.txt", "".join(f"{token}\r\n" for token in TOKENS).encode())
    other.write("vocab.txt", TOKENS)

    assert checkpoint.read() == other.read()


def test_vocab_txt_may_end_without_a_newline(checkpoint: Checkpoint) -> None:
    assert checkpoint.write("vocab.txt", "\n".join(TOKENS).encode()).read()[1] == TOKENS


def test_only_newlines_end_a_token_in_vocab_txt(checkpoint: Checkpoint) -> None:
    tokens = [*TOKENS, "\u2028", "\u0085", "a\u2029b", "\x0c", "\u3000"]

    assert checkpoint.write("vocab.txt", tokens).read()[1] == tokens


def test_no_vocabulary(checkpoint: Checkpoint) -> None:
    message = checkpoint.write("tokenizer_config.json", {"do_lower_case": True}).error()

    assert "has no vocabulary: expected vocab.txt or tokenizer.json" in message


@pytest.mark.parametrize("model", ["BPE", "Unigram", "WordLevel"])
@pytest.mark.parametrize("with_vocab_txt", [True, False])
def test_another_tokenizer_than_wordpiece(checkpoint: Checkpoint, model: str, with_vocab_txt: bool) -> None:
    if with_vocab_txt:
        checkpoint.write("vocab.txt", TOKENS)
    fast = fast_tokenizer()
    fast["model"]["type"] = model
    message = checkpoint.write("tokenizer.json", fast).error()

    assert "tokenizer.json" in message
    assert f"is a {model} tokenizer" in message
    assert "only BERT WordPiece" in message


@pytest.mark.parametrize("normalizer", [{"type": "Lowercase"}, {"type": "Sequence", "normalizers": []}, None])
def test_a_wordpiece_tokenizer_with_another_normalizer(checkpoint: Checkpoint, normalizer: dict | None) -> None:
    message = checkpoint.write("tokenizer.json", {**fast_tokenizer(), "normalizer": normalizer}).error()

    assert f"with normalizer {normalizer and normalizer['type']}" in message


def test_a_token_twice(checkpoint: Checkpoint) -> None:
    assert "holds a token twice" in checkpoint.write("vocab.txt", [*TOKENS, "río"]).error()


@pytest.mark.parametrize("token", SPECIAL)
def test_a_special_token_missing_from_the_vocabulary(checkpoint: Checkpoint, token: str) -> None:
    message = checkpoint.write("vocab.txt", [known for known in TOKENS if known != token]).error()

    assert f"lacks its {token.strip('[]').lower()}_token {token}" in message


def test_a_special_token_of_the_config_missing_from_the_vocabulary(checkpoint: Checkpoint) -> None:
    checkpoint.write("vocab.txt", TOKENS).write("tokenizer_config.json", {"sep_token": {"content": "</s>"}})

    assert "lacks its sep_token </s>" in checkpoint.error()


@pytest.mark.parametrize("switch", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
@pytest.mark.parametrize("value", ["false", 0, [True]])
def test_a_switch_that_is_no_boolean(checkpoint: Checkpoint, switch: str, value: object) -> None:
    message = checkpoint.write("vocab.txt", TOKENS).write("tokenizer_config.json", {switch: value}).error()

    assert f"tokenizer_config.json: {switch} must be true, false or null" in message


def test_vocab_txt_that_is_not_utf8_names_the_byte(checkpoint: Checkpoint) -> None:
    data = "".join(f"{token}\n" for token in SPECIAL).encode()
    message = checkpoint.write("vocab.txt", data + "año\n".encode("latin-1")).error()

    assert f"vocab.txt is not UTF-8 (byte {len(data) + 1})" in message


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param({token: index + 1 for index, token in enumerate(TOKENS)}, id="from 1"),
        pytest.param({token: index * 2 for index, token in enumerate(TOKENS)}, id="gaps"),
        pytest.param({**{token: index for index, token in enumerate(TOKENS)}, "twin": 3}, id="an id twice"),
    ],
)
def test_tokenizer_json_ids_that_are_not_contiguous(checkpoint: Checkpoint, ids: dict[str, int]) -> None:
    fast = fast_tokenizer()
    fast["model"]["vocab"] = ids

    assert "tokenizer.json: the vocabulary's ids are not 0..n-1" in checkpoint.write("tokenizer.json", fast).error()


@pytest.mark.parametrize("file", ["tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize(("content", "problem"), [(b'{"a": ', "is not JSON"), (b"[1]", "must hold a JSON object")])
def test_a_damaged_json_file_is_named(checkpoint: Checkpoint, file: str, content: bytes, problem: str) -> None:
    message = checkpoint.write("vocab.txt", TOKENS).write(file, content).error()

    assert f"{file} {problem}" in message


def test_tokens_beyond_berts_five_are_refused_wherever_they_are_listed(checkpoint: Checkpoint) -> None:
    added = {"5": {"content": "río", "special": True}}
    checkpoint.write("vocab.txt", TOKENS).write("tokenizer_config.json", {"added_tokens_decoder": added})
    assert "'río'" in checkpoint.error()
    checkpoint.write("tokenizer_config.json", {"additional_special_tokens": ["rio"]})
    assert "'rio'" in checkpoint.error()
    fast = fast_tokenizer()
    fast["added_tokens"].append({**fast["added_tokens"][0], "id": 9, "content": "largo"})
    checkpoint.write("tokenizer_config.json", {}).write("tokenizer.json", fast)
    assert "'largo'" in checkpoint.error()


def test_two_files_that_name_different_special_tokens(checkpoint: Checkpoint) -> None:
    checkpoint.write("vocab.txt", TOKENS).write("tokenizer_config.json", {"unk_token": "?"})
    assert checkpoint.settings().unk_token == "?"
    checkpoint.write("special_tokens_map.json", {"unk_token": "[UNK]"})
    assert "different tokens as unk_token" in checkpoint.error()


def test_two_files_with_different_vocabularies(checkpoint: Checkpoint) -> None:
    checkpoint.write("vocab.txt", TOKENS).write("tokenizer.json", fast_tokenizer([*TOKENS[:-1], "!"]))
    assert "different vocabularies" in checkpoint.error()


def test_another_word_piece_prefix(checkpoint: Checkpoint) -> None:
    fast = fast_tokenizer()
    fast["model"]["continuing_subword_prefix"] = "@@"
    assert "prefix @@" in checkpoint.write("tokenizer.json", fast).error()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer_config.json", {"sep_token": {"x": 1}}),
        ("tokenizer.json", {"model": [], "normalizer": "x"}),
        ("tokenizer.json", {**fast_tokenizer(), "model": {**fast_tokenizer()["model"], "vocab": ["a"]}}),
        (
            "tokenizer.json",
            {**fast_tokenizer(), "model": {**fast_tokenizer()["model"], "max_input_chars_per_word": "x"}},
        ),
    ],
)
def test_malformed_content_is_a_checkpoint_error(checkpoint: Checkpoint, file: str, content: object) -> None:
    assert "malformed" in checkpoint.write("vocab.txt", TOKENS).write(file, content).error()
