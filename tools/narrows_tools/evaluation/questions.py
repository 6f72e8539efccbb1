"""Question files, plain or gzipped, read strictly: what is asked, and what counts as its answer.

*.csv, *.tsv    DPR's qa files, TAB separated and csv-quoted in spite of their name: question, Python list of answers.
                They have no ids; the ids are "0", "1", ..., as Pyserini numbers the same files.
*.jsonl         one object a line: id (string or integer; by default the number, as above), question, answers and, if it
                has them, positive_passage_ids. Other keys may be used to choose questions, and are left out.
*.json          SQuAD v1.1 and v2 (https://rajpurkar.github.io/SQuAD-explorer). Questions marked is_impossible have no
                answer, so top-k accuracy is not defined for them: they are left out and counted.
"""

import ast
import csv
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import numpy as np

from narrows.errors import QuestionFileError
from narrows.text_lines import TextLines, kind

AnswerKind = Literal["string", "regex"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """A question. `answers` are strings, or regular expressions if `answer_kind` says so; either tuple may be empty."""

    id: str
    text: str
    answers: tuple[str, ...]
    positive_ids: tuple[str, ...] = ()
    answer_kind: AnswerKind = "string"


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """The questions of a file in its order, and how many were left out because they have no answer (SQuAD v2)."""

    questions: tuple[Question, ...]
    impossible_count: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A question as its format gives it, and its line."""

    line: int
    id: str
    text: str
    answers: Iterable[str]
    positive_ids: Iterable[str] = ()


class _SquadAnswer(msgspec.Struct):
    text: str


class _SquadQuestion(msgspec.Struct):
    id: str
    question: str
    answers: list[_SquadAnswer]
    is_impossible: bool = False


class _SquadParagraph(msgspec.Struct):
    qas: list[_SquadQuestion]


class _SquadArticle(msgspec.Struct):
    paragraphs: list[_SquadParagraph]


class _Squad(msgspec.Struct):
    data: list[_SquadArticle]


def read(file: Path, answer_kind: AnswerKind = "string") -> list[Question]:
    """The questions of a file, in order. As `read_set`, without the count of those that were left out."""
    return list(read_set(file, answer_kind).questions)


def read_set(file: Path, answer_kind: AnswerKind = "string", where: Mapping[str, object] | None = None) -> QuestionSet:
    """Reads a file. `where` keeps only the questions whose JSON lines have these values.

    Raises:
        QuestionFileError: anything that breaks the format, with file and line: a malformed row, invalid UTF-8, a
            duplicate or empty id, an empty question, a question with neither answers nor positive passages, a damaged
            gzip file; no question at all; `where` with a format that has no further keys, or naming a key that a
            line lacks.
    """
    suffix = kind(file)
    if suffix not in (".csv", ".tsv", ".jsonl", ".json"):
        raise QuestionFileError(f"{file}: expected a name ending in .csv, .tsv, .jsonl or .json, or .gz of them")
    if where and suffix != ".jsonl":
        raise QuestionFileError(f"{file}: only .jsonl files have keys to choose questions by")
    impossible_count = 0
    with TextLines(file, QuestionFileError) as lines:
        if suffix == ".json":
            squad = _decode_squad(file, "".join(lines))
            found, impossible_count = _squad_questions(squad), _count_impossible(squad)
        else:
            found = _read_jsonl(lines, where or {}) if suffix == ".jsonl" else _read_csv(lines)
        questions = tuple(_checked(lines, found, answer_kind))
    if not questions:
        raise QuestionFileError(f"{file}: it holds no questions" + (f" with {dict(where)}" if where else ""))
    return QuestionSet(questions, impossible_count)


def sample(questions: Sequence[T], count: int, seed: int) -> list[T]:
    """`count` questions drawn without replacement, in the order drawn; all of them, in their order, if there are fewer.

    The draw is numpy.random.default_rng(seed).choice(len(questions), count, replace=False).
    """
    if count >= len(questions):
        return list(questions)
    return [questions[number] for number in np.random.default_rng(seed).choice(len(questions), count, replace=False)]


def _checked(lines: TextLines, found: Iterable[_Found], answer_kind: AnswerKind) -> Iterator[Question]:
    first_line: dict[str, int] = {}
    for item in found:
        if not item.id:
            raise lines.error("the id is empty", item.line)
        if item.id in first_line:
            raise lines.error(f"the id {item.id!r} was used on line {first_line[item.id]} already", item.line)
        first_line[item.id] = item.line
        if not item.text.strip():
            raise lines.error(f"question {item.id!r} is empty", item.line)
        question = Question(
            item.id, item.text, tuple(dict.fromkeys(item.answers)), tuple(dict.fromkeys(item.positive_ids)), answer_kind
        )
        if not question.answers and not question.positive_ids:
            raise lines.error(f"question {item.id!r} has neither answers nor positive passages", item.line)
        yield question


def _read_csv(lines: TextLines) -> Iterator[_Found]:
    reader = csv.reader(lines, delimiter="\t", strict=True)
    start = 1  # the line that a row begins on: where an unclosed quotation mark is, too
    number = 0
    try:
        for fields in reader:
            if fields:
                if len(fields) != 2:
                    raise lines.error(
                        f"expected 2 tab-separated fields (question, answers), found {len(fields)}", start
                    )
                yield _Found(start, str(number), fields[0], _list_literal(lines, start, fields[1]))
                number += 1
            start = lines.number + 1
    except csv.Error as error:
        raise lines.error(f"malformed row: {error}", start) from None


def _list_literal(lines: TextLines, line: int, text: str) -> list[str]:
    """The strings of a Python list; nothing is evaluated but literals."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an expression such as '\d+' in a plain string literal
            value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise lines.error(
            f"expected a Python list of answers, such as ['Paris'], but found {text!r}: {error}", line
        ) from None
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise lines.error(f"expected a Python list of strings, but found {text!r}", line)
    return value


def _read_jsonl(lines: TextLines, where: Mapping[str, object]) -> Iterator[_Found]:
    number = -1
    for line in lines:
        if not line.strip():
            continue
        number += 1
        item = _decode_object(lines, line)
        for key in where:
            if key not in item:
                raise lines.error(f"the line has no key {key!r} to choose questions by")
        if any(item[key] != value for key, value in where.items()):
            continue
        try:
            yield _Found(
                lines.number,
                str(msgspec.convert(item.get("id", number), str | int)),
                msgspec.convert(item.get("question"), str),
                msgspec.convert(item.get("answers", []), list[str]),
                [str(passage) for passage in msgspec.convert(item.get("positive_passage_ids", []), list[str | int])],
            )
        except msgspec.ValidationError as error:
            raise lines.error(f'expected {{"id": ..., "question": ..., "answers": [...]}}: {error}') from None


def _decode_object(lines: TextLines, line: str) -> dict[str, object]:
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except (msgspec.DecodeError, RecursionError) as error:
        raise lines.error(f'expected {{"id": ..., "question": ..., "answers": [...]}}: {error}') from None


def _decode_squad(file: Path, text: str) -> _Squad:
    data = text.encode()
    try:
        return msgspec.json.decode(data, type=_Squad)
    except (msgspec.DecodeError, RecursionError) as error:
        place = re.search(r"byte (\d+)", str(error))
        line = data.count(b"\n", 0, int(place[1])) + 1 if place else 1
        raise QuestionFileError(f"{file}:{line}: not in the format of SQuAD: {error}") from None


def _squad_questions(squad: _Squad) -> Iterator[_Found]:
    for article in squad.data:
        for paragraph in article.paragraphs:
            for item in paragraph.qas:
                if not item.is_impossible:
                    yield _Found(1, item.id, item.question, [answer.text for answer in item.answers])


def _count_impossible(squad: _Squad) -> int:
    return sum(item.is_impossible for article in squad.data for each in article.paragraphs for item in each.qas)
