"""Question files: what is read, and that every broken file is refused with its file and line."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from narrows.errors import QuestionFileError
from narrows_export import corpus
from narrows_tools.evaluation.questions import Question, read, read_set, sample

Write = Callable[[str, str | bytes], Path]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
REPRODUCIBLE = settings(
    derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=["plain", "gz"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    def written(name: str, content: str | bytes) -> Path:
        data = content.encode() if isinstance(content, str) else content
        file = tmp_path / (name if request.param == "plain" else f"{name}.gz")
        file.write_bytes(data if request.param == "plain" else gzip.compress(data))
        return file

    return written


def refusal(file: Path, **how: object) -> str:
    """What is said about a file that is refused, after the file's name."""
    with pytest.raises(QuestionFileError) as caught:
        read_set(file, **how)  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{file}:")
    return message.removeprefix(f"{file}:").strip()


# --- DPR's csv


@pytest.mark.parametrize("name", ["nq-test.qa.csv", "NQ.TSV"])
def test_csv(write: Write, name: str) -> None:
    content = (
        "who wrote carmen\t['Georges Bizet', \"Bizet's\"]\n"
        '"""Deliver us from evil"" is from?"\t"[""the Lord\'s Prayer""]"\r\n'
        "\n"
        "which number\t['\\\\d+\\s']\n"
    )
    assert read(write(name, content), "regex") == [
        Question("0", "who wrote carmen", ("Georges Bizet", "Bizet's"), (), "regex"),
        Question("1", '"Deliver us from evil" is from?', ("the Lord's Prayer",), (), "regex"),
        Question("2", "which number", ("\\d+\\s",), (), "regex"),
    ]


@REPRODUCIBLE
@given(question=TEXTS.filter(str.strip), answers=st.lists(TEXTS, min_size=1, max_size=3))
def test_csv_reads_what_pythons_csv_and_repr_write(
    write: Write, tmp_path: Path, question: str, answers: list[str]
) -> None:
    assume(
        not question.startswith("\ufeff") and not {"\r", "\0"} & set(question)
    )  # csv.reader does not give these back
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter="\t", quoting=csv.QUOTE_ALL).writerow([question, repr(answers)])
    assert read(write("a.csv", stream.getvalue())) == [Question("0", question, tuple(dict.fromkeys(answers)))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\t['b']\nc\n", "2: expected 2 tab-separated fields (question, answers), found 1"),
        ("a\t['b']\tc\n", "1: expected 2 tab-separated fields (question, answers), found 3"),
        ("a\tb\n", "1: expected a Python list of answers, such as ['Paris'], but found 'b'"),
        ("a\t['b'\n", "1: expected a Python list of answers"),
        ("a\t__import__('os')\n", "1: expected a Python list of answers"),
        ("a\t'b'\n", "1: expected a Python list of strings, but found"),
        ("a\t['b', 1]\n", "1: expected a Python list of strings"),
        ("a\t[]\n", "1: question '0' has neither answers nor positive passages"),
        ("a\t['b']\n\n \t['b']\n", "3: question '1' is empty"),
        ("a\t['b']\n\"c\t['d']\n", "2: malformed row"),
        ("", "it holds no questions"),
    ],
)
def test_csv_refusals(write: Write, content: str, message: str) -> None:
    assert refusal(write("a.qa.csv", content)).startswith(message)


# --- JSON lines


def test_jsonl(write: Write) -> None:
    content = (
        '\ufeff{"id": "q", "question": "who?", "answers": ["a", "b", "a"], "positive_passage_ids": ["1", 2], "x": 1}\n'
        "\n"
        '{"id": 7, "question": "what?", "answers": ["c"]}\n'
        '{"question": "where?", "positive_passage_ids": ["3"]}\n'
    )
    assert read(write("a.jsonl", content)) == [
        Question("q", "who?", ("a", "b"), ("1", "2")),
        Question("7", "what?", ("c",)),
        Question("2", "where?", (), ("3",)),
    ]


def test_the_demo_questions_are_read_in_full() -> None:
    for language, count in (("en", 130), ("es", 70)):
        questions = read(corpus.DIRECTORY / f"questions.{language}.jsonl")
        assert len(questions) == count
        assert [(q.id, q.text, q.answers, q.positive_ids) for q in questions] == [
            (q.id, q.question, q.answers, q.positive_passage_ids) for q in corpus.questions(language)
        ]


