"""Files of results; the promises that a result is held to; its table."""

from dataclasses import replace
from pathlib import Path

import pytest

from narrows.errors import BenchmarkError
from narrows_tools.bench import results
from narrows_tools.bench.checks import checks, failures
from narrows_tools.bench.results import Result, Row
from narrows_tools.bench.tables import checks_table, result_table

CALIBRATION = {"single_ms": 4.0, "deadline_ms": 100.0, "saturation_per_s": {"short": 300.0, "mixed": 40.0}}


def row(
    scenario: results.Scenario, traffic: str = "short", load: float = 0.0, number: int = 1, **metrics: float
) -> Row:
    return Row("narrows", scenario, traffic, load, number, metrics)


ROWS = (
    row("start", "", rss_bytes=240e6, ready_ms=2500, model_bytes=90e6, vectors_bytes=25e6),
    row("single", p50_ms=4.0, p99_ms=6.0),
    row("ceiling", throughput_per_s=400),
    row("closed", throughput_per_s=340, rss_bytes=300e6, padding_share=0.2),
    row("open", load=30, p50_ms=4.9, p99_ms=7.1, throughput_per_s=30),
    row("open", load=210, p50_ms=9.0, p99_ms=40.0, throughput_per_s=210, generator_late=1),
    row("closed", "mixed", throughput_per_s=40, padding_share=0.04),
)
RESULT = Result("narrows", "2026-01-01T00:00:00+00:00", {"cores": 2}, {"calibration": CALIBRATION}, ROWS)


def test_a_result_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    result = replace(RESULT, rows=(*ROWS, replace(ROWS[1], histograms={"batch_size": {"1": 3, "8": 40}})))
    results.save(tmp_path / "result.json", result)
    assert results.load(tmp_path / "result.json") == result


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": 99}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(content)
    with pytest.raises(BenchmarkError, match=r"result\.json"):
        results.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"none\.json cannot be read"):
        results.load(tmp_path / "none.json")


def test_each_promise_is_held_against_its_bound() -> None:
    found = {check.name: check for check in checks(RESULT)}
    assert [(round(check.value, 2), check.kept) for check in found.values()] == [
        (286.1, True),  # RSS, by the most that was seen
        (2500, True),
        (0.85, True),  # of the ceiling
        (4.9, True),
        (7.1, False),  # p99 at 10 %: 6.0 alone, but the bound is on the median alone
        (0.04, True),
    ]


def test_a_large_tower_has_a_higher_bound_at_saturation() -> None:
    start = row("start", "", rss_bytes=240e6, ready_ms=2500, model_bytes=900e6, vectors_bytes=25e6)
    found = {check.name: check for check in checks(replace(RESULT, rows=(start, *ROWS[1:])))}
    assert not found["throughput at saturation, of the ceiling"].kept
    assert not any(name.startswith("start to ready") for name in found)  # that is promised of MiniLM


def test_an_index_larger_than_the_promises_is_not_held_to_its_start() -> None:
    start = replace(ROWS[0], metrics={**ROWS[0].metrics, "passage_count": 16176.0})
    assert any(check.name.startswith("start to ready") for check in checks(replace(RESULT, rows=(start,))))
    start = replace(ROWS[0], metrics={**ROWS[0].metrics, "passage_count": 5e6})
    assert not any(check.name.startswith("start to ready") for check in checks(replace(RESULT, rows=(start,))))


def test_rounds_are_compared_each_with_itself() -> None:
    """The machine was twice as slow in the second round, for the server and the ceiling alike."""
    slow = (row("ceiling", number=2, throughput_per_s=200), row("closed", number=2, throughput_per_s=170))
    found = {check.name: check for check in checks(replace(RESULT, rows=(*ROWS, *slow)))}
    assert found["throughput at saturation, of the ceiling"].value == pytest.approx(0.85)


def test_a_result_of_little_says_little() -> None:
    assert checks(replace(RESULT, rows=())) == []
    unanswered = (row("single", p50_ms=4.0), row("open", load=30, throughput_per_s=0))
    assert checks(replace(RESULT, rows=unanswered)) == []
    assert result_table(replace(RESULT, rows=())) == "system  scenario  traffic  load/s"


def test_loads_with_failures_are_named() -> None:
    rows = (
        *ROWS,
        row("open", load=210, number=2, request_count=400, failed_share=0.0025, refused_share=0.5),
        row("mixed_lanes", load=90, request_count=50, failed_share=0.0, passages_failed_count=16),
    )
    assert failures(RESULT) == []
    assert failures(replace(RESULT, rows=rows)) == [
        "open short at 210/s, round 2: 1 of 400 requests",
        "mixed_lanes short at 90/s, round 1: 16 passages in the background",
    ]


def test_the_table_has_medians_and_marks_a_late_generator() -> None:
    more = tuple(row("closed", number=n, throughput_per_s=per_s) for n, per_s in ((2, 320), (3, 380)))
    lines = result_table(replace(RESULT, rows=(*ROWS, *more))).splitlines()
    assert ["closed", "short", "340.0", "(320.0-380.0)"] in [line.split()[1:5] for line in lines]
    assert [line.split()[1] for line in lines if "open" in line] == ["open", "open*"]
    assert "generator itself was late" in lines[-1]


def test_the_table_of_promises_says_which_are_missed() -> None:
    lines = checks_table(checks(RESULT)).splitlines()
    assert [line.split()[-1] for line in lines[1:]].count("MISSED") == 1
    assert ">= 0.800" in lines[3]
