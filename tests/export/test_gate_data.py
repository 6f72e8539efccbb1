"""What a gate may judge with: disjoint from calibration, drawn by a seed, described by hashes."""

import json
from pathlib import Path

import pytest

from narrows import durable
from narrows.errors import GateDataError, NarrowsError, PassageFileError, QuestionFileError
from narrows.quality import DataFile
from narrows_export.gate_data import GateRequest, calibration_texts, read, text_key

QUESTIONS = [
    {"id": str(number), "question": f"Who crossed river {number}?", "answers": ["Ada"]} for number in range(20)
]
PASSAGES = [{"id": f"p{number}", "title": "Rivers", "text": f"River {number} is wide."} for number in range(30)]


def write(file: Path, rows: list[dict[str, object]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


@pytest.fixture
def request_(tmp_path: Path) -> GateRequest:
    return GateRequest(write(tmp_path / "q.jsonl", QUESTIONS), write(tmp_path / "p.jsonl", PASSAGES), language="en")


def calibrated(request: GateRequest, *files: Path) -> GateRequest:
    return GateRequest(request.questions, request.passages, calibration=files)


def test_everything_is_read_and_described(request_: GateRequest, tmp_path: Path):
    other = write(tmp_path / "c.jsonl", [{"id": "1", "title": "", "text": "Something else."}])
    data = read(calibrated(request_, other))
    assert [question.text for question in data.questions] == [row["question"] for row in QUESTIONS]
    assert [passage.id for passage in data.passages] == [row["id"] for row in PASSAGES]
    assert data.question_file == DataFile("q.jsonl", durable.sha256_file(request_.questions), 20)
    assert data.passage_file == DataFile("p.jsonl", durable.sha256_file(request_.passages), 30)
    assert data.calibration == (DataFile("c.jsonl", durable.sha256_file(other), 1),)
    assert read(request_).language == "en"


def test_the_limit_draws_by_the_seed(request_: GateRequest):
    def drawn(limit: int | None, seed: int) -> list[str]:
        data = read(GateRequest(request_.questions, request_.passages, limit=limit, seed=seed))
        assert data.question_file.texts == len(data.questions)
        return [question.id for question in data.questions]

    assert len(drawn(5, 0)) == len(set(drawn(5, 0))) == 5
    assert drawn(5, 0) == drawn(5, 0) != drawn(5, 1)
    assert len(drawn(None, 0)) == len(drawn(20, 0)) == len(drawn(999, 0)) == 20


def test_questions_are_chosen_by_what_their_lines_say(request_: GateRequest, tmp_path: Path):
    rows = [{**row, "seen": number % 2 == 0, "part": "dev"} for number, row in enumerate(QUESTIONS)]
    file = write(tmp_path / "marked.jsonl", rows)
    data = read(GateRequest(file, request_.passages, where={"seen": False, "part": "dev"}))
    assert [question.id for question in data.questions] == [str(number) for number in range(1, 20, 2)]
    assert data.where == ("seen=false", 'part="dev"')
    assert data.question_file.texts == 10


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "x", "question": "who crossed  RIVER 3", "answers": ["a"]}, "1 of the gate's questions"),
        ({"id": "x", "title": "Other", "text": "River 7 is wide"}, "1 of the gate's passages"),
        ({"id": "x", "title": "", "text": "Who crossed river 19?"}, "1 of the gate's questions"),
    ],
)
def test_texts_that_were_calibrated_on_are_refused(
    request_: GateRequest, tmp_path: Path, row: dict[str, object], said: str
):
    other = {"id": "y", **{key: f"{value} Not." for key, value in row.items() if key in ("question", "text")}}
    file = write(tmp_path / "calibration.jsonl", [{**other, "answers": ["b"]}, row])
    with pytest.raises(GateDataError) as refused:
        read(calibrated(request_, write(tmp_path / "fine.jsonl", [{"id": "z", "text": "Else."}]), file))
    assert str(refused.value).startswith(f"{said} are also in the calibration data {file}, such as ")


def test_all_shared_texts_are_counted_and_an_example_is_named(request_: GateRequest):
    with pytest.raises(GateDataError, match=r"^20 of the gate's questions .* such as 'Who crossed river 0\?': "):
        read(calibrated(request_, request_.questions))
    with pytest.raises(GateDataError, match=r"^30 of the gate's passages .* such as 'River 0 is wide.': "):
        read(calibrated(request_, request_.passages))


def test_only_drawn_questions_must_be_disjoint(request_: GateRequest, tmp_path: Path):
    few = GateRequest(request_.questions, request_.passages, limit=5)
    drawn = {question.id for question in read(few).questions}
    rest = write(tmp_path / "rest.jsonl", [row for row in QUESTIONS if row["id"] not in drawn])
    assert read(GateRequest(few.questions, few.passages, (rest,), limit=5)).calibration[0].texts == 15


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Who wrote it?", " who  WROTE it"),
        ("caf\u00e9", "cafe\u0301"),
        ("\uff12\uff10\uff12\uff11 years", "2021 years"),
        ("Stra\u00dfe", "STRASSE"),
        ("a-b, c", "A b c"),
        ("who wrote _Emma_?", "Who wrote Emma"),
    ],
)
def test_what_differs_only_in_form_is_the_same_text(one: str, other: str):
    assert text_key(one) == text_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("a b", "ab"), ("who?", "whom?"), ("?", "!"), ("", "?"), ("a b", "b a"), ("\u0915\u093f", "\u0915\u093e")],
)
def test_what_differs_in_words_is_another_text(one: str, other: str):
    assert text_key(one) != text_key(other)


def test_kinds_of_calibration_files(tmp_path: Path):
    (tmp_path / "p.tsv").write_text("id\ttext\ttitle\n1\tA river.\tRivers\n", "utf-8")
    (tmp_path / "q.tsv").write_text("who?\t['Ada']\nwhere?\t['here']\n", "utf-8")
    assert calibration_texts(tmp_path / "p.tsv") == ["A river."]
    assert calibration_texts(tmp_path / "q.tsv") == ["who?", "where?"]
    assert calibration_texts(write(tmp_path / "p.jsonl", PASSAGES[:1])) == ["River 0 is wide."]
    assert calibration_texts(write(tmp_path / "q.jsonl", QUESTIONS[:1])) == ["Who crossed river 0?"]


@pytest.mark.parametrize("text", ["", "[1]\n", "no json\n", '{"question": 7}\n', '{"neither": "x"}\n'])
def test_calibration_files_that_are_neither(tmp_path: Path, text: str):
    file = tmp_path / "c.jsonl"
    file.write_text(text, "utf-8")
    with pytest.raises(NarrowsError, match=str(file)):
        calibration_texts(file)


def test_files_that_are_missing_or_empty(request_: GateRequest, tmp_path: Path):
    with pytest.raises(QuestionFileError):
        read(GateRequest(tmp_path / "none.jsonl", request_.passages))
    with pytest.raises(PassageFileError):
        read(GateRequest(request_.questions, tmp_path / "none.jsonl"))
    with pytest.raises(PassageFileError, match="it holds no passages"):
        read(GateRequest(request_.questions, write(tmp_path / "empty.jsonl", [])))
    with pytest.raises(GateDataError, match=r"none\.jsonl"):
        read(calibrated(request_, tmp_path / "none.jsonl"))
