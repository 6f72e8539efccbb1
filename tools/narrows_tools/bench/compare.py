"""Two results, pair by pair: which metrics became better, which worse, and which differences are noise.

What is paired is a metric of a system in a scenario, under a traffic and a load, in one round of A and the same round
of B. The test is Student's paired t (Student 1908, Biometrika 6:1-25) on the logarithms of the ratios B / A, so that
what is tested is a relative change; on plain differences for shares of requests, which may be zero. An
exact test by flipping signs was considered: with five rounds its smallest p is 2/32, so it could never show anything.
All p of a comparison are corrected together by Holm's method (Holm 1979, Scandinavian Journal of Statistics 6:65-70).
"""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from narrows.errors import BenchmarkError
from narrows_tools.bench.results import FOUND_LOAD, Result, Row, in_time

ALPHA = 0.05  # after Holm's correction, for all metrics of a comparison together
MIN_ROUNDS = 5
MIN_RATIO = 0.02  # a change by less than 2 % is no news, however sure
MIN_POINTS = 0.01  # of a share
TINY = 1e-3  # milliseconds, requests a second: so much stands for a zero, which has no logarithm
FOUND_METRIC = "throughput_per_s"  # of a scenario that finds its load: all else is of another load in each round
HIGHER_IS_BETTER = ("_per_s", "in_time_share")
LOWER_IS_BETTER = (
    *("p50_ms", "p90_ms", "p99_ms", "p99_9_ms", "ready_ms", "server_cpu_ms_per_request", "rss_bytes"),
    *("refused_share", "late_share", "failed_share", "padding_share"),
)

MACHINE = ("cpu_model", "cores", "server_cores", "client_cores")  # of Result.environment
METHOD = ("method", "seconds", "clients")  # of Result.settings

Verdict = Literal["better", "worse", "noise", "too few rounds"]
Key = tuple[str, str, str, float, str]  # system, scenario, traffic, load, metric


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric: medians of both, and B's mean change from A with its 95 % interval, uncorrected.

    `change` is B / A - 1 (of geometric means) or, with `in_points`, B - A; `p` is corrected. A single round has no
    interval.
    """

    system: str
    scenario: str
    traffic: str
    load: float
    metric: str
    rounds: int
    first: float
    second: float
    in_points: bool
    change: float
    low: float | None
    high: float | None
    p: float
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """All pairs, and how many metrics of either result have no partner in the other.

    `late_first` and `late_second` are rows that were left out, as the load generator itself was late; `unlike` are the
    conditions of the measurement that were not the same.
    """

    compared: tuple[Compared, ...]
    only_first: int
    only_second: int
    late_first: int
    late_second: int
    unlike: tuple[str, ...]

    def count(self, verdict: Verdict) -> int:
        """How many metrics have this verdict."""
        return sum(item.verdict == verdict for item in self.compared)


def higher_is_better(metric: str) -> bool | None:
    """A metric's direction; None for one that describes a run without being good or bad."""
    if metric in LOWER_IS_BETTER:
        return False
    if metric.endswith(HIGHER_IS_BETTER) and not metric.startswith("threads_x_batch_"):
        return True
    return None


def compare(first: Result, second: Result, systems: tuple[str, str] | None = None) -> Comparison:
    """Compares B with A; with `systems`, one system of A with another one of B, which may be the same result.

    Raises:
        BenchmarkError: they have no metric, load and traffic in common.
    """
    first_rows, late_first = _in_time(first.rows, systems and systems[0])
    second_rows, late_second = _in_time(second.rows, systems and systems[1])
    one, two = _rounds(first_rows, unnamed=systems is not None), _rounds(second_rows, unnamed=systems is not None)
    shared = [key for key in one if key in two and one[key].keys() & two[key].keys()]
    if not shared:
        raise BenchmarkError(
            "the results have nothing in common: no system, scenario, traffic and load is in both "
            f"(A has {_systems(first)}, B has {_systems(second)}; measure both at the same rates; "
            "`narrows bench compare --systems` compares two systems)"
            + (f"; {_left_out(late_first, late_second)}" if late_first or late_second else "")
        )
    tested = [_test(key, one[key], two[key]) for key in shared]
    corrected = iter(holm([item.p for item in tested if item.verdict != "too few rounds"]))
    judged = (item if item.verdict == "too few rounds" else _judged(item, next(corrected)) for item in tested)
    alone = len(one) - len(shared), len(two) - len(shared)
    return Comparison(tuple(judged), *alone, late_first, late_second, _unlike(first, second))


def _systems(result: Result) -> str:
    return ", ".join(sorted({row.system for row in result.rows})) or "no rows"


def _in_time(rows: Iterable[Row], system: str | None) -> tuple[list[Row], int]:
    """The rows (of one system, if it is given) that say something about the server, and how many do not."""
    own = [row for row in rows if system in (None, row.system)]
    kept = in_time(own)
    return kept, len(own) - len(kept)


