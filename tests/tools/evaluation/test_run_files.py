"""Rankings in the formats of others, read back as those others read them."""

import json
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval

from narrows.client import Hit
from narrows_tools.evaluation.questions import Question
from narrows_tools.evaluation.run_files import dpr_file, pyserini_file, trec_file, trec_id

SCORE = float(np.float32(81.37305))  # as a client has it: a float32 in a Python float
QUESTIONS = [Question("q 1", "¿quién?", ("Ana", "José"), ("p%2",)), Question("2", "what?", ())]
RANKINGS = [(Hit("p%2", "Tit\nle", "José\nsaid", SCORE), Hit("p\u2028 3", "", "no", -1.5)), ()]
HAS_ANSWER = [[True, False], []]


def write(writer: object, path: Path) -> str:
    with writer(path) as file:  # type: ignore[operator]
        assert not path.exists()
        for question, ranking, has_answer in zip(QUESTIONS, RANKINGS, HAS_ANSWER, strict=True):
            file.write(question, ranking, has_answer)
    return path.read_text("utf-8")


def test_dpr(tmp_path: Path) -> None:
    assert json.loads(write(dpr_file, tmp_path / "dpr.json")) == [
        {
            "question": "¿quién?",
            "answers": ["Ana", "José"],
            "ctxs": [
                {"id": "p%2", "title": "Tit\nle", "text": "José\nsaid", "score": "81.37305", "has_answer": True},
                {"id": "p\u2028 3", "title": "", "text": "no", "score": "-1.5", "has_answer": False},
            ],
        },
        {"question": "what?", "answers": [], "ctxs": []},
    ]


def test_trec(tmp_path: Path) -> None:
    text = write(trec_file, tmp_path / "run.trec")
    assert text == "q%201 Q0 p%252 1 81.37305 narrows\nq%201 Q0 p%E2%80%A8%203 2 -1.5 narrows\n"
    assert pytrec_eval.parse_run(text.splitlines()) == {"q%201": {"p%252": 81.37305, "p%E2%80%A8%203": -1.5}}


@pytest.mark.parametrize(
    ("identifier", "written"), [("a:1", "a:1"), ("a b", "a%20b"), ("a%20b", "a%2520b"), ("\t", "%09")]
)
def test_ids_in_trec_runs_have_no_blanks_and_stay_distinct(identifier: str, written: str) -> None:
    assert trec_id(identifier) == written


def test_pyserini(tmp_path: Path) -> None:
    found = json.loads(write(pyserini_file, tmp_path / "pyserini.json"))
    assert list(found) == ["q 1", "2"]
    assert found["q 1"]["question"] == "¿quién?"
    assert found["q 1"]["answers"] == ["Ana", "José"]
    contexts = found["q 1"]["contexts"]
    assert [context["text"].split("\n")[1] for context in contexts] == ["José said", "no"]  # as Pyserini takes it
    assert [(c["docid"], c["score"], c["has_answer"]) for c in contexts] == [
        ("p%2", "81.37305", True),
        ("p\u2028 3", "-1.5", False),
    ]
    assert found["2"] == {"question": "what?", "answers": [], "contexts": []}


@pytest.mark.parametrize("writer", [dpr_file, trec_file, pyserini_file])
def test_a_file_without_questions_is_well_formed(writer: object, tmp_path: Path) -> None:
    with writer(tmp_path / "empty"):  # type: ignore[operator]
        pass
    text = (tmp_path / "empty").read_text("utf-8")
    assert not text or not json.loads(text)


@pytest.mark.parametrize("writer", [dpr_file, trec_file, pyserini_file])
def test_a_failed_run_leaves_the_old_file_and_nothing_else(writer: object, tmp_path: Path) -> None:
    file = tmp_path / "run"
    file.write_text("old")
    with pytest.raises(AttributeError), writer(file) as run:  # type: ignore[operator]
        run.write(QUESTIONS[0], (RANKINGS[0][0], None), HAS_ANSWER[0])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert file.read_text() == "old"
