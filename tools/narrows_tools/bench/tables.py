"""A result as text: a row for each thing measured, medians over the rounds, and the promises kept and missed."""

import statistics
from collections.abc import Callable, Sequence

from narrows_tools.bench.checks import Check
from narrows_tools.bench.results import LATE, Result, Row, groups, in_time, values

# Heading, metric, factor, digits.
COLUMNS = (
    ("p50 ms", "p50_ms", 1.0, 1),
    ("p99 ms", "p99_ms", 1.0, 1),
    ("p99.9 ms", "p99_9_ms", 1.0, 1),
    ("OK/s", "throughput_per_s", 1.0, 1),
    ("in time/s", "goodput_per_s", 1.0, 1),
    ("refused %", "refused_share", 100.0, 1),
    ("late %", "late_share", 100.0, 1),
    ("failed %", "failed_share", 100.0, 1),
    ("batch", "batch_size_mean", 1.0, 1),
    ("padding %", "padding_share", 100.0, 1),
    ("CPU ms", "server_cpu_ms_per_request", 1.0, 2),
    ("CPU ms/text", "cpu_ms_per_text", 1.0, 2),
    ("others %", "others_cpu_share", 100.0, 0),
    ("RSS MiB", "rss_bytes", 1 / 2**20, 0),
    ("ready ms", "ready_ms", 1.0, 0),
)
SPREAD = {"p99_ms", "throughput_per_s"}  # shown with their range where there is more than one round


def result_table(result: Result) -> str:
    """The rows of a result; a `*` marks loads at which the generator itself was late."""
    header = ["system", "scenario", "traffic", "load/s", *(heading for heading, *_ in COLUMNS)]
    lines = [header]
    late = False
    for (system, scenario, traffic, _), rows in groups(result.rows).items():
        behind = not in_time(rows)
        late = late or behind
        load = statistics.median(row.load for row in rows)
        mark = "*" if behind else ""
        cells = [_cell(rows, metric, factor, digits) for _, metric, factor, digits in COLUMNS]
        lines.append([system, scenario + mark, traffic, f"{load:.1f}" if load else "", *cells])
    kept = [column for column in range(len(header)) if column < 4 or any(line[column] for line in lines[1:])]
    text = aligned([[line[column] for column in kept] for line in lines])
    return text + (f"\n* {LATE}" if late else "")


def checks_table(checks: Sequence[Check]) -> str:
    """What was promised, and what was found."""
    lines = [["promise", "found", "bound", ""]]
    for check in checks:
        sign = ">=" if check.at_least else "<="
        digits = 1 if check.unit else 3
        unit = f" {check.unit}" if check.unit else ""
        found, bound = f"{check.value:.{digits}f}{unit}", f"{sign} {check.bound:.{digits}f}{unit}"
        lines.append([check.name, found, bound, "kept" if check.kept else "MISSED"])
    return aligned(lines)


def _cell(rows: Sequence[Row], metric: str, factor: float, digits: int) -> str:
    found = values(rows, metric, factor)
    if not found:
        return ""
    median = f"{statistics.median(found):.{digits}f}"
    if metric not in SPREAD or len(found) == 1:
        return median
    return f"{median} ({min(found):.{digits}f}-{max(found):.{digits}f})"


def spread(found: Sequence[float], digits: str = "") -> str:
    """The median, and the range where the rounds differ; `digits` as in a format, else by size."""
    if not found:
        return ""
    shown: Callable[[float], str] = (lambda value: f"{value:{digits}}") if digits else _short
    median, low, high = (shown(value) for value in (statistics.median(found), min(found), max(found)))
    return median if low == high else f"{median} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells as lines of equal columns."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
