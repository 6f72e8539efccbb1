"""Rankings in the formats of other programs, written question by question; a file appears whole, or not at all.

DPR        [{question, answers, ctxs: [{id, title, text, score, has_answer}]}], scores as strings: what the original's
           retriever writes and its reader takes.
TREC       `question-id Q0 passage-id rank score tag`, ranks from 1, for trec_eval and its kin. They take the order from
           the scores and break ties by id in a way of their own.
Pyserini   {question-id: {question, answers, contexts: [{docid, score, text, has_answer}]}}, `text` being the title, a
           line feed and the text (pyserini/eval/evaluate_dpr_retrieval.py takes what follows the first line feed up to
           the next, so line feeds inside become spaces).
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from narrows import durable
from narrows_tools.evaluation.questions import Question
from narrows_tools.evaluation.search import Ranking

TREC_TAG = "narrows"
NOT_IN_TREC_IDS = re.compile(r"[%\s]")


class RunFile(Protocol):
    """Takes the ranking of one question after another."""

    def write(self, question: Question, ranking: Ranking, has_answer: Sequence[bool]) -> None:
        """Adds a question; `has_answer` is for each hit."""
        ...


@contextmanager
def dpr_file(path: Path) -> Iterator[RunFile]:
    """Yields a writer of DPR's retriever results."""
    with durable.new_file(path) as file:
        writer = _DprFile(file)
        yield writer
        file.write(b"\n]\n" if writer.count else b"[]\n")


@contextmanager
def trec_file(path: Path) -> Iterator[RunFile]:
    """Yields a writer of a TREC run. Ids with blanks are percent-encoded (`trec_id`)."""
    with durable.new_file(path) as file:
        yield _TrecFile(file)


@contextmanager
def pyserini_file(path: Path) -> Iterator[RunFile]:
    """Yields a writer of the JSON that Pyserini's DPR evaluation reads."""
    with durable.new_file(path) as file:
        writer = _PyseriniFile(file)
        yield writer
        file.write(b"\n}\n" if writer.count else b"{}\n")


def trec_id(identifier: str) -> str:
    """An id as it stands in a TREC run, whose columns are separated by blanks: blanks and % are percent-encoded."""
    return NOT_IN_TREC_IDS.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), identifier)


def _score(score: float) -> str:
    """The shortest decimal number that is this float32."""
    return str(np.float32(score))


class _DprFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def write(self, question: Question, ranking: Ranking, has_answer: Sequence[bool]) -> None:
        item = {
            "question": question.text,
            "answers": list(question.answers),
            "ctxs": [
                {"id": hit.id, "title": hit.title, "text": hit.text, "score": _score(hit.score), "has_answer": found}
                for hit, found in zip(ranking, has_answer, strict=True)
            ],
        }
        self._file.write(b",\n" if self.count else b"[\n")
        self._file.write(json.dumps(item, ensure_ascii=False).encode())
        self.count += 1


class _TrecFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, question: Question, ranking: Ranking, has_answer: Sequence[bool]) -> None:
        asked = trec_id(question.id)
        for rank, hit in enumerate(ranking, start=1):
            line = f"{asked} Q0 {trec_id(hit.id)} {rank} {_score(hit.score)} {TREC_TAG}\n"
            self._file.write(line.encode())


class _PyseriniFile:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.count = 0

    def write(self, question: Question, ranking: Ranking, has_answer: Sequence[bool]) -> None:
        item = {
            "question": question.text,
            "answers": list(question.answers),
            "contexts": [
                {
                    "docid": hit.id,
                    "score": _score(hit.score),
                    "text": "\n".join(part.replace("\n", " ") for part in (hit.title, hit.text)),
                    "has_answer": found,
                }
                for hit, found in zip(ranking, has_answer, strict=True)
            ],
        }
        self._file.write(b",\n" if self.count else b"{\n")
        self._file.write(f"{json.dumps(question.id)}: {json.dumps(item, ensure_ascii=False)}".encode())
        self.count += 1
