"""Comparing results whose true difference is known, because they are made of it and of noise."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from narrows.errors import BenchmarkError
from narrows_tools.bench import results
from narrows_tools.bench.compare import Compared, compare, holm, paired_t
from narrows_tools.bench.results import Result, Row
from narrows_tools.cli import main

BASE = {"p99_ms": 40.0, "throughput_per_s": 200.0, "rss_bytes": 3e8, "refused_share": 0.1, "batch_size_mean": 3.0}
Change = Callable[[Row], Row]


def rounds(seed: int, noise: float = 0.01, count: int = 6, load: float = 100.0, system: str = "narrows") -> list[Row]:
    """Rounds of one step: what disturbs a round (20 %) disturbs both results, the noise only this one."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed)
    rows = []
    for number in range(1, count + 1):
        disturbed = math.exp(shared.normal(0, 0.2))
        metrics = {
            name: value * math.exp(own.normal(0, noise)) * (1.0 if name.endswith("_share") else disturbed)
            for name, value in BASE.items()
        }
        rows.append(Row(system, "open", "short", load, number, metrics))
    return rows


def result(rows: list[Row]) -> Result:
    return Result("narrows", "2026-11-24T12:00:00+00:00", {}, {}, tuple(rows))


def scaled(rows: list[Row], **factors: float) -> list[Row]:
    return [replace(row, metrics={k: v * factors.get(k, 1.0) for k, v in row.metrics.items()}) for row in rows]


def verdicts(first: list[Row], second: list[Row]) -> dict[str, str]:
    return {item.metric: item.verdict for item in compare(result(first), result(second)).compared}


def test_known_changes_are_found_each_in_its_metrics_own_direction() -> None:
    second = scaled(rounds(2), p99_ms=0.8, throughput_per_s=0.9, rss_bytes=1.1, refused_share=0.5)
    found = verdicts(rounds(1), second)
    assert found == {"p99_ms": "better", "throughput_per_s": "worse", "rss_bytes": "worse", "refused_share": "better"}
    assert verdicts(second, rounds(1))["p99_ms"] == "worse"


def test_a_metric_without_a_direction_is_left_out() -> None:
    assert "batch_size_mean" not in verdicts(rounds(1), scaled(rounds(2), batch_size_mean=2.0))


def test_noise_is_noise() -> None:
    assert set(verdicts(rounds(1, 0.05), rounds(2, 0.05)).values()) == {"noise"}


def test_pairing_finds_what_the_spread_between_rounds_hides() -> None:
    first, second = rounds(1), scaled(rounds(2), p99_ms=0.94)
    assert verdicts(first, second)["p99_ms"] == "better"
    unpaired = stats.ttest_ind([row.metrics["p99_ms"] for row in first], [row.metrics["p99_ms"] for row in second])
    assert unpaired.pvalue > 0.05


@pytest.mark.parametrize(
    ("factor", "verdict"), [(0.985, "noise"), (0.975, "better"), (1.015, "noise"), (1.03, "worse")]
)
def test_a_change_below_2_percent_is_noise_however_sure(factor: float, verdict: str) -> None:
    item = one(compare(result(rounds(1, 1e-4)), result(scaled(rounds(2, 1e-4), p99_ms=factor))).compared, "p99_ms")
    assert item.p < 1e-3
    assert item.verdict == verdict
    assert item.low is not None
    assert item.high is not None
    assert item.low < item.change < item.high
    assert item.change == pytest.approx(factor - 1, abs=1e-3)


def test_a_share_is_compared_in_points_and_may_be_zero() -> None:
    first = scaled(rounds(1), refused_share=0.0)
    assert verdicts(first, first)["refused_share"] == "noise"
    item = one(compare(result(first), result(rounds(2, 0.001))).compared, "refused_share")
    assert (item.in_points, item.verdict) == (True, "worse")
    assert item.change == pytest.approx(0.1, abs=1e-3)


def test_a_rate_of_zero_has_a_ratio_all_the_same() -> None:
    item = one(compare(result(rounds(1)), result(scaled(rounds(2), throughput_per_s=0.0))).compared, "throughput_per_s")
    assert item.verdict == "worse"


def test_with_fewer_than_5_rounds_nothing_is_said() -> None:
    assert set(verdicts(rounds(1, count=4), scaled(rounds(2, count=6), p99_ms=0.5)).values()) == {"too few rounds"}
    assert verdicts(rounds(1, count=5), scaled(rounds(2, count=6), p99_ms=0.5))["p99_ms"] == "better"


def test_rounds_in_which_the_generator_was_late_do_not_count() -> None:
    late = [replace(row, metrics={**row.metrics, "generator_late": 1.0}) for row in rounds(1)[:2]]
    found = compare(result([*late, *rounds(1)[2:]]), result(rounds(2)))
    assert {item.verdict for item in found.compared} == {"too few rounds"}
    assert (found.late_first, found.late_second) == (2, 0)
    with pytest.raises(BenchmarkError, match="load generator itself was late: 2 rows of A, 0 of B"):
        compare(result(late), result(rounds(2)))


def test_conditions_that_differ_are_named() -> None:
    first = replace(result(rounds(1)), environment={"cpu_model": "X", "cores": 2}, settings={"method": "encode"})
    second = replace(result(rounds(2)), environment={"cpu_model": "Y", "cores": 2}, settings={"method": "search"})
    assert compare(first, second).unlike == ("cpu_model", "method")
    assert compare(first, result(rounds(2))).unlike == ()  # it does not tell


