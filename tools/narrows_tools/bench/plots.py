"""Recorded results as SVG files whose bytes depend on the results and on matplotlib's version alone.

What was drawn is kept in each file, as a hash, with matplotlib's version: so a file can be checked against the results
where another version of matplotlib is installed.
"""

import hashlib
import io
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from narrows_tools.bench.results import Result, Row, groups, values

DRAWING = 1  # counts the changes of how things are drawn
COLOURS = ("#0b6e99", "#d9730d", "#4d6461", "#ad1a72", "#6940a5", "#dfab01", "#e03e3e", "#64473a")
OWN = "narrows"  # drawn first, and thicker
_DRAWN = re.compile(r"drawn: ([0-9a-f]{64}, matplotlib [^<\s]+)")


@dataclass(frozen=True, slots=True)
class Line:
    """Points of one system: x, y (median), and the range of y over the rounds."""

    label: str
    system: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    """What one file shows."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_y: bool = True
    points_only: bool = False


def plots(name: str, result: Result) -> dict[str, bytes]:
    """A result's files, by name without suffix: `<name>-latency-<traffic>`, `-throughput-<traffic>` and `-recipes`."""
    return {f"{name}-{kind}": draw(plot) for kind, plot in _plots(result).items()}


def is_of(file: bytes, expected: bytes) -> bool:
    """Whether a file shows what `expected`, just drawn, shows: the same bytes, if the same matplotlib drew both."""
    ours, theirs = stamp(expected), stamp(file)
    if ours == theirs:
        return file == expected
    return ours.split(",")[0] == theirs.split(",")[0]


def stamp(svg: bytes) -> str:
    """The hash of what a file shows and matplotlib's version; empty for a file that was not drawn here."""
    found = _DRAWN.search(svg.decode("utf-8", "replace"))
    return found[1] if found else ""


def _plots(result: Result) -> dict[str, Plot]:
    found = groups(result.rows, ["open"])
    made = {}
    for traffic in dict.fromkeys(key[2] for key in found):
        systems = sorted({key[0] for key in found if key[2] == traffic}, key=lambda name: (name != OWN, name))
        sweeps = {
            system: [(key[3], rows) for key, rows in sorted(found.items()) if (key[0], key[2]) == (system, traffic)]
            for system in systems
        }
        sweeps = {system: sweep for system, sweep in sweeps.items() if sum(_has_latency(rows) for _, rows in sweep) > 1}
        if not sweeps:
            continue
        latency = [
            _line(f"{system} {metric[:3]}", system, sweep, metric, dashed=metric == "p50_ms")
            for system, sweep in sweeps.items()
            for metric in ("p99_ms", "p50_ms")
        ]
        made[f"latency-{traffic}"] = Plot(
            f"{traffic} texts: latency under Poisson arrivals", "offered, requests/s", "latency, ms", tuple(latency)
        )
        served = [
            _line(system, system, sweep, "p99_ms", x_metric="throughput_per_s") for system, sweep in sweeps.items()
        ]
        made[f"throughput-{traffic}"] = Plot(
            f"{traffic} texts: what is served, and how late", "served, requests/s", "p99 latency, ms", tuple(served)
        )
    recipes = [row for row in result.rows if {"speedup_ratio", "top10_overlap_share"} <= row.metrics.keys()]
    if recipes:
        made["recipes"] = _recipes(recipes)
    return made


def _has_latency(rows: Sequence[Row]) -> bool:
    return bool(values(rows, "p50_ms") and values(rows, "p99_ms"))


def _line(
    label: str,
    system: str,
    sweep: Sequence[tuple[float, Sequence[Row]]],
    metric: str,
    *,
    x_metric: str = "",
    dashed: bool = False,
) -> Line:
    """A metric over the offered rate, or over another metric's median."""
    points = [
        (statistics.median(values(rows, x_metric)) if x_metric else load, values(rows, metric))
        for load, rows in sweep
        if _has_latency(rows)
    ]
    xs, ys = tuple(x for x, _ in points), [y for _, y in points]
    return Line(label, system, xs, tuple(map(statistics.median, ys)), tuple(map(min, ys)), tuple(map(max, ys)), dashed)


def _recipes(rows: Sequence[Row]) -> Plot:
    lines = []
    for row in rows:
        y = row.metrics["top10_overlap_share"]
        low = row.metrics.get("top10_overlap_low_share", y)
        label = " ".join(filter(None, (row.system, row.traffic)))
        lines.append(Line(label, row.system, (row.metrics["speedup_ratio"],), (y,), (low,), (y,)))
    title = "int8 recipes: speed against quality, both against fp32"
    return Plot(title, "times as fast", "top-10 overlap", tuple(lines), log_y=False, points_only=True)


def draw(plot: Plot) -> bytes:
    """A plot as SVG."""
    what = json.dumps([DRAWING, asdict(plot)], sort_keys=True)
    description = f"drawn: {hashlib.sha256(what.encode()).hexdigest()}, matplotlib {mpl.__version__}"
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's own style is
        mpl.rcParams["svg.hashsalt"] = "narrows"  # or ids are drawn by chance
        mpl.rcParams["svg.fonttype"] = "none"
        mpl.rcParams["font.size"] = 9.0
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axes = figure.add_subplot()
        systems = list(dict.fromkeys(line.system for line in plot.lines))
        for line in plot.lines:
            errors = [
                [y - low for y, low in zip(line.y, line.low, strict=True)],
                [high - y for y, high in zip(line.y, line.high, strict=True)],
            ]
            axes.errorbar(
                line.x,
                line.y,
                yerr=errors,
                label=line.label,
                color=COLOURS[systems.index(line.system) % len(COLOURS)],
                linestyle="none" if plot.points_only else "--" if line.dashed else "-",
                linewidth=1.8 if line.system == OWN else 1.1,
                marker="o",
                markersize=3.5,
                capsize=2.0,
            )
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        if plot.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(visible=True, which="both", linewidth=0.3, alpha=0.5)
        axes.legend(fontsize=7, ncols=2 if len(plot.lines) > 6 else 1)
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": "narrows bench report", "Description": description}
        FigureCanvasSVG(figure).print_figure(buffer, format="svg", metadata=metadata)
    return buffer.getvalue()
