"""Answer matching, against an independent implementation of DPR's rule and against cases made by hand."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_answers import CASES, has_answer, tokens

from narrows_tools.evaluation.answers import AnswerMatcher, AnswerProblems, matches, token_lines
from narrows_tools.evaluation.answers import tokens as our_tokens
from narrows_tools.evaluation.questions import AnswerKind

# No unassigned characters: the tables of `regex` may be newer than those of `unicodedata`.
CHARACTERS = st.characters(exclude_categories=["Cn"])
TROUBLE = st.sampled_from(
    "aAbBéÉñßſİıΣσςΑ'’.-_ \n\t\r\0\u0301\u0323\u00ad\u200d\u2028\u00a0東京각\u1100\U0001f600\ufb01≠ǅᾳₓ²Ⅷⓐ"
)
TEXTS = st.lists(TROUBLE | CHARACTERS, max_size=24).map("".join)
REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=400)


@pytest.mark.parametrize(("answers", "text", "kind", "expected"), CASES)
def test_cases(answers: list[str], text: str, kind: AnswerKind, expected: bool) -> None:
    assert has_answer(answers, text, kind) == expected, "the reference itself"
    assert matches(answers, text, kind) == expected


@REPRODUCIBLE
@given(TEXTS)
def test_tokens_are_those_of_the_reference(text: str) -> None:
    assert our_tokens(text) == tokens(text)
    assert token_lines(text) == "".join(f"\n{token}" for token in tokens(text)) + "\n"


@REPRODUCIBLE
@given(st.data())
def test_strings_match_as_in_the_reference(data: st.DataObject) -> None:
    text = data.draw(TEXTS)
    start = data.draw(st.integers(0, len(text)))
    piece = text[start : data.draw(st.integers(start, len(text)))]  # what is in the text, often
    answers = [data.draw(st.sampled_from([piece, piece.upper(), piece.lower()]) | TEXTS) for _ in range(2)]
    assert matches(answers, text) == has_answer(answers, text, "string")


PIECES = st.sampled_from(
    [
        *"abé.*+?()[]|^$\\{},1 ",
        r"\d",
        r"\w",
        r"\b",
        "(?:",
        "{2}",
        "{,2}",
        "{e}",
        "[^",
        "(?=",
        "(?i)",
        "[[:alpha:]",
        r"\W",
        r"\B.",
    ]
)


@REPRODUCIBLE
@given(st.lists(PIECES, max_size=8).map("".join), st.text("aAbBéE1{}e_‿ \n", max_size=12))
def test_expressions_match_as_in_the_reference(pattern: str, text: str) -> None:
    assert matches([pattern], text, "regex") == has_answer([pattern], text, "regex")


def test_many_texts_are_judged_as_each_alone() -> None:
    answers, texts = ("new york", "Köln"), ["New York, New York", "newyork", "", "in ko\u0308ln", "Cologne"]
    matcher = AnswerMatcher()
    assert matcher.matching(answers, texts) == [True, False, False, True, False]
    assert matcher.matching(answers[:1], texts) == [True, False, False, False, False]
    assert matcher.matching((), texts) == [False] * 5
    assert [matcher.matches(answers, text) for text in texts] == [True, False, False, True, False]


def test_answers_without_a_token_are_reported_once_and_found_everywhere() -> None:
    matcher = AnswerMatcher()
    assert matcher.matching(("\u200b", "Rome"), ["Paris", ""]) == [True, True]
    assert matcher.matching(("Rome", "\u200b", " "), ["Paris"]) == [True]
    assert matcher.problems == AnswerProblems(empty=("\u200b", " "), malformed=(), timed_out=())


@pytest.mark.parametrize("pattern", ["(", "[a", "*", r"\p{L}", "a**", "(?<=a+)b", "x(?i)", "a{2,1}", r"\1", "(?R)"])
def test_what_re_refuses_is_reported_and_found_nowhere(pattern: str) -> None:
    matcher = AnswerMatcher("regex")
    assert matcher.matching((pattern, "Rome"), [pattern, "in Rome"]) == [False, True]
    assert matcher.problems == AnswerProblems(empty=(), malformed=(pattern,), timed_out=())


def test_an_expression_that_takes_for_ever_is_stopped_reported_and_then_left_alone() -> None:
    pattern, text = "(a|aa)+$", "a" * 60 + "b"
    matcher = AnswerMatcher("regex", regex_timeout_s=0.05)
    started = time.monotonic()
    texts = [f"{text}{number}" for number in range(100)]
    assert matcher.matching((pattern, "b7$"), texts) == [
        str(number).startswith("7") and number < 10 for number in range(100)
    ]
    assert time.monotonic() - started < 5.0, "100 searches of 0.05 s, were the expression not given up"
    assert matcher.problems == AnswerProblems(empty=(), malformed=(), timed_out=(pattern,))


def test_what_only_regex_reads_otherwise_is_read_as_re_does() -> None:
    """`regex` alone would read (?:ab){e} as "ab with errors" and find it in "axb", and [[:alpha:]] as a class."""
    assert not matches(["(?:ab){e}"], "axb", "regex")
    assert matches(["(?:ab){e}"], "AB{E}", "regex")
    assert matches([r"\N{DIGIT ONE}{2}\\{d}"], "11\\{d}", "regex")
    assert re.search(r"\N{DIGIT ONE}{2}\\{d}", "11\\{d}")
    assert not matches(["^[[:alpha:]]"], "x]", "regex")
    assert matches(["^[[:alpha:]]", r"\[:"], "a]", "regex")
    assert matches([r"^\[:"], "[:", "regex")


def test_a_mark_is_no_part_of_a_word_in_an_expression() -> None:
    """As in `re`: in NFD the accent of an e is a mark, so that a word that ends in it ends before it."""
    for pattern, text in (
        (r"jos\u00e9\b", "José said"),
        (r"^jose\b", "José"),
        (r"[\W]$", "José"),
        (r"\w\W\s", "José said"),
    ):
        assert matches([pattern], text, "regex") == has_answer([pattern], text, "regex"), pattern
    assert not matches([r"josé\b"], "José said", "regex")
    assert matches([r"^jose\b"], "José", "regex")
