"""The texts of a run, all distinct, with lengths that are exact in tokens and the same for every system.

Words are drawn from those entries of the tower's own vocabulary that are one token each, so that a text of n words has
n tokens and the special ones around it, and a run needs no data but the bundle.
"""

import re
from collections.abc import Sequence

import numpy as np

from narrows.errors import BundleError
from narrows.tokenizer import TowerTokenizer
from narrows_tools.bench.targets import Text

# Every twentieth of the lengths of 10,569 English questions, in tokens of an uncased WordPiece vocabulary; mean 14.5.
SHORT_TOKENS = (8, 9, 10, 11, 11, 12, 12, 13, 13, 13, 14, 14, 15, 15, 16, 17, 18, 19, 21, 28)
MIXED_TOKENS = (8, 256)
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
MIN_WORDS = 100
DRAWS = 100  # of one text, until it is new
_WORD = re.compile(r"[a-z]{2,12}")


def single_token_words(tokenizer: TowerTokenizer) -> tuple[str, ...]:
    """The lower-case words of a vocabulary that are one token in a question.

    Raises:
        BundleError: there are too few.
    """
    size = tokenizer.settings.vocabulary_size
    words = [token for token in tokenizer.tokens(np.arange(size)) if _WORD.fullmatch(token)]
    texts = tokenizer.questions(words)
    found = tuple(word for word, text in zip(words, texts, strict=True) if len(text.ids) == 1 + SPECIAL_TOKENS)
    if len(found) < MIN_WORDS:
        raise BundleError(
            f"the tower's vocabulary has {len(found)} plain words of one token; {MIN_WORDS} are needed to make texts"
        )
    return found


def lengths(kind: str, count: int, max_tokens: int) -> list[int]:
    """The lengths in tokens of so many `short` or `mixed` texts for a tower that reads `max_tokens`, ascending.

    Short ones are as long as questions are; of mixed ones, 8 to 256 tokens, every length is there equally often.
    """
    if kind == "short":
        return [min(SHORT_TOKENS[number * len(SHORT_TOKENS) // count], max_tokens) for number in range(count)]
    low, high = MIXED_TOKENS
    span = min(high, max_tokens) - low + 1
    return [low + (2 * number + 1) * span // (2 * count) for number in range(count)]


class Traffic:
    """Makes the texts of one run: distinct from one another, over all calls, and the same for the same seed."""

    def __init__(self, words: Sequence[str], max_tokens: int, seed: int) -> None:
        self._words = np.array(words)
        self._max_tokens = max_tokens
        self._draw = np.random.default_rng(seed)
        self._given: set[str] = set()

    def short(self, count: int) -> list[Text]:
        """Texts as long as questions are, shuffled."""
        return self._texts(lengths("short", count, self._max_tokens))

    def mixed(self, count: int) -> list[Text]:
        """Texts of 8 to 256 tokens (or what the tower reads), every length equally often, shuffled."""
        return self._texts(lengths("mixed", count, self._max_tokens))

    def named(self, kind: str, count: int) -> list[Text]:
        """`short` or `mixed` texts."""
        return {"short": self.short, "mixed": self.mixed}[kind](count)

    def _texts(self, tokens: Sequence[int]) -> list[Text]:
        return [self._text(int(each)) for each in self._draw.permutation(tokens)]

    def _text(self, tokens: int) -> Text:
        for _ in range(DRAWS):
            text = " ".join(self._draw.choice(self._words, tokens - SPECIAL_TOKENS))
            if text not in self._given:
                self._given.add(text)
                return Text(text, tokens)
        raise BundleError("the tower's vocabulary has too few words for so many distinct texts; make a shorter run")
