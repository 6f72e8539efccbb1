"""DPR's biencoder files: questions with passages that answer them and passages that do not, plain or gzipped.

One JSON array of objects, as DPR's training and validation files are (https://github.com/facebookresearch/DPR,
"Retriever input data format"):

    {"question": ..., "positive_ctxs": [{"title": ..., "text": ...}], "negative_ctxs": [...],
     "hard_negative_ctxs": [...]}

Other keys, `answers` among them, are not read. A title may be missing or null, and so may either list of negatives.
The file is held in memory while it is read; of the lists only what is asked for is kept.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from narrows.errors import QuestionFileError
from narrows.text_lines import TextLines, kind

Context = tuple[str, str]  # title and text of a passage

SHAPE = """{"question": ..., "positive_ctxs": [{"title": ..., "text": ...}], "negative_ctxs": [...], \
"hard_negative_ctxs": [...]}"""


@dataclass(frozen=True, slots=True)
class BiencoderQuestion:
    """A question, its gold passage (the first positive one) and negatives, in the file's order."""

    text: str
    gold: Context
    hard_negatives: tuple[Context, ...]
    other_negatives: tuple[Context, ...]


@dataclass(frozen=True, slots=True)
class BiencoderSet:
    """The questions of a file in its order, and how many were left out because they have no positive passage."""

    questions: tuple[BiencoderQuestion, ...]
    without_positive_count: int


class _Passage(msgspec.Struct):
    text: str
    title: str | None = None


class _Entry(msgspec.Struct):
    question: str
    positive_ctxs: list[_Passage]
    hard_negative_ctxs: list[_Passage] | None = None
    negative_ctxs: list[_Passage] | None = None


def read(file: Path, hard_negatives: int, other_negatives: int) -> BiencoderSet:
    """Reads a file, and keeps at most so many negatives of each kind for a question: the first ones.

    Raises:
        QuestionFileError: anything that breaks the format, with the file and its line, or the number of the entry
            from 1: no JSON, a missing key, a value of another type, an empty question, a passage without text,
            invalid UTF-8, a damaged gzip file; no question with a positive passage.
    """
    if kind(file) != ".json":
        raise QuestionFileError(f"{file}: expected DPR's biencoder file, a name ending in .json or .json.gz")
    with TextLines(file, QuestionFileError) as lines:
        entries = _entries(file, "".join(lines).encode())
    questions = tuple(_questions(file, entries, hard_negatives, other_negatives))
    if not questions:
        raise QuestionFileError(f"{file}: none of its {len(entries)} entries has a positive passage (positive_ctxs)")
    return BiencoderSet(questions, len(entries) - len(questions))


def _entries(file: Path, data: bytes) -> list[msgspec.Raw]:
    """The entries, not decoded yet, so that an error in one can name it."""
    try:
        return msgspec.json.decode(data, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        place = re.search(r"byte (\d+)", str(error))
        line = data.count(b"\n", 0, int(place[1])) + 1 if place else 1
        raise QuestionFileError(f"{file}:{line}: expected a JSON array of questions: {error}") from None


def _questions(
    file: Path, entries: Sequence[msgspec.Raw], hard_negatives: int, other_negatives: int
) -> Iterator[BiencoderQuestion]:
    for number, raw in enumerate(entries, start=1):
        try:
            entry = msgspec.json.decode(raw, type=_Entry)
        except (msgspec.DecodeError, RecursionError) as error:
            raise QuestionFileError(f"{file}: entry {number}: expected {SHAPE}: {error}") from None
        if not entry.question.strip():
            raise QuestionFileError(f"{file}: entry {number}: the question is empty")
        if not entry.positive_ctxs:
            continue
        kept = {
            "positive_ctxs": entry.positive_ctxs[:1],
            "hard_negative_ctxs": (entry.hard_negative_ctxs or [])[:hard_negatives],
            "negative_ctxs": (entry.negative_ctxs or [])[:other_negatives],
        }
        for key, passages in kept.items():
            for position, passage in enumerate(passages):
                if not passage.text.strip():
                    raise QuestionFileError(f"{file}: entry {number}: the text of {key}[{position}] is empty")
        gold, hard, other = (tuple((each.title or "", each.text) for each in passages) for passages in kept.values())
        yield BiencoderQuestion(entry.question, gold[0], hard, other)
