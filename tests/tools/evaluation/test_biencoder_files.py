"""Biencoder files: what is read, and that every broken file is refused with its line or entry."""

import gzip
import json
from pathlib import Path

import pytest

from narrows.errors import QuestionFileError
from narrows_tools.evaluation.biencoder_files import BiencoderQuestion, BiencoderSet, read

GOOD = {"question": "who wrote carmen", "positive_ctxs": [{"title": "Carmen", "text": "By Bizet."}]}


def passages(*names: str) -> list[dict[str, str]]:
    return [{"title": name.upper(), "text": name} for name in names]


def pairs(*names: str) -> tuple[tuple[str, str], ...]:
    return tuple((name.upper(), name) for name in names)


@pytest.mark.parametrize("name", ["dev.json", "dev.json.gz"])
def test_dprs_layout(tmp_path: Path, name: str) -> None:
    """With keys that are not read, as DPR's own files have them, and indented, too."""
    entry = {
        "dataset": "nq_dev_psgs_w100",
        "question": "who?",
        "answers": ["a"],
        "positive_ctxs": [{**passages("gold")[0], "score": 1000, "title_score": 1, "passage_id": "7"}, *passages("2")],
        "negative_ctxs": passages("n1", "n2", "n3"),
        "hard_negative_ctxs": passages("h1", "h2", "h3"),
    }
    without = {**entry, "positive_ctxs": []}
    data = json.dumps([entry, without, GOOD], indent=4).encode()
    file = tmp_path / name
    file.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert read(file, hard_negatives=2, other_negatives=1) == BiencoderSet(
        (
            BiencoderQuestion("who?", ("GOLD", "gold"), pairs("h1", "h2"), pairs("n1")),
            BiencoderQuestion("who wrote carmen", ("Carmen", "By Bizet."), (), ()),
        ),
        without_positive_count=1,
    )


def test_a_title_and_negatives_may_be_null(tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    entry = {"question": "q", "positive_ctxs": [{"title": None, "text": "t"}], "negative_ctxs": None}
    file.write_text(json.dumps([entry]))
    assert read(file, 1, 1).questions == (BiencoderQuestion("q", ("", "t"), (), ()),)


def test_no_more_is_kept_than_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "dev.json"
    file.write_text(json.dumps([{**GOOD, "negative_ctxs": passages("n"), "hard_negative_ctxs": passages("h")}]))
    assert read(file, 0, 0).questions[0].hard_negatives == read(file, 0, 0).questions[0].other_negatives == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", ":1: expected a JSON array of questions: "),
        ('[{"question": "q",\n "positive_ctxs": [}]', ":2: expected a JSON array of questions: "),
        ('{"data": []}', ":1: expected a JSON array of questions: Expected `array`, got `object`"),
        ("[]", ": none of its 0 entries has a positive passage"),
        (json.dumps([{**GOOD, "positive_ctxs": []}] * 2), ": none of its 2 entries has a positive passage"),
        (json.dumps([GOOD, "q"]), ": entry 2: expected "),
        (json.dumps([GOOD, {"positive_ctxs": []}]), ": entry 2: expected .*missing required field `question`"),
        (json.dumps([{"question": "q"}]), ": entry 1: expected .*missing required field `positive_ctxs`"),
        (json.dumps([GOOD, GOOD, {**GOOD, "question": 3}]), r": entry 3: expected .*got `int` - at `\$.question`"),
        (json.dumps([{**GOOD, "question": " "}]), ": entry 1: the question is empty"),
        (
            json.dumps([GOOD, {**GOOD, "negative_ctxs": [{"title": "t"}]}]),
            r": entry 2: .*missing required field `text` - at `\$.negative_ctxs\[0\]`",
        ),
        (
            json.dumps([{**GOOD, "hard_negative_ctxs": [*passages("h"), {"title": "t", "text": ""}]}]),
            r": entry 1: the text of hard_negative_ctxs\[1\] is empty",
        ),
        (json.dumps([{**GOOD, "hard_negative_ctxs": {}}]), ": entry 1: expected .*Expected `array"),
        ("[" * 100_000, ":1: expected a JSON array"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "dev.json"
    file.write_text(content)
    with pytest.raises(QuestionFileError, match=f"^{file}{message}"):
        read(file, 30, 30)


def test_damaged_gzip_invalid_utf8_and_other_names_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "dev.json.gz"
    file.write_bytes(gzip.compress(json.dumps([GOOD]).encode())[:-9])
    with pytest.raises(QuestionFileError, match=f"{file}:.*damaged or cut off"):
        read(file, 1, 1)
    file.write_bytes(b"[]")
    with pytest.raises(QuestionFileError, match=f"{file}:1: cannot be read: Not a gzipped file"):
        read(file, 1, 1)
    file = tmp_path / "dev.json"
    file.write_bytes(b'[\n{"question": "\xff"}]')
    with pytest.raises(QuestionFileError, match=f"{file}:2: invalid UTF-8"):
        read(file, 1, 1)
    with pytest.raises(QuestionFileError, match=r"none.json:1: cannot be read: No such file"):
        read(tmp_path / "none.json", 1, 1)
    with pytest.raises(QuestionFileError, match=r"expected DPR's biencoder file, a name ending in \.json"):
        read(tmp_path / "dev.jsonl", 1, 1)
