"""The demo corpus that ships with the exporter: passages and questions in English and Spanish, written for it.

It feeds the parity check, the golden pairs, the pair check and `make demo`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from narrows import passage_files
from narrows.passages import Passage

DIRECTORY = Path(__file__).parent / "data"
LANGUAGES: dict[Literal["en", "es"], str] = {"en": "English", "es": "Spanish"}


@dataclass(frozen=True, slots=True)
class DemoQuestion:
    """One question, its short answers and the ids of the passages that answer it."""

    id: str
    question: str
    answers: tuple[str, ...]
    positive_passage_ids: tuple[str, ...]


def passages_file(language: str) -> Path:
    """The JSONL file of one language's passages, as `narrows index build` reads it."""
    return DIRECTORY / f"passages.{language}.jsonl"


def questions_file(language: str) -> Path:
    """The JSONL file of one language's questions."""
    return DIRECTORY / f"questions.{language}.jsonl"


def passages(language: str) -> list[Passage]:
    """The passages of one language: 300 in English (`en`), 100 in Spanish (`es`)."""
    return [row.passage for row in passage_files.read(passages_file(language))]


def questions(language: str) -> list[DemoQuestion]:
    """The questions of one language: 130 in English, 70 in Spanish. The first 64 are on different subjects."""
    rows = [json.loads(line) for line in questions_file(language).read_text("utf-8").splitlines()]
    return [
        DemoQuestion(row["id"], row["question"], tuple(row["answers"]), tuple(row["positive_passage_ids"]))
        for row in rows
    ]
