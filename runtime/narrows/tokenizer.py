"""Text -> token ids, as transformers 4.57 does it for BERT WordPiece vocabularies.

The same code runs at export (parity, golden pairs), while an index is built, and in the server. A question is
[CLS] question [SEP]; a passage is [CLS] title [SEP] text [SEP], cut from its longer part (`longest_first`).
Segment ids do not exist here: the graphs have zeros baked in (original DPR, biencoder.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Encoding, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from narrows.bundle import TokenizerSettings
from narrows.errors import BundleError

TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Token ids of one text, int64 of shape (tokens,), special tokens included; and whether it was cut."""

    ids: TokenIds
    truncated: bool


def vocabulary_sha256(vocabulary: Sequence[str]) -> str:
    """Hash of a vocabulary: its tokens in id order, a newline after each."""
    return hashlib.sha256("".join(f"{token}\n" for token in vocabulary).encode("utf-8", "surrogatepass")).hexdigest()


def build_tokenizer(settings: TokenizerSettings, vocabulary: Sequence[str]) -> Tokenizer:
    """Builds the Rust tokenizer that `settings` describe. Neither padding nor truncation is part of it."""
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(
        models.WordPiece(
            ids,
            unk_token=settings.unk_token,
            continuing_subword_prefix="##",
            max_input_chars_per_word=settings.max_word_chars,
        )
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=settings.clean_text,
        handle_chinese_chars=settings.handle_chinese_chars,
        strip_accents=settings.strip_accents,
        lowercase=settings.lowercase,
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    special = [
        settings.pad_token, settings.unk_token, settings.cls_token, settings.sep_token, settings.mask_token,
    ]  # fmt: skip
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    cls, sep = settings.cls_token, settings.sep_token
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    return tokenizer


class TowerTokenizer:
    """Turns questions and (title, text) pairs into the token ids that one tower reads. Thread-safe."""

    def __init__(self, tokenizer: Tokenizer, settings: TokenizerSettings, max_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_tokens, strategy="longest_first")
        self._tokenizer = tokenizer
        self.settings = settings
        self.max_tokens = max_tokens
        self.pad_id: int = tokenizer.token_to_id(settings.pad_token)

    @classmethod
    def load(cls, file: Path, settings: TokenizerSettings, max_tokens: int) -> "TowerTokenizer":
        """Loads a bundle's tokenizer.json.

        Raises:
            BundleError: the file cannot be read as a tokenizer.
        """
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{file} is not a tokenizer: {error}; export the bundle again") from None
        return cls(tokenizer, settings, max_tokens)

    def questions(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Tokenizes questions; with the `hf` preset their text is left as it is."""
        return [_tokenized(encoding) for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def passages(self, pairs: Sequence[tuple[str, str]]) -> list[TokenizedText]:
        """Tokenizes (title, text) pairs; with the `hf` preset an empty title leaves the text alone."""
        inputs = [pair if pair[0] else pair[1] for pair in pairs]
        return [_tokenized(encoding) for encoding in self._tokenizer.encode_batch_fast(inputs)]

    def tokens(self, ids: TokenIds) -> list[str]:
        """The vocabulary entries of `ids`."""
        return [self._tokenizer.id_to_token(int(token)) for token in ids]


def _tokenized(encoding: Encoding) -> TokenizedText:
    return TokenizedText(np.array(encoding.ids, dtype=np.int64), bool(encoding.overflowing))
