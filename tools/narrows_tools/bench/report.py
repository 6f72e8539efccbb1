"""Recorded results as a section of the README: every number from the files, medians with their range.

The section stands between two markers and is written anew as a whole; what is around it stays as it is.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from narrows.errors import BenchmarkError
from narrows_tools.bench.peer_ratios import ratios, what_ran
from narrows_tools.bench.results import LATE, Result, Row, groups, in_time, values
from narrows_tools.bench.tables import spread

BEGIN = "<!-- benchmarks: made by `narrows bench report`, do not edit -->"
END = "<!-- benchmarks: end -->"
THROUGHPUT = ("ceiling", "closed", "offline", "server")
UNDER_LOAD = ("open", "mixed_lanes")
PADDING = (
    "padding %: padded tokens among all of the batches. A packed variant, as `narrows export` makes them, computes "
    "with them in attention only."
)
HEADINGS = {"narrows": "Narrows alone", "peers": "Beside other servers", "simulation": "Simulated, without overhead"}
LONG_LINES = 12  # a table of more lines is folded, so that whoever reads the README gets past it
MIB, S = 1 / 2**20, 1e-3


def section(results: Mapping[str, Result], plots: Mapping[str, Sequence[Path]], readme: Path) -> str:
    """The section, markers included.

    Args:
        results: by the names of their files.
        plots: drawn from them, by the same names.
        readme: where the section will stand, for the paths of the plots.
    """
    parts = [BEGIN]
    for name in sorted(results):
        result = results[name]
        parts += [f"### {HEADINGS.get(result.kind, result.kind)}", _about(name, result)]
        parts += [f"![{plot.stem}]({_relative(plot, readme)})" for plot in sorted(plots.get(name, ()))]
        parts += _tables(result)
    return "\n\n".join([*parts, END])


def replaced(text: str, new_section: str, file: Path) -> str:
    """The text of `file` with another section.

    Raises:
        BenchmarkError: the markers are missing, or not there once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in before + after:
        raise BenchmarkError(f"{file} needs the lines {BEGIN} and {END}, once each, where the tables belong")
    return before + new_section + after


def _about(name: str, result: Result) -> str:
    """Where and when it was measured, in one sentence."""
    found = result.environment
    facts = [f"`{name}.json`, measured {result.created[:10]}"]
    if "cpu_model" in found:
        facts.append(f"on {found['cpu_model']} ({found.get('cores', '?')} cores)")
    if "server_cores" in found:
        facts.append(f"server on cores {_listed(found['server_cores'])}, load on {_listed(found['client_cores'])}")
    elif "threads" in found:
        facts.append(f"threads: {found['threads']}")
    if found.get("load_average"):
        facts.append(f"load average before it {found['load_average'][0]:.1f}")
    if found.get("git_commit"):
        facts.append(f"commit {found['git_commit'][:12]}")
    rounds = len({row.round for row in result.rows if row.scenario in (*THROUGHPUT, *UNDER_LOAD)})
    facts.append(f"{rounds} round{'s' * (rounds != 1)}; medians, in brackets the range")
    return ", ".join(facts) + "."


def _listed(cores: Iterable[int]) -> str:
    return ", ".join(map(str, cores))


def _tables(result: Result) -> list[str]:
    rows = result.rows
    made = {
        "ratios": _beside_peers(result),
        "throughput of each": _throughput(rows),
        "every load: latency, throughput, processor time": _under_load(rows),
        "start": _start(rows),
        "recipes": _recipes(rows),
    }
    return [_folded(title, table) for title, table in made.items() if table]


def _folded(title: str, table: str) -> str:
    """The table, behind a line to open it where it is long."""
    if sum(line.startswith("|") for line in table.splitlines()) <= LONG_LINES + 2:
        return table
    return f"<details><summary>{title}</summary>\n\n{table}\n\n</details>"


def _beside_peers(result: Result) -> str:
    """Ratios to the best peers, and below them what each peer ran."""
    head, *lines = ratios(result) or [[]]
    return _table(head, lines) + "\n\n" + "\n".join(f"- {ran}" for ran in what_ran(result)) if lines else ""


