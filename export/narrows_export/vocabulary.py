"""A checkpoint's tokenizer files -> tokenizer settings and vocabulary.

As transformers 4.57 has it, a switch of tokenizer_config.json goes over the one in tokenizer.json. Where only
tokenizer.json has it, that one counts (transformers would take BERT's default, and lower-case a cased vocabulary).
Padding and truncation inside tokenizer.json are ignored. What would change ids and cannot be kept is refused.
"""

import unicodedata
from typing import Any

from narrows import tokenizer as narrows_tokenizer
from narrows.bundle import TextPreset, TokenizerSettings
from narrows.errors import CheckpointError
from narrows_export.source import CheckpointFiles

CONFIG, FAST, MAP, VOCAB = "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "vocab.txt"
PREFIX = "##"


def read(files: CheckpointFiles, preset: TextPreset) -> tuple[TokenizerSettings, list[str]]:
    """Returns the settings and the vocabulary, tokens in id order.

    Raises:
        CheckpointError: no vocabulary, one that is not BERT WordPiece, one without a special token, extra tokens,
            files that contradict each other or are malformed.
    """
    try:
        return _read(files, preset)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{files.directory}: the tokenizer files are malformed: {error!r}") from None


def _read(files: CheckpointFiles, preset: TextPreset) -> tuple[TokenizerSettings, list[str]]:
    config, fast, special_map = files.json(CONFIG), files.json(FAST), files.json(MAP)
    model: dict[str, Any] = fast.get("model") or {}
    normalizer: dict[str, Any] = fast.get("normalizer") or {}
    if fast:
        _check_wordpiece(files, model, normalizer)
    vocabulary = _vocabulary(files, model)
    known = set(vocabulary)

    def switch(name: str, in_fast: str, default: bool | None) -> bool | None:
        value, origin = (config[name], CONFIG) if name in config else (normalizer.get(in_fast, default), FAST)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{files.directory / origin}: {name} must be true, false or null, not {value!r}")
        return value

    def special(name: str, default: str) -> str:
        given = {_content(table[name]) for table in (config, special_map) if table.get(name)}
        if len(given) > 1:
            raise CheckpointError(f"{files.directory}: {CONFIG} and {MAP} name different tokens as {name}: {given}")
        token = given.pop() if given else default
        if token not in known:
            raise CheckpointError(f"the vocabulary of {files.directory} lacks its {name} {token}")
        return token

    lowercase = switch("do_lower_case", "lowercase", True) is not False
    strip_accents = switch("strip_accents", "strip_accents", None)
    strips = lowercase if strip_accents is None else strip_accents
    settings = TokenizerSettings(
        lowercase=lowercase,
        strip_accents=strip_accents,
        clean_text=normalizer.get("clean_text", True) is not False,
        handle_chinese_chars=switch("tokenize_chinese_chars", "handle_chinese_chars", True) is not False,
        unk_token=special("unk_token", "[UNK]"),
        cls_token=special("cls_token", "[CLS]"),
        sep_token=special("sep_token", "[SEP]"),
        pad_token=special("pad_token", "[PAD]"),
        mask_token=special("mask_token", "[MASK]"),
        max_word_chars=int(model.get("max_input_chars_per_word", 100)),
        vocabulary_sha256=narrows_tokenizer.vocabulary_sha256(vocabulary),
        vocabulary_size=len(vocabulary),
        text_preset=preset,
        composes=not strips and _is_composed(vocabulary),
    )
    five = {settings.unk_token, settings.cls_token, settings.sep_token, settings.pad_token, settings.mask_token}
    added = [*config.get("added_tokens_decoder", {}).values(), *fast.get("added_tokens", [])]
    extra = {_content(token) for token in [*added, *(config.get("additional_special_tokens") or [])]} - five
    if extra:
        raise CheckpointError(
            f"{files.directory}: tokens beyond BERT's five special ones cannot be kept: {sorted(extra)}"
        )
    return settings, vocabulary


def _is_composed(vocabulary: list[str]) -> bool:
    """Whether letters with accents are one character in it, or more of them are than are two."""
    composed = sum(not unicodedata.is_normalized("NFD", token) for token in vocabulary)
    decomposed = sum(not unicodedata.is_normalized("NFC", token) for token in vocabulary)
    return composed >= decomposed


def _content(token: str | dict[str, Any]) -> str:
    """A special token, which files give as a string or as an object."""
    return str(token["content"] if isinstance(token, dict) else token)


def _check_wordpiece(files: CheckpointFiles, model: dict[str, Any], normalizer: dict[str, Any]) -> None:
    kind, normal, prefix = (
        model.get("type", "WordPiece"), normalizer.get("type"), model.get("continuing_subword_prefix", PREFIX)
    )  # fmt: skip
    if (kind, normal, prefix) != ("WordPiece", "BertNormalizer", PREFIX):
        raise CheckpointError(
            f"{files.directory / FAST} is a {kind} tokenizer with normalizer {normal} and prefix {prefix}; only "
            f"BERT WordPiece (BertNormalizer, {PREFIX}) is supported"
        )


def _vocabulary(files: CheckpointFiles, model: dict[str, Any]) -> list[str]:
    text_file = files.directory / VOCAB
    vocab: dict[str, int] = model.get("vocab") or {}
    from_fast = sorted(vocab, key=vocab.__getitem__)
    if [vocab[token] for token in from_fast] != list(range(len(from_fast))):
        raise CheckpointError(f"{files.directory / FAST}: the vocabulary's ids are not 0..n-1")
    if not text_file.is_file():
        if not vocab:
            raise CheckpointError(f"{files.directory} has no vocabulary: expected {VOCAB} or {FAST}")
        return from_fast
    try:
        text = text_file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{text_file} is not UTF-8 (byte {error.start})") from None
    # Only a newline ends a token: vocabularies hold other characters that splitlines() would split at.
    vocabulary = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(set(vocabulary)) != len(vocabulary):
        raise CheckpointError(f"{text_file} holds a token twice")
    if vocab and from_fast != vocabulary:
        raise CheckpointError(
            f"{files.directory}: {VOCAB} and {FAST} hold different vocabularies; delete the wrong one"
        )
    return vocabulary
