"""Narrows beside the best of its peers: a result of kind `peers` as ratios, each of two rows of the same round."""

import math
import statistics
from collections.abc import Mapping, Sequence

from narrows_tools.bench.results import Result, Row
from narrows_tools.bench.tables import spread

NARROWS = "narrows-"  # the name of a Narrows row goes on with its variant
GRAPHS = {"bundle": "the same", "plain": "plain", "torch": "PyTorch"}
MOST_UNANSWERED = 0.01  # with more, the 99th percentile of all requests is one that has no answer

ByRound = Mapping[int, float]


def ratios(result: Result) -> list[list[str]]:
    """Cells, the heading first: a line for each traffic, graph of peers, and variant of Narrows; [] without peers.

    Throughput is compared at saturation with the peer that has the highest, p99 at each rate with the peer that has the
    lowest; by their medians over the rounds, among the servers with that graph.
    """
    if result.kind != "peers":
        return []
    graphs: Mapping[str, str] = result.settings.get("graphs", {})
    shares: Sequence[float] = result.settings.get("shares", ())
    lines = []
    for traffic, rates in result.settings.get("rates", {}).items():
        rows = [row for row in result.rows if row.traffic == traffic]
        saturation = _by_system(rows, "closed", 0.0)
        ours = [name for name in saturation if name.startswith(NARROWS)]
        for graph, shown in GRAPHS.items():
            peers = {name for name in saturation if graphs.get(name) == graph}
            if not peers:
                continue
            best = max(peers, key=lambda name: statistics.median(saturation[name].values()))
            for name in ours:
                cells = [spread(_ratio(saturation[name], saturation[best]), ".2f")]
                cells += [
                    _latency(name, peers, rate_per_s, _by_system(rows, "open", rate_per_s)) for rate_per_s in rates
                ]
                found = spread(list(saturation[best].values()))
                lines.append([traffic, name.removeprefix(NARROWS), shown, f"{best}, {found}", *cells])
    if not lines:
        return []
    at = [f"p99 / the lowest, {share:.0%}" for share in shares]
    return [["texts", "variant", "peers' graph", "best peer, its saturation/s", "throughput / its", *at], *lines]


def what_ran(result: Result) -> list[str]:
    """What the systems of a comparison ran: those that ran the same, and in words what."""
    by_words: dict[str, list[str]] = {}
    for name, words in result.settings.get("systems", {}).items():
        if not name.startswith(NARROWS):
            by_words.setdefault(words, []).append(name)
    return [f"{', '.join(names)}: {words}" for words, names in by_words.items()]


def _by_system(rows: Sequence[Row], scenario: str, load: float) -> dict[str, dict[int, float]]:
    """Saturation, or p99 under a load, of each system in each round."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if (row.scenario, row.load) == (scenario, load):
            value = row.metrics["throughput_per_s"] if scenario == "closed" else _p99_ms(row)
            found.setdefault(row.system, {})[row.round] = value
    return found


def _p99_ms(row: Row) -> float:
    """Over all requests: infinite where too many have no answer."""
    unanswered = sum(row.metrics.get(f"{how}_share", 0.0) for how in ("refused", "late", "failed"))
    return row.metrics["p99_ms"] if unanswered <= MOST_UNANSWERED else math.inf


def _latency(name: str, peers: set[str], rate_per_s: float, p99_ms: Mapping[str, ByRound]) -> str:
    medians = {peer: statistics.median(p99_ms[peer].values()) for peer in sorted(peers & p99_ms.keys())}
    answering = {peer: median_ms for peer, median_ms in medians.items() if median_ms < math.inf}
    if not answering or name not in p99_ms:
        return ""
    best = min(answering, key=answering.__getitem__)
    return f"{spread(_ratio(p99_ms[name], p99_ms[best]), '.2f')}, {best} at {rate_per_s:.0f}/s"


def _ratio(ours: ByRound, theirs: ByRound) -> list[float]:
    return [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys())]
