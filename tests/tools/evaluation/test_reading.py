"""A reader judged: exact match, F1, and `narrows eval reader` from end to end."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.bundle import Bundle
from narrows.errors import QuestionFileError
from narrows.reader import Reader
from narrows.spans import RULES
from narrows_export import corpus
from narrows_tools.cli.main import main
from narrows_tools.evaluation.exact_match import exact_match, f1
from narrows_tools.evaluation.reading import cutoffs, read_rankings

TEXT = st.text(st.sampled_from("ab the. an,A "), max_size=12)
REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=100)


@pytest.mark.parametrize(
    ("answer", "right", "same", "shared"),
    [
        ("The Nile", ["nile"], True, 1.0),
        ("Nile river", ["the Nile"], False, 2 / 3),
        ("U.S.A.", ["USA"], True, 1.0),
        ("in 1912.", ["1912"], False, 2 / 3),
        ("Paris", ["London", "paris!"], True, 1.0),
        ("Paris", ["London"], False, 0.0),
        ("", ["London"], False, 0.0),
        ("", ["The", ""], False, 0.0),  # no answer is no right one
        ("the", ["a"], True, 0.0),  # nothing is left of either: equal, and no word in common
        ("one two two", ["two two three four"], False, 4 / 7),
        ("El año", ["el AÑO"], True, 1.0),
        ("theory an", ["theory"], True, 1.0),
        ("Jose\u0301 Marti\u0301", ["José Martí"], True, 1.0),
        ("서울", ["\u1109\u1165\u110b\u116e\u11af"], True, 1.0),
        ("José", ["Jose"], False, 0.0),  # an accent counts
    ],
)
def test_by_hand(answer: str, right: list[str], same: bool, shared: float) -> None:
    assert exact_match(answer, right) is same
    assert f1(answer, right) == pytest.approx(shared)


@given(answer=TEXT, right=st.lists(TEXT, max_size=3))
@REPRODUCIBLE
def test_f1_is_a_share_and_full_for_what_is_exact(answer: str, right: list[str]) -> None:
    score = f1(answer, right)
    assert 0.0 <= score <= 1.0
    assert f1(answer, right[::-1]) == score
    if score == 1.0 and len(right) == 1:
        assert sorted(answer.lower().replace(".", "").replace(",", "").split()) != []
    assert not right or exact_match(right[0], right) is (right[0] != "")


def test_cutoffs_end_with_what_is_read() -> None:
    assert cutoffs(50) == (1, 5, 10, 20, 50)
    assert cutoffs(7) == (1, 5, 7)
    assert cutoffs(1) == (1,)


# --- the command


@pytest.fixture(scope="module")
def rankings(tmp_path_factory: pytest.TempPathFactory, reading_bundle: Bundle) -> Path:
    """Three questions over twelve passages each. The right answer of the second is what the reader finds in five."""
    reader = Reader(reading_bundle, "fp32", threads=1)
    passages = [{"id": p.id, "title": p.title, "text": p.text, "score": "1.0"} for p in corpus.passages("en")]
    items: list[dict[str, Any]] = []
    for number, question in enumerate(corpus.questions("en")[:3]):
        ctxs = passages[12 * number : 12 * number + 12]
        items.append({"question": question.question, "answers": ["nothing like it"], "ctxs": ctxs})
    read = [(c["title"], c["text"]) for c in items[1]["ctxs"][:5]]
    items[1]["answers"].append(reader.read(items[1]["question"], read, RULES["dpr"], count=1)[0].text.upper())
    file = tmp_path_factory.mktemp("rankings") / "found.json"
    file.write_text(json.dumps(items), "utf-8")
    return file


def test_the_command_says_how_often_the_best_answer_is_right(
    reading_bundle: Bundle, rankings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.json"
    common = ["eval", "reader", "--bundle", str(reading_bundle.path), "--rankings", str(rankings), "--threads", "1"]
    assert main([*common, "--passages", "12", "--json", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["passages"] for row in found["scores"]] == [1, 5, 10, 12]
    by_passages = {row["passages"]: row for row in found["scores"]}
    assert by_passages[5]["exact_match"] == pytest.approx(1 / 3)
    assert by_passages[5]["f1"] >= 1 / 3
    assert (found["rule"], found["questions_in_file"]) == ("dpr", 3)
    assert found["reader_id"] == reading_bundle.tower("reader").tower_id

    written = json.loads(out.read_text("utf-8"))
    assert [item["found"][1]["exact_match"] for item in written] == [False, True, False]

    assert main([*common, "--rule", "hugging-face", "--limit", "2", "--passages", "3"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 questions, read by reading (rule hugging-face)")
    assert [line.split()[0] for line in shown.splitlines()[2:]] == ["passages", "1", "3"]


def test_no_row_is_of_more_passages_than_the_longest_ranking_has(
    reading_bundle: Bundle, rankings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = json.loads(rankings.read_text("utf-8"))
    for item in items[1:]:
        del item["ctxs"][7:]
    file, out = tmp_path / "uneven.json", tmp_path / "answers.json"
    file.write_text(json.dumps(items), "utf-8")
    command = ["eval", "reader", "--bundle", str(reading_bundle.path), "--rankings", str(file), "--threads", "1"]
    assert main([*command, "--json", "--out", str(out)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passages"] == 50
    assert [(row["passages"], row["questions"]) for row in found["scores"]] == [(1, 3), (5, 3), (10, 3), (12, 3)]
    written = json.loads(out.read_text("utf-8"))
    assert [[judged["passages"] for judged in item["found"]] for item in written] == [[1, 5, 10, 12]] * 3


def test_a_bundle_without_a_reader(small_bundle: Bundle, rankings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "reader", "--bundle", str(small_bundle.path), "--rankings", str(rankings)]) == 1
    assert "has no reader; export it with --reader" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not DPR's retriever results"),
        ("{}", "not DPR's retriever results"),
        ('[{"question": "q", "answers": ["a"], "ctxs": [{"title": "t"}]}]', r"missing required field `text`.*\[0\]"),
        ('[{"question": "q", "answers": [], "ctxs": [{"text": "t"}]}]', "item 1 has no answers"),
        ('[{"question": "q", "answers": ["a"], "ctxs": []}]', "item 1 has no ctxs"),
        ("[]", "holds no questions"),
    ],
)
def test_rankings_that_cannot_be_read(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "found.json"
    file.write_text(content, "utf-8")
    with pytest.raises(QuestionFileError, match=message) as raised:
        read_rankings(file)
    assert str(file) in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(QuestionFileError, match=r"none\.json: cannot be read: No such file"):
        read_rankings(tmp_path / "none.json")
