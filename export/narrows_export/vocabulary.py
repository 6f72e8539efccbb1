"""A checkpoint's tokenizer files -> tokenizer settings and vocabulary.

transformers 4.57 takes the switches from tokenizer_config.json where it has them, over those of tokenizer.json; a
switch that neither file has is BERT's default. Padding and truncation inside tokenizer.json are ignored.
"""

from typing import Any

from narrows import tokenizer as narrows_tokenizer
from narrows.bundle import TextPreset, TokenizerSettings
from narrows.errors import CheckpointError
from narrows_export.source import CheckpointFiles


def read(files: CheckpointFiles, preset: TextPreset) -> tuple[TokenizerSettings, list[str]]:
    """Returns the settings and the vocabulary, tokens in id order.

    Raises:
        CheckpointError: no vocabulary, one that is not BERT WordPiece, or one without a special token.
    """
    config = files.json("tokenizer_config.json")
    fast = files.json("tokenizer.json")
    model: dict[str, Any] = fast.get("model") or {}
    normalizer: dict[str, Any] = fast.get("normalizer") or {}
    if fast and (model.get("type", "WordPiece") != "WordPiece" or normalizer.get("type") != "BertNormalizer"):
        raise CheckpointError(
            f"{files.directory / 'tokenizer.json'} is a {model.get('type')} tokenizer with normalizer "
            f"{normalizer.get('type')}; only BERT WordPiece tokenizers are supported"
        )
    vocabulary = _vocabulary(files, model)

    def switch(name: str, in_fast: str, default: bool | None) -> bool | None:
        value = config[name] if name in config else normalizer.get(in_fast, default)
        if value is not None and not isinstance(value, bool):
            raise CheckpointError(f"{files.directory / 'tokenizer_config.json'}: {name} must be true, false or null")
        return value

    def special(name: str, default: str) -> str:
        value = config.get(name) or files.json("special_tokens_map.json").get(name) or default
        token = str(value["content"] if isinstance(value, dict) else value)
        if token not in known:
            raise CheckpointError(f"the vocabulary of {files.directory} lacks its {name} {token}")
        return token

    known = set(vocabulary)
    settings = TokenizerSettings(
        lowercase=switch("do_lower_case", "lowercase", True) is not False,
        strip_accents=switch("strip_accents", "strip_accents", None),
        clean_text=switch("clean_text", "clean_text", True) is not False,
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
    )
    return settings, vocabulary


def _vocabulary(files: CheckpointFiles, model: dict[str, Any]) -> list[str]:
    text_file = files.directory / "vocab.txt"
    if text_file.is_file():
        try:
            text = text_file.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{text_file} is not UTF-8 (byte {error.start})") from None
        # Only a newline ends a token: vocabularies hold other characters that splitlines() would split at.
        vocabulary = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    elif model.get("vocab"):
        vocab: dict[str, int] = model["vocab"]
        vocabulary = sorted(vocab, key=vocab.__getitem__)
        if [vocab[token] for token in vocabulary] != list(range(len(vocabulary))):
            raise CheckpointError(f"{files.directory / 'tokenizer.json'}: the vocabulary's ids are not 0..n-1")
    else:
        raise CheckpointError(f"{files.directory} has no vocabulary: expected vocab.txt or tokenizer.json")
    if len(set(vocabulary)) != len(vocabulary):
        raise CheckpointError(f"the vocabulary of {files.directory} holds a token twice")
    return vocabulary