def _unlike(first: Result, second: Result) -> tuple[str, ...]:
    """Which conditions both results tell of, and differently."""
    told = [(name, first.environment, second.environment) for name in MACHINE]
    told += [(name, first.settings, second.settings) for name in METHOD]
    return tuple(name for name, one, two in told if name in one and name in two and one[name] != two[name])


def _rounds(rows: Iterable[Row], *, unnamed: bool) -> dict[Key, dict[int, float]]:
    """The values of every metric that is compared, by round; of whatever system, if they are to be `unnamed`."""
    found: dict[Key, dict[int, float]] = {}
    for row in rows:
        load = 0.0 if row.scenario == FOUND_LOAD else row.load
        for metric, value in row.metrics.items():
            if _is_compared(row.scenario, metric):
                key = ("" if unnamed else row.system, row.scenario, row.traffic, load, metric)
                found.setdefault(key, {})[row.round] = value
    return found


def _is_compared(scenario: str, metric: str) -> bool:
    """Whether it has a direction, and was measured under the same load in both."""
    return metric == FOUND_METRIC if scenario == FOUND_LOAD else higher_is_better(metric) is not None


def _test(key: Key, first: dict[int, float], second: dict[int, float]) -> Compared:
    rounds = sorted(first.keys() & second.keys())
    one, two = [first[number] for number in rounds], [second[number] for number in rounds]
    in_points = key[-1].endswith("_share")
    differences = [
        after - before if in_points else math.log(max(after, TINY) / max(before, TINY))
        for before, after in zip(one, two, strict=True)
    ]
    mean, low, high, p = paired_t(differences)
    change, low, high = (each if in_points else math.expm1(each) for each in (mean, low, high))
    ends: tuple[float | None, float | None] = (low, high) if len(rounds) > 1 else (None, None)
    verdict: Verdict = "noise" if len(rounds) >= MIN_ROUNDS else "too few rounds"
    medians = statistics.median(one), statistics.median(two)
    return Compared(*key, len(rounds), *medians, in_points, change, *ends, p, verdict)


def _judged(item: Compared, p: float) -> Compared:
    """With its corrected p, and the verdict by it."""
    upwards = higher_is_better(item.metric)
    verdict: Verdict = "noise"
    if p < ALPHA and abs(item.change) >= (MIN_POINTS if item.in_points else MIN_RATIO):
        verdict = "better" if (item.change > 0) == upwards else "worse"
    return replace(item, p=p, verdict=verdict)


def paired_t(differences: Sequence[float]) -> tuple[float, float, float, float]:
    """Mean of paired differences, its 95 % interval, and the two-sided p of there being none (Student 1908).

    Without a spread, or with a single pair, the interval is as wide as it says nothing: p is 1, unless all pairs show
    exactly the same difference, which no chance explains: p is 0.
    """
    from scipy import stats

    count, mean = len(differences), statistics.fmean(differences)
    if count < 2:
        return mean, -math.inf, math.inf, 1.0
    error = statistics.stdev(differences) / math.sqrt(count)
    if error == 0.0:
        return mean, mean, mean, 1.0 if mean == 0.0 else 0.0
    half = float(stats.t.ppf(0.975, count - 1)) * error
    return mean, mean - half, mean + half, 2 * float(stats.t.sf(abs(mean) / error, count - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several tests, corrected so that one of them being wrong is as unlikely as for one alone (Holm 1979)."""
    corrected = [0.0] * len(ps)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=lambda each: ps[each])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


def notes(comparison: Comparison) -> list[str]:
    """What whoever reads the table should know beside it."""
    found = []
    if comparison.unlike:
        found.append(f"A and B were measured under different conditions: {', '.join(comparison.unlike)}")
    if comparison.late_first or comparison.late_second:
        found.append(_left_out(comparison.late_first, comparison.late_second))
    if comparison.only_first or comparison.only_second:
        alone = f"{comparison.only_first} of A, {comparison.only_second} of B"
        found.append(f"not in both: {alone} (other loads, scenarios or metrics)")
    return found


def _left_out(late_first: int, late_second: int) -> str:
    return f"left out, as the load generator itself was late: {late_first} rows of A, {late_second} of B"


def table(comparison: Comparison, *, everything: bool) -> list[tuple[str, ...]]:
    """Cells for a terminal, the heading first; without `everything`, only what is better or worse."""
    lines: list[tuple[str, ...]] = [
        ("system", "scenario", "traffic", "load/s", "metric", "A", "B", "change", "95 % interval", "p", "verdict")
    ]
    for item in comparison.compared:
        if everything or item.verdict in ("better", "worse"):
            unit = "points" if item.in_points else "%"
            interval = " to ".join(f"{100 * end:+.1f}" for end in (item.low, item.high) if end is not None)
            load = f"{item.load:g}" if item.load else ""
            where = (item.system, item.scenario, item.traffic, load, item.metric)
            values = (f"{item.first:.4g}", f"{item.second:.4g}", f"{100 * item.change:+.1f} {unit}", interval)
            lines.append((*where, *values, f"{item.p:.2g}", item.verdict))
    return lines