def _throughput(rows: Sequence[Row]) -> str:
    """A line for each system and traffic: texts a second in each scenario, and what share of its ceiling was served."""
    found = groups(rows, THROUGHPUT)
    shown = [scenario for scenario in THROUGHPUT if any(key[1] == scenario for key in found)]
    lines = []
    for system, traffic in dict.fromkeys((key[0], key[2]) for key in found):
        by_scenario = {scenario: found.get((system, scenario, traffic, 0.0), []) for scenario in THROUGHPUT}
        cells = [spread(values(by_scenario[scenario], "throughput_per_s")) for scenario in shown]
        lines.append([system, traffic, *cells, spread(_shares(by_scenario["closed"], by_scenario["ceiling"]), ".2f")])
    titles = {"ceiling": "ceiling/s", "closed": "closed loop/s", "offline": "offline/s", "server": "p99 in time/s"}
    return _table(["system", "texts", *(titles[scenario] for scenario in shown), "closed loop / ceiling"], lines)


def _shares(served: Sequence[Row], ceiling: Sequence[Row]) -> list[float]:
    """Served throughput over that of the ceiling, in the rounds that have both."""
    best = {row.round: row.metrics["throughput_per_s"] for row in ceiling}
    return [row.metrics["throughput_per_s"] / best[row.round] for row in served if row.round in best]


def _under_load(rows: Sequence[Row]) -> str:
    lines = []
    for (system, scenario, traffic, load), rounds in groups(rows, UNDER_LOAD).items():
        late = not in_time(rounds)
        lines.append(
            [
                system,
                traffic + (", passages besides" if scenario == "mixed_lanes" else ""),
                f"{load:.4g}" + "*" * late,
                spread(values(rounds, "p50_ms")),
                spread(values(rounds, "p99_ms")),
                spread(values(rounds, "throughput_per_s")),
                spread(values(rounds, "goodput_per_s")),
                spread(values(rounds, "refused_share", 100)),
                spread(values(rounds, "padding_share", 100)),
                spread(values(rounds, "server_cpu_ms_per_request"), ".2f"),
            ]
        )
    measured = ["p50 ms", "p99 ms", "answered/s", "in time/s", "refused %", "padding %", "CPU ms each"]
    made = _table(["system", "texts", "offered/s", *measured], lines)
    notes = [PADDING] * any(line[8] for line in lines) + [f"\\* {LATE}"] * any(line[2].endswith("*") for line in lines)
    return "\n\n".join([made, *notes])


def _start(rows: Sequence[Row]) -> str:
    lines = [
        [
            system,
            spread(values(rounds, "ready_ms", S), ".2f"),
            spread(values(rounds, "rss_bytes", MIB), ".0f"),
            spread(values(rounds, "model_bytes", MIB), ".0f"),
            spread(values(rounds, "vectors_bytes", MIB), ".0f"),
        ]
        for (system, *_), rounds in groups(rows, ["start"]).items()
    ]
    return _table(["system", "ready after s", "RSS MiB", "model files MiB", "vectors MiB"], lines)


def _recipes(rows: Sequence[Row]) -> str:
    """Ways to quantize: rows with `speedup_ratio` and `top10_overlap_share` against fp32, a system each."""
    lines = [
        [
            row.system,
            row.traffic,
            f"{row.metrics['speedup_ratio']:.2f}",
            f"{row.metrics['top10_overlap_share']:.3f}",
            f"{row.metrics['top10_overlap_low_share']:.3f}" if "top10_overlap_low_share" in row.metrics else "",
            {1.0: "yes", 0.0: "no"}.get(row.metrics.get("passed", -1.0), ""),
        ]
        for row in rows
        if {"speedup_ratio", "top10_overlap_share"} <= row.metrics.keys()
    ]
    return _table(["recipe", "towers", "times as fast", "top-10 overlap", "from (95 %)", "passed"], lines)


def _table(header: list[str], lines: Sequence[list[str]]) -> str:
    """Markdown, without the columns that are empty; an empty text where no line is."""
    kept = [column for column in range(len(header)) if any(line[column] for line in lines)]
    if not kept:
        return ""
    cells = [[row[column].replace("|", "\\|") for column in kept] for row in (header, *lines)]
    texts = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([texts[0], "|" + "---|" * len(kept), *texts[1:]])


def _relative(plot: Path, readme: Path) -> str:
    return Path(os.path.relpath(plot.resolve(), readme.resolve().parent)).as_posix()
