"""`narrows bench simulate`: costs measured from a real bundle and index, saved, and simulated with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from narrows.bundle import Bundle
from narrows.costs import Bucket, CostTable
from narrows_tools.bench import batch_costs, results
from narrows_tools.bench.simulation import open_loop, simulate
from narrows_tools.cli import main

COSTS = Path(__file__).parents[2] / "data" / "minilm_costs.json"
SHORT = ("--questions", "200", "--rounds", "2")


def test_a_bundle_and_its_index_are_measured_saved_and_simulated(
    small_bundle: Bundle, small_index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = tmp_path / "costs.json"
    arguments = ["--bundle", str(small_bundle.path), "--index", str(small_index), "--threads", "1", "--passes", "1"]
    assert main.main(["bench", "simulate", *arguments, *SHORT, "--save-costs", str(costs), "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    saved = batch_costs.load(costs)
    assert (saved.bundle, saved.variant, saved.threads) == ("small", "fp32", 1)
    assert saved.search is not None
    assert [bucket.tokens for bucket in saved.actual.buckets][-1] == 256
    assert len(saved.noise) == len(batch_costs.grid(256))
    # The same costs give the same answers.
    assert main.main(["bench", "simulate", "--costs", str(costs), *SHORT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first["rows"]


def test_rates_and_traffic_are_what_was_asked_for_and_rounds_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "simulation.json"
    arguments = [
        "--costs",
        str(COSTS),
        "--traffic",
        "mixed",
        "mixed",
        "--rates",
        "20",
        "40",
        "20",
        "--out",
        str(out),
        *SHORT,
    ]
    assert main.main(["bench", "simulate", *arguments]) == 0
    assert "mixed    20" in capsys.readouterr().out
    rows = results.load(out).rows
    assert [(row.scenario, row.traffic, row.load, row.round) for row in rows] == [
        ("ceiling", "mixed", 0.0, 1),
        ("offline", "mixed", 0.0, 1),
        ("closed", "mixed", 0.0, 1),
        *(("open", "mixed", load, number) for load in (20.0, 40.0) for number in (1, 2)),
    ]
    p99s = [row.metrics["p99_ms"] for row in rows if row.scenario == "open"]
    assert len(set(p99s)) == 4
    assert sum(p99s[:2]) < sum(p99s[2:])
    batches = {int(size): count for size, count in rows[3].histograms["batch_size"].items()}
    assert sum(size * count for size, count in batches.items()) == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --costs or --bundle"),
        (["--costs", str(COSTS), "--bundle", "x"], "give either --costs or --bundle"),
        (["--costs", str(COSTS), "--index", "x"], "--index, --variant, --threads and --save-costs go with --bundle"),
        (["--costs", str(COSTS), "--variant", "int8"], "were measured with their own"),
        (["--costs", "missing.json"], "missing.json cannot be read"),
        (["--costs", str(COSTS), "--out", "missing/x.json"], "missing/x.json cannot be written"),
    ],
)
def test_what_cannot_be_simulated_is_said_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["bench", "simulate", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("threads", "overlap"), [(1, False), (2, True)])
def test_on_one_core_the_search_takes_turns_with_the_encoder(threads: int, overlap: bool) -> None:
    """As in a server: application.py gives an index a thread of its own only where there is a second core."""
    costs = replace(batch_costs.load(COSTS), threads=threads, search=CostTable((Bucket(1, (1,), (5.0,)),)))
    ran = simulate(open_loop([0.0] * 40, [10] * 40, k=10), costs.server()).batches
    ran_ms = sum(batch.took_ms for batch in ran)
    end_ms = 1e3 * max(batch.began_s for batch in ran) + ran[-1].took_ms
    assert (ran_ms > end_ms * 1.01) == overlap


def test_costs_of_another_schema_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "costs.json"
    file.write_text(COSTS.read_text("utf-8").replace('"schema_version": 1', '"schema_version": 99'), "utf-8")
    assert main.main(["bench", "simulate", "--costs", str(file)]) == 1
    assert "schema version 99" in capsys.readouterr().err


@pytest.mark.parametrize(("rate", "message"), [("x", "'x' is not a number"), ("0", "above 0"), ("nan", "above 0")])
def test_a_rate_that_is_none_is_bad_usage(rate: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main.main(["bench", "simulate", "--costs", str(COSTS), "--rates", rate])
    assert message in capsys.readouterr().err
