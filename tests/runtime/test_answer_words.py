"""From logits to the words of a passage: letters stay whole, and bytes are those of the words."""

import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.answers import END, LOGITS, START, Answer, AnswerFinder
from narrows.spans import RULES
from narrows.tokenizer import TowerTokenizer, build_tokenizer
from narrows_export import vocabulary
from narrows_export.source import CheckpointFiles

DATA = Path(__file__).parents[1] / "data" / "golden_tokenizer"
VOCABULARIES = ("en-uncased", "es-cased")  # without accents; with them, made one character with their letter
LETTERS = ["a", "é", "ñ", "서", "한", "ভো", "हि", "दु", "กี่", "❤\ufe0f", "東", "ệ", "Å", ".", " "]


@cache
def tokenizer(name: str) -> TowerTokenizer:
    settings, tokens = vocabulary.read(CheckpointFiles(DATA / name, name, "", "", ""), "hf")
    return TowerTokenizer(build_tokenizer(settings, tokens), settings, max_tokens=128)


def tokens(name: str, text: str) -> int:
    [reading] = tokenizer(name).readings("who?", [("", text)])
    return len(reading.ids) - reading.first_text


def answer(name: str, text: str, first: int, last: int) -> Answer:
    """What is answered where the logits choose these tokens of the text, counted from its first."""
    [reading] = tokenizer(name).readings("who?", [("", text)])
    logits = np.zeros((len(reading.ids), LOGITS), dtype=np.float32)
    logits[reading.first_text + first, START] = logits[reading.first_text + last, END] = 9
    [found, *_] = AnswerFinder(tokenizer(name)).find([reading], [logits.ravel()], RULES["hugging-face"], 1)
    return found


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "word", ["año", "José Martí", "서울", "한국어", "ভালো", "हिन्दु", "กี่", "❤\ufe0f", "việt", "שָׁלוֹם", "1\ufe0f\u20e3"]
)
def test_the_last_letter_of_an_answer_is_whole(name: str, form: str, word: str) -> None:
    word = unicodedata.normalize(form, word)
    text = f"a {word} a"

    found = answer(name, text, 1, tokens(name, text) - 2)

    assert found.text == word
    assert (found.start_byte, found.end_byte) == (2, 2 + len(word.encode()))


@pytest.mark.parametrize("name", VOCABULARIES)
@given(letters=st.lists(st.sampled_from(LETTERS), min_size=1, max_size=20), data=st.data())
@settings(derandomize=True, max_examples=100, deadline=None)
def test_any_answer_is_whole_letters_and_the_same_for_composed_and_decomposed_text(
    name: str, letters: list[str], data: st.DataObject
) -> None:
    composed, decomposed = (unicodedata.normalize(form, f"x{''.join(letters)}") for form in ("NFC", "NFD"))
    first = data.draw(st.integers(0, tokens(name, composed) - 1))
    last = data.draw(st.integers(first, tokens(name, composed) - 1))

    whole, parts = answer(name, composed, first, last), answer(name, decomposed, first, last)

    assert unicodedata.normalize("NFC", parts.text) == whole.text
    for text, found in ((composed, whole), (decomposed, parts)):
        assert text.encode()[found.start_byte : found.end_byte].decode() == found.text
