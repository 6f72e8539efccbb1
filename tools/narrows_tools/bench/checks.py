"""What Narrows promises of its speed, compared with a result: each promise with its bound, which stands here alone."""

import statistics
from dataclasses import dataclass

from narrows_tools.bench.results import Result, Row, Scenario

MIB = 2**20
OVERHEAD_BYTES = 250 * 10**6  # of the server, beside model files and vectors
READY_MS = 3000.0  # for towers no larger than MiniLM with 16,000 passages, warm-up included
READY_PASSAGES = 16_999
LARGE_TOWER_BYTES = 300 * 10**6  # BERT-base has more, the 6-layer MiniLM fewer
SATURATION_LARGE, SATURATION_SMALL = 0.92, 0.80  # of the ceiling
LOW_LOAD = 0.1
P50_OVER_SINGLE_MS, P99_OVER_SINGLE_MS = 1.0, 3.0
PADDING_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Check:
    """A promise: `value` must be at least the bound (`at_least`) or at most."""

    name: str
    value: float
    bound: float
    unit: str
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether it is kept."""
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def checks(result: Result) -> list[Check]:
    """The promises that the result can speak of, by medians over its rounds."""
    found: list[Check] = []
    start = _rows(result, "start", "")
    if start and "rss_bytes" in start[0].metrics:
        most = max(row.metrics.get("rss_bytes", 0.0) for row in result.rows)
        files = start[0].metrics["model_bytes"] + start[0].metrics["vectors_bytes"]
        found.append(Check("server RSS under load", most / MIB, (files + OVERHEAD_BYTES) / MIB, "MiB"))
    large = bool(start) and start[0].metrics["model_bytes"] > LARGE_TOWER_BYTES
    many = bool(start) and start[0].metrics.get("passage_count", 0.0) > READY_PASSAGES
    if start and "ready_ms" in start[0].metrics and not large and not many:
        found.append(Check("start to ready (MiniLM, 16,000 passages)", _median(start, "ready_ms"), READY_MS, "ms"))
    ceiling, closed = _rows(result, "ceiling", "short"), _rows(result, "closed", "short")
    if ceiling and closed:
        share = _median_ratio(closed, ceiling, "throughput_per_s")
        bound = SATURATION_LARGE if large else SATURATION_SMALL
        found.append(Check("throughput at saturation, of the ceiling", share, bound, "", at_least=True))
    single, low = _rows(result, "single", "short"), _lowest(result)
    if single and low:
        alone_ms = _median(single, "p50_ms")
        bound_ms = alone_ms + P50_OVER_SINGLE_MS
        found.append(Check("p50 at 10 % load: one question alone + 1 ms", _median(low, "p50_ms"), bound_ms, "ms"))
        bound_ms = alone_ms + P99_OVER_SINGLE_MS
        found.append(Check("p99 at 10 % load: one question alone + 3 ms", _median(low, "p99_ms"), bound_ms, "ms"))
    mixed = [row for row in _rows(result, "closed", "mixed") if "padding_share" in row.metrics]
    if mixed:
        found.append(Check("padding at saturation, mixed lengths", _median(mixed, "padding_share"), PADDING_SHARE, ""))
    return found


def failures(result: Result) -> list[str]:
    """The loads in which requests failed, which is never what a load is for: to be refused or late is another thing."""
    found = []
    for row in result.rows:
        where = f"{row.scenario} {row.traffic}" + (f" at {row.load:.0f}/s" if row.load else "") + f", round {row.round}"
        if failed := round(row.metrics.get("failed_share", 0.0) * row.metrics.get("request_count", 0.0)):
            found.append(f"{where}: {failed} of {row.metrics['request_count']:.0f} requests")
        if failed := round(row.metrics.get("passages_failed_count", 0.0)):
            found.append(f"{where}: {failed} passages in the background")
    return found


def _rows(result: Result, scenario: Scenario, traffic: str) -> list[Row]:
    return [row for row in result.rows if (row.scenario, row.traffic) == (scenario, traffic)]


def _lowest(result: Result) -> list[Row]:
    """The rows of the open loop at 10 % of the saturation in which anything was answered."""
    saturation = result.settings.get("calibration", {}).get("saturation_per_s", {}).get("short", 0.0)
    answered = [row for row in _rows(result, "open", "short") if "p50_ms" in row.metrics]
    return [row for row in answered if abs(row.load - LOW_LOAD * saturation) < 0.01 * saturation]


def _median(rows: list[Row], metric: str) -> float:
    return statistics.median(row.metrics[metric] for row in rows)


def _median_ratio(rows: list[Row], others: list[Row], metric: str) -> float:
    """The median over the rounds of a metric's ratio within a round."""
    by_round = {row.round: row.metrics[metric] for row in others}
    return statistics.median(row.metrics[metric] / by_round[row.round] for row in rows if row.round in by_round)