GOOD = '{"id": "1", "question": "who?", "answers": ["a"]}\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "2: expected {"),
        ("[]", "2: expected {"),
        ('{"id": "2", "answers": ["a"]}', "2: expected {"),
        ('{"id": "2", "question": "who?", "answers": "a"}', "2: expected {"),
        ('{"id": "2", "question": "who?", "answers": [1]}', "2: expected {"),
        ('{"id": 1.5, "question": "who?", "answers": ["a"]}', "2: expected {"),
        ('{"id": "1", "question": "who?", "answers": ["a"]}', "2: the id '1' was used on line 1 already"),
        ('{"id": "", "question": "who?", "answers": ["a"]}', "2: the id is empty"),
        ('{"id": "2", "question": " ", "answers": ["a"]}', "2: question '2' is empty"),
        ('{"id": "2", "question": "who?", "answers": []}', "2: question '2' has neither answers nor positive passages"),
        ("[" * 100_000, "2: expected {"),
    ],
)
def test_jsonl_refusals(write: Write, line: str, message: str) -> None:
    assert refusal(write("a.jsonl", GOOD + line + "\n")).startswith(message)


def test_where_chooses_by_any_key(write: Write) -> None:
    lines = [
        {"id": "1", "question": "a", "answers": ["x"], "seen": False, "part": "dev"},
        {"id": "2", "question": "b", "answers": ["x"], "seen": True, "part": "dev"},
        {"id": "3", "question": "c", "answers": ["x"], "seen": False, "part": "test"},
    ]
    file = write("a.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    assert [q.id for q in read_set(file, where={"seen": False}).questions] == ["1", "3"]
    assert [q.id for q in read_set(file, where={"seen": False, "part": "dev"}).questions] == ["1"]
    assert refusal(file, where={"part": "train"}) == "it holds no questions with {'part': 'train'}"
    assert refusal(file, where={"sene": False}) == "1: the line has no key 'sene' to choose questions by"
    assert "only .jsonl files" in refusal(write("a.csv", "a\t['b']\n"), where={"seen": False})


# --- SQuAD


def squad(*questions: dict[str, object]) -> str:
    return json.dumps({"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "C", "qas": questions}]}]})


def test_squad_leaves_impossible_questions_out_and_counts_them(write: Write) -> None:
    answers = [{"text": "a", "answer_start": 0}, {"text": "a", "answer_start": 0}, {"text": "b", "answer_start": 3}]
    content = squad(
        {"id": "1", "question": "who?", "answers": answers},
        {"id": "2", "question": "why?", "answers": [], "is_impossible": True, "plausible_answers": []},
        {"id": "3", "question": "how?", "answers": answers[2:], "is_impossible": False},
    )
    found = read_set(write("dev-v2.0.json", content))
    assert found.questions == (Question("1", "who?", ("a", "b")), Question("3", "how?", ("b",)))
    assert found.impossible_count == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"data":\n[\n}', "3: not in the format of SQuAD: JSON is malformed"),
        ('{"data": [{"paragraphs": [{"qas": [{"id": 1}]}]}]}', "1: not in the format of SQuAD: Expected `str`"),
        (squad({"id": "1", "question": "who?", "answers": []}), "1: question '1' has neither answers"),
        (squad({"id": "1", "question": "?", "answers": [], "is_impossible": True}), "it holds no questions"),
    ],
)
def test_squad_refusals(write: Write, content: str, message: str) -> None:
    assert refusal(write("a.json", content)).startswith(message)


# --- any file


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_invalid_utf8_is_refused(write: Write, name: str) -> None:
    assert refusal(write(name, b"\n\xff\n")).startswith("2: invalid UTF-8 at byte 1")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.jsonl").startswith("1: cannot be read: No such file")
    (tmp_path / "a.txt").write_text("a")
    assert "expected a name ending in" in refusal(tmp_path / "a.txt")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"a\t['b']\n" * 10_000)[:-20])
    assert "gzip data is damaged or cut off" in refusal(tmp_path / "cut.csv.gz")


def test_a_sample_is_numpys_choice() -> None:
    questions = [Question(str(number), "?", ("a",)) for number in range(50)]
    drawn = [int(question.id) for question in sample(questions, 20, seed=3)]
    assert drawn == np.random.default_rng(3).choice(50, 20, replace=False).tolist()
    assert sample(questions, 50, seed=3) == questions
    assert sample(questions, 51, seed=3) == questions


@pytest.mark.parametrize(("name", "content"), [("q.csv", "who?\t['a']\nodd\n"), ("q.jsonl", "{}\n{}\n")])
def test_a_broken_file_is_closed_while_its_error_is_still_being_handled(write: Write, name: str, content: str) -> None:
    file = write(name, content)
    with pytest.raises(QuestionFileError) as caught:
        read(file)
    assert caught.tb is not None  # whose frames hold the reader
    assert str(file) not in {opened.path for opened in psutil.Process().open_files()}
