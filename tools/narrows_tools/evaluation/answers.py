"""Whether a passage holds an answer to a question: the rule of DPR's published top-k accuracies, written anew.

The rule (Karpukhin et al. 2020, section 4; has_answer in DPR's qa_validation.py; the tokens are those of Chen et al.
2017, DrQA): the passage's text, without its title, and the answer are both put into Unicode form NFD. A `string`
answer is found if its tokens, lower-cased, stand in the text one after another; a token is a run of letters, digits
and marks, or any other single visible character. A `regex` answer is found if it matches somewhere, whatever the case.

Two properties of the original are kept and reported, because both hide in a table of accuracies: an answer that has
no token at all is found everywhere, and a malformed expression nowhere. New is a time limit on expressions.
"""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import regex

from narrows_tools.evaluation.expressions import compiled
from narrows_tools.evaluation.questions import AnswerKind

TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
REGEX_TIMEOUT_S = 0.25
MAX_TIMEOUTS = 4  # an expression that ran out of time so often is not tried again
CACHED_TEXTS = 65_536
CACHED_ANSWERS = 16_384


@dataclass(frozen=True, slots=True)
class AnswerProblems:
    """Answers that do not mean what they seem to, each once, in the order met."""

    empty: tuple[str, ...]  # no token: found in every text
    malformed: tuple[str, ...]  # not a regular expression: found in no text
    timed_out: tuple[str, ...]  # ran out of time at least once: not found there


class _Needle(Protocol):
    """One answer, ready to be looked for in a prepared text."""

    def found(self, text: str) -> bool: ...


def tokens(text: str) -> list[str]:
    """The tokens of a text, NFD and lower-cased one by one (Greek final sigma depends on where a word ends)."""
    return [token.lower() for token in TOKEN.findall(unicodedata.normalize("NFD", text))]


class AnswerMatcher:
    """Tests texts for answers. It keeps the prepared form of what it saw last. For one thread."""

    def __init__(self, kind: AnswerKind = "string", regex_timeout_s: float = REGEX_TIMEOUT_S) -> None:
        self.kind = kind
        self._regex_timeout_s = regex_timeout_s
        self._text = lru_cache(CACHED_TEXTS)(token_lines if kind == "string" else _nfd)
        self._needles = lru_cache(CACHED_ANSWERS)(self._prepare)
        self._empty: dict[str, None] = {}
        self._malformed: dict[str, None] = {}
        self._timed_out: dict[str, None] = {}

    def matches(self, answers: Iterable[str], text: str) -> bool:
        """Whether `text` holds any of `answers`."""
        prepared = self._text(text)
        return any(needle.found(prepared) for needle in self._needles(tuple(answers)))

    def matching(self, answers: Iterable[str], texts: Sequence[str]) -> list[bool]:
        """For each text, whether it holds any of `answers`."""
        needles = self._needles(tuple(answers))
        if len(needles) == 1:
            found = needles[0].found
            return [found(prepared) for prepared in map(self._text, texts)]
        return [any(needle.found(prepared) for needle in needles) for prepared in map(self._text, texts)]

    @property
    def problems(self) -> AnswerProblems:
        """What was noticed so far."""
        return AnswerProblems(tuple(self._empty), tuple(self._malformed), tuple(self._timed_out))

    def _prepare(self, answers: tuple[str, ...]) -> list[_Needle]:
        needles: list[_Needle] = []
        for answer in answers:
            if self.kind == "string":
                lines = token_lines(answer)
                if lines == "\n":
                    self._empty.setdefault(answer)
                needles.append(_Phrase(lines))
                continue
            pattern = compiled(_nfd(answer))
            if pattern is None:
                self._malformed.setdefault(answer)
            else:
                needles.append(_Expression(answer, pattern, self._regex_timeout_s, self._timed_out))
        return needles


def matches(answers: Iterable[str], text: str, kind: AnswerKind = "string") -> bool:
    """Whether `text` holds any of `answers`; to test many texts, keep an AnswerMatcher."""
    return AnswerMatcher(kind).matches(answers, text)


class _Phrase:
    """Tokens that must stand one after another. A text without tokens holds the empty phrase, too."""

    __slots__ = ("_lines",)

    def __init__(self, lines: str) -> None:
        self._lines = lines

    def found(self, text: str) -> bool:
        return self._lines in text


class _Expression:
    """A regular expression under a time limit."""

    __slots__ = ("_answer", "_pattern", "_timed_out", "_timeout_s", "_timeouts")

    def __init__(
        self, answer: str, pattern: "regex.Pattern[str]", timeout_s: float, timed_out: dict[str, None]
    ) -> None:
        self._answer = answer
        self._pattern = pattern
        self._timeout_s = timeout_s
        self._timed_out = timed_out
        self._timeouts = 0

    def found(self, text: str) -> bool:
        if self._timeouts >= MAX_TIMEOUTS:
            return False
        try:
            return self._pattern.search(text, timeout=self._timeout_s) is not None
        except TimeoutError:
            self._timeouts += 1
            self._timed_out.setdefault(self._answer)
            return False


def _nfd(text: str) -> str:
    return unicodedata.normalize("NFD", text)


def token_lines(text: str) -> str:
    """The tokens with a line feed around each: no token holds one, so a sub-list of tokens is a substring.

    Lower-cased in one go: a line feed ends a word as far as `str.lower` is concerned, so that this is the same as
    lower-casing every token by itself.
    """
    return "\n".join(["", *TOKEN.findall(_nfd(text)), ""]).lower()
