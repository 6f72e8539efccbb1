"""Text -> token ids, as transformers 4.57 does it for BERT WordPiece vocabularies.

The same code runs at export (parity, golden pairs), while an index is built, and in the server. A question is
[CLS] question [SEP]; a passage is [CLS] title [SEP] text [SEP], cut from its longer part (`longest_first`). What
happens to the texts before that is named by the tower's text preset (text_presets.py). One thing is not as in
transformers: a tower that keeps accents reads decomposed text as it reads composed text (decision 051).
Segment ids do not exist here: the graphs make them, zeros or what follows from the ids (narrows.bundle.SegmentIds).
"""

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from narrows.bundle import Bundle, TokenizerSettings, TowerManifest
from narrows.errors import BundleError
from narrows.text_presets import RULES

CONTINUING = "##"  # before a token that goes on with a word
TokenIds = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """Token ids of one text, int64 of shape (tokens,), special tokens included; and how many were cut off."""

    ids: TokenIds
    cut_tokens: int

    @property
    def truncated(self) -> bool:
        """Whether it was cut."""
        return self.cut_tokens > 0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a reader reads: [CLS] question [SEP] title [SEP] text, cut at its end; int64 of shape (tokens,).

    `first_title` and `first_text` are the places of their first tokens, beyond the end where none is left. `offsets`
    say where each token of the text begins and ends: in characters, of the text without its first `cut_before`.
    """

    ids: TokenIds
    first_title: int
    first_text: int
    text: str
    offsets: list[tuple[int, int]]
    cut_before: int

    def characters(self, first: int, last: int) -> tuple[int, int]:
        """Where in the text the tokens from `first` to `last`, places in `ids` behind the title, begin and end.

        The end is exclusive. A letter of several characters is whole, though a token's offsets may be of some of them.
        """
        text = self.text
        start = self.cut_before + self.offsets[first - self.first_text][0]
        end = self.cut_before + self.offsets[last - self.first_text][1]
        while start > 0 and _goes_on_with_a_letter(text[start]):
            start -= 1
        while end < len(text) and _goes_on_with_a_letter(text[end]):
            end += 1
        return start, end


def _goes_on_with_a_letter(character: str) -> bool:
    """Whether it belongs to the character before it: a mark, or a vowel or a final consonant of decomposed Korean.

    Nothing else is ever dropped as an accent or composed with what is before it (Unicode's NFC).
    """
    return unicodedata.category(character).startswith("M") or "\u1160" <= character <= "\u11ff"


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
            continuing_subword_prefix=CONTINUING,
            max_input_chars_per_word=settings.max_word_chars,
        )
    )
    bert = normalizers.BertNormalizer(
        clean_text=settings.clean_text,
        handle_chinese_chars=settings.handle_chinese_chars,
        strip_accents=settings.strip_accents,
        lowercase=settings.lowercase,
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), bert]) if settings.composes else bert
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUING)
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
    """Turns questions and (title, text) pairs into the token ids that one tower reads. Thread-safe.

    It cuts the texts itself: the Rust library's truncation also builds every piece that it cuts off, and for a pair
    every combination of them, which takes seconds and gigabytes for a text of a few kilobytes.
    """

    def __init__(self, tokenizer: Tokenizer, settings: TokenizerSettings, max_tokens: int) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._cls: int = tokenizer.token_to_id(settings.cls_token)
        self.sep_id: int = tokenizer.token_to_id(settings.sep_token)
        self.pad_id: int = tokenizer.token_to_id(settings.pad_token)
        self._rules = RULES[settings.text_preset]
        self.settings = settings
        self.max_tokens = max_tokens

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
        """Tokenizes questions, by the rules of the tower's text preset."""
        return [self._joined([ids]) for ids in self._word_pieces([self._rules.question(text) for text in texts])]

    def passages(self, pairs: Sequence[tuple[str, str]]) -> list[TokenizedText]:
        """Tokenizes (title, text) pairs, by the rules of the tower's text preset."""
        rules = self._rules
        pieces = iter(self._word_pieces([part for title, text in pairs for part in (title, rules.text(text))]))
        return [
            self._joined([title_ids, text_ids] if title or rules.keeps_empty_title else [text_ids])
            for (title, _), title_ids, text_ids in zip(pairs, pieces, pieces, strict=True)
        ]

    def readings(self, question: str, passages: Sequence[tuple[str, str]]) -> list[Reading]:
        """Tokenizes a question with each of some (title, text), as transformers' DPRReaderTokenizer does."""
        rules = self._rules
        [asked] = self._word_pieces([rules.question(question)])
        titles = self._word_pieces([title for title, _ in passages])
        texts = self._tokenizer.encode_batch([rules.text(text) for _, text in passages], add_special_tokens=False)
        made = []
        for title, encoded, (_, text) in zip(titles, texts, passages, strict=True):
            head = [self._cls, *asked, self.sep_id, *title, self.sep_id]
            ids = np.array([*head, *encoded.ids][: self.max_tokens], dtype=np.int64)
            kept = encoded.offsets[: max(0, self.max_tokens - len(head))]
            made.append(Reading(ids, len(asked) + 2, len(head), text, kept, rules.cut_before(text)))
        return made

    def tokens(self, ids: TokenIds) -> list[str]:
        """The vocabulary entries of `ids`."""
        return [self._tokenizer.id_to_token(int(token)) for token in ids]

    def decode(self, ids: TokenIds) -> str:
        """The words of `ids`, as the vocabulary has them."""
        words: str = self._tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return words

    def continuing(self) -> npt.NDArray[np.bool_]:
        """Of each id, whether its token goes on with the word of the one before it; bool (vocabulary,)."""
        vocabulary = self._tokenizer.get_vocab()
        found = np.zeros(max(vocabulary.values()) + 1, dtype=bool)
        found[[number for token, number in vocabulary.items() if token.startswith(CONTINUING)]] = True
        return found

    def _word_pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, uncut and without the special tokens around it."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def _joined(self, parts: list[list[int]]) -> TokenizedText:
        """[CLS] part [SEP], or [CLS] part [SEP] part [SEP], cut to the tower's length."""
        lengths = [len(part) for part in parts]
        room = self.max_tokens - 1 - len(parts)
        kept = _longest_first(lengths[0], lengths[1], room) if len(parts) == 2 else (min(lengths[0], room),)
        ids = [self._cls]
        for part, length in zip(parts, kept, strict=True):
            ids += part[:length]
            ids.append(self.sep_id)
        return TokenizedText(np.array(ids, dtype=np.int64), sum(lengths) - sum(kept))


def _longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """How much of two parts fits: the longer one is cut first, both to halves if the shorter one is over half.

    The rule of transformers' `longest_first`; where both are cut, the longer one keeps the odd token, and the second
    one where they are equal.
    """
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def load_tokenizer(bundle: Bundle, tower: TowerManifest) -> TowerTokenizer:
    """The tokenizer of a bundle's tower.

    Raises:
        BundleError: its file is unreadable.
    """
    return TowerTokenizer.load(bundle.file(tower, tower.tokenizer_file), tower.tokenizer, tower.max_tokens)
