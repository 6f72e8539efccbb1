"""What a gate judges with: questions and passages, shown to share no text with what variants were calibrated on."""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import regex

from narrows import durable, passage_files
from narrows.errors import GateDataError, PassageFileError
from narrows.passages import Passage
from narrows.quality import DataFile
from narrows.text_lines import TextLines, kind
from narrows_tools.evaluation import questions as question_files
from narrows_tools.evaluation.questions import AnswerKind, Question

WORD = regex.compile(r"[\p{L}\p{N}\p{M}]+")
EXAMPLE_CHARS = 80


@dataclass(frozen=True, slots=True)
class GateRequest:
    """The files of a gate, and which of their questions to take.

    `where` keeps the questions whose JSON lines have these values; `limit` questions of those are drawn with `seed`,
    None takes all. `language` is only recorded.
    """

    questions: Path
    passages: Path
    calibration: tuple[Path, ...] = ()
    answer_kind: AnswerKind = "string"
    where: Mapping[str, object] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0
    language: str = ""


@dataclass(frozen=True, slots=True)
class GateData:
    """The texts of a gate, the files that they are from, and what a gate draws by chance."""

    questions: tuple[Question, ...]
    passages: tuple[Passage, ...]
    question_file: DataFile
    passage_file: DataFile
    calibration: tuple[DataFile, ...]
    where: tuple[str, ...]
    seed: int
    language: str


def read(request: GateRequest) -> GateData:
    """Reads the files of a gate.

    Raises:
        QuestionFileError, PassageFileError: a file breaks its format.
        GateDataError: a question or passage is also a calibration text, by the hash of its normalized text.
    """
    questions = question_files.read_set(request.questions, request.answer_kind, request.where).questions
    if request.limit is not None:
        questions = tuple(question_files.sample(questions, request.limit, request.seed))
    passages = [row.passage for row in passage_files.read(request.passages)]
    if not passages:
        raise PassageFileError(f"{request.passages}: it holds no passages")
    calibration = check_calibration(request.calibration, questions, passages)
    return GateData(
        questions=questions,
        passages=tuple(passages),
        question_file=_describe(request.questions, questions),
        passage_file=_describe(request.passages, passages),
        calibration=calibration,
        where=tuple(f"{key}={json.dumps(value)}" for key, value in request.where.items()),
        seed=request.seed,
        language=request.language,
    )


def check_calibration(
    files: Iterable[Path], questions: Sequence[Question], passages: Sequence[Passage]
) -> tuple[DataFile, ...]:
    """Describes files of calibration texts, none of which may be among these questions and passages.

    Raises:
        GateDataError: one is, by the hash of its normalized text.
    """
    described = []
    for file in files:
        texts = calibration_texts(file)
        calibrated = {text_key(text) for text in texts}
        _check_disjoint(file, calibrated, "questions", [question.text for question in questions])
        _check_disjoint(file, calibrated, "passages", [passage.text for passage in passages])
        described.append(_describe(file, texts))
    return tuple(described)


def calibration_texts(file: Path) -> list[str]:
    """The texts of a file of questions or of passages; which of the two, its first line says."""
    if holds_passages(file):
        return [row.passage.text for row in passage_files.read(file)]
    return [question.text for question in question_files.read(file)]


def text_key(text: str) -> str:
    """A hash of a text's words, whatever their case, spacing, punctuation and Unicode form."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return hashlib.sha256(" ".join(words or [text.strip()]).encode("utf-8", "surrogatepass")).hexdigest()


def _check_disjoint(file: Path, calibrated: set[str], what: str, texts: Iterable[str]) -> None:
    shared = [text for text in texts if text_key(text) in calibrated]
    if shared:
        raise GateDataError(
            f"{len(shared)} of the gate's {what} are also in the calibration data {file}, such as "
            f"{shared[0][:EXAMPLE_CHARS]!r}: a variant would be judged by what it was fitted to; take them out of one"
        )


def holds_passages(file: Path) -> bool:
    """Whether a file is one of passages, by its first line; else it is one of questions."""
    with TextLines(file, GateDataError) as lines:
        first = next((line for line in lines if line.strip()), "")
    if kind(file) == ".jsonl":
        try:
            return "question" not in msgspec.json.decode(first, type=dict[str, object])
        except (msgspec.DecodeError, RecursionError) as error:
            raise lines.error(f"expected a JSON object with a question or a passage: {error}") from None
    return kind(file) == ".tsv" and first.rstrip("\r\n").split("\t") == passage_files.TSV_HEADER


def _describe(file: Path, texts: Sequence[object]) -> DataFile:
    return DataFile(file.name, durable.sha256_file(file), len(texts))