def test_loads_pair_only_with_the_same_but_what_is_found_pairs_with_itself() -> None:
    with pytest.raises(BenchmarkError, match="nothing in common"):
        compare(result(rounds(1)), result(rounds(2, load=101.0)))
    first, second = ([replace(row, scenario="server") for row in rounds(seed, load=100.0 + seed)] for seed in (1, 2))
    assert verdicts(first, scaled(second, throughput_per_s=1.2))["throughput_per_s"] == "better"
    both = compare(result(rounds(1)), result([*rounds(2), *rounds(3, load=50.0)]))
    assert (both.only_first, both.only_second) == (0, 4)


def test_of_a_scenario_that_finds_its_load_only_the_rate_is_compared() -> None:
    """Twice the rate within the same bound, at a p99 nearer to it, is better, and in no way worse."""
    first, second = ([replace(row, scenario="server") for row in rounds(seed)] for seed in (1, 2))
    assert verdicts(first, scaled(second, throughput_per_s=2.0, p99_ms=1.3)) == {"throughput_per_s": "better"}


def test_two_systems_of_one_result() -> None:
    both = result([*rounds(1, system="triton"), *scaled(rounds(2), p99_ms=0.5)])
    with pytest.raises(BenchmarkError, match="A has narrows, triton, B has x"):
        compare(both, result(rounds(1, system="x")))
    item = one(compare(both, both, ("triton", "narrows")).compared, "p99_ms")
    assert (item.verdict, item.rounds) == ("better", 6)


def test_among_many_metrics_without_a_difference_hardly_ever_one_is_taken_for_one() -> None:
    """Holm's correction holds the chance of a single false verdict in a whole comparison to 5 %."""
    draw = np.random.default_rng(0)
    false = 0
    for _ in range(200):
        pairs = [
            [
                Row("narrows", "open", "short", float(load), number, {"p99_ms": 10 * math.exp(draw.normal(0, 0.1))})
                for load in range(10)
                for number in range(5)
            ]
            for _ in range(2)
        ]
        false += any(item.verdict != "noise" for item in compare(result(pairs[0]), result(pairs[1])).compared)
    assert false / 200 <= 0.08


def test_paired_t_is_the_one_of_scipy() -> None:
    draw = np.random.default_rng(1)
    first, second = draw.normal(size=7), draw.normal(0.5, size=7)
    mean, low, high, p = paired_t(list(second - first))
    expected = stats.ttest_rel(second, first)
    assert p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(second - first), interval.low, interval.high))


def test_differences_without_a_spread() -> None:
    assert paired_t([0.0] * 5) == (0.0, 0.0, 0.0, 1.0)
    assert paired_t([0.1]) == (0.1, -math.inf, math.inf, 1.0)
    assert paired_t([0.5] * 5)[3] == 0.0


def test_holms_correction_of_an_example_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def one(compared: tuple[Compared, ...], metric: str) -> Compared:
    return next(item for item in compared if item.metric == metric)


# --- the command


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    names = (str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    results.save(Path(names[0]), result(rounds(1)))
    results.save(Path(names[1]), result(scaled(rounds(2), p99_ms=0.8, throughput_per_s=0.9)))
    return names


def test_the_command_shows_what_differs_and_counts_the_rest(
    files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["bench", "compare", *files]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[4] for line in shown[1:3]] == ["p99_ms", "throughput_per_s"]
    assert shown[-1] == "1 better, 1 worse, 2 noise"
    assert main.main(["bench", "compare", *files, "--all"]) == 0
    assert "rss_bytes" in capsys.readouterr().out


def test_the_command_fails_on_worse_only_when_asked(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "compare", *files, "--fail-on-worse", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["compared"]
    assert {item["verdict"] for item in found} == {"better", "worse", "noise"}
    assert main.main(["bench", "compare", files[0], files[0], "--fail-on-worse"]) == 0


def test_what_a_comparison_leaves_out_and_where_it_is_unlike_stands_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    late = replace(rounds(1, load=50)[0], metrics={"p99_ms": 9.0, "generator_late": 1.0})
    results.save(first, replace(result([*rounds(1), late]), settings={"seconds": 5.0}))
    results.save(second, replace(result([*rounds(2), *rounds(3, load=70)]), settings={"seconds": 2.0}))
    assert main.main(["bench", "compare", str(first), str(second)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "A and B were measured under different conditions: seconds",
        "left out, as the load generator itself was late: 1 rows of A, 0 of B",
        "not in both: 0 of A, 4 of B (other loads, scenarios or metrics)",
    ]


def test_a_single_round_is_json_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "a.json")
    results.save(Path(file), result(rounds(1, count=1)))
    assert main.main(["bench", "compare", file, file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["compared"]
    assert {(item["low"], item["high"], item["verdict"]) for item in found} == {(None, None, "too few rounds")}
    assert main.main(["bench", "compare", file, file, "--all"]) == 0
    assert "inf" not in capsys.readouterr().out


def test_a_result_that_is_missing_is_named(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "compare", files[0], "missing.json"]) == 1
    assert "missing.json cannot be read" in capsys.readouterr().err
