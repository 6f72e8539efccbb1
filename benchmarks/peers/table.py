"""What a run found, as text: medians and ranges over the rounds that count."""

import json
import statistics
from collections.abc import Sequence
from typing import Any

from narrows_tools.bench.peer_ratios import ratios, what_ran
from narrows_tools.bench.results import Result, Row, values
from narrows_tools.bench.tables import aligned, spread

HEAD = ("system", "graph", "saturation/s", "load", "p50 ms", "p99 ms", "goodput/s", "CPU ms", "RSS MB", "client ms")


def table(result: Result) -> str:
    """Ratios to the best peers; saturation and latencies of each system; what was chosen, skipped and discarded."""
    rounds = sorted({row.round for row in result.rows})
    graphs = result.settings["graphs"]
    lines = [aligned(found), ""] if (found := ratios(result)) else []
    for traffic, rates in result.settings["rates"].items():
        rows = [row for row in result.rows if row.traffic == traffic]
        cells: list[tuple[str, ...]] = [HEAD]
        for system in sorted({row.system for row in rows}, key=lambda name: (not name.startswith("narrows"), name)):
            graph = graphs.get(system, "bundle")
            cells += _cells(system, graph, [row for row in rows if row.system == system], rates)
        lines += [f"{traffic}, {len(rounds)} rounds: median (range)", aligned(cells), ""]
    lines += [*what_ran(result), *_notes(result)]
    return "\n".join(lines)


def _cells(system: str, graph: str, rows: Sequence[Row], rates: Sequence[float]) -> list[tuple[str, ...]]:
    whole = [row for row in rows if row.scenario in ("closed", "offline")]
    saturation = _spread(whole, "throughput_per_s", 0)
    if any(row.scenario == "offline" for row in whole):
        return [(system, graph, saturation, "in process", *[""] * (len(HEAD) - 4))]
    lines: list[tuple[str, ...]] = []
    for number, rate_per_s in enumerate(rates):
        at = [row for row in rows if row.scenario == "open" and row.load == rate_per_s]
        lines.append(
            (
                system if number == 0 else "",
                graph if number == 0 else "",
                saturation if number == 0 else "",
                f"{rate_per_s:.0f}/s",
                _spread(at, "p50_ms", 1),
                _spread(at, "p99_ms", 1),
                _spread(at, "goodput_per_s", 0),
                _spread(at, "server_cpu_ms_per_request", 2),
                _megabytes(at),
                _spread(at, "client_cpu_ms_per_request", 2),
            )
        )
    return lines


def _spread(rows: Sequence[Row], metric: str, digits: int) -> str:
    return spread(values(rows, metric), f".{digits}f") or "-"


def _megabytes(rows: Sequence[Row]) -> str:
    values = [row.metrics["rss_bytes"] / 1e6 for row in rows if "rss_bytes" in row.metrics]
    return f"{statistics.median(values):.0f}" if values else "-"


def _notes(result: Result) -> list[str]:
    settings: dict[str, Any] = result.settings
    lines = []
    for name, best in settings["best"].items():
        for traffic, number in best.items():
            lines.append(f"{name}, best for {traffic}: {json.dumps(settings['search'][name][number]['setting'])}")
    lines += [f"skipped: {name}: {why}" for name, why in settings.get("skipped", {}).items()]
    for entries in settings["search"].values():
        lines += [f"failed: {entry['error']}" for entry in entries if "error" in entry]
    lines += [f"failed in round {one['round']}: {one['error']}" for one in settings.get("failures", [])]
    lines += [f"round {number} does not count: {why}" for number, why in settings.get("discarded", {}).items()]
    wanted, found = settings["plan"]["rounds"], len({row.round for row in result.rows})
    if settings["complete"] and found < wanted:
        lines.append(f"only {found} of {wanted} rounds count: the machine was not quiet enough for a comparison")
    return lines
