"""`narrows bench report` and `narrows bench compare`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.errors import BenchmarkError
from narrows_tools.cli.tables import print_rows

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

COMPARE_ABOUT = """\
Compares B with A, metric by metric, pairing the rounds. Measure both at the same rates, in turn if you can.

A metric is better or worse if a paired t-test on log(B / A) over at least 5 rounds (for shares of requests: on B - A)
says so at 5 %, corrected for the number of metrics by Holm's method, and if the change is at least 2 % (1 point).
Anything else is noise."""

COMPARE_EXAMPLES = """examples:
  narrows bench compare before.json after.json
  narrows bench compare before.json after.json --fail-on-worse
  narrows bench compare peers.json peers.json --systems triton narrows-fp32"""


def add(actions: "Commands") -> None:
    """Adds the commands and their arguments."""
    report = actions.add_parser(
        "report",
        help="write the README's section of results, and the plots, anew",
        description="Writes the plots of every result file, and the README's section between its two markers.",
        epilog="examples:\n  narrows bench report\n  narrows bench report --check",
    )
    report.add_argument(
        "--results",
        type=Path,
        default=Path("benchmarks/results"),
        metavar="DIR",
        help="where the *.json are (default: benchmarks/results)",
    )
    report.add_argument(
        "--plots",
        type=Path,
        default=Path("benchmarks/plots"),
        metavar="DIR",
        help="where the *.svg go (default: benchmarks/plots)",
    )
    report.add_argument(
        "--readme", type=Path, default=Path("README.md"), metavar="FILE", help="file with the section (README.md)"
    )
    report.add_argument(
        "--check", action="store_true", help="write nothing; fail if section or plots are not up to date"
    )
    report.set_defaults(run=run_report, extra="bench")

    compare = actions.add_parser(
        "compare",
        help="what became better or worse between two results",
        description=COMPARE_ABOUT,
        epilog=COMPARE_EXAMPLES,
    )
    compare.add_argument("first", type=Path, metavar="A.json")
    compare.add_argument("second", type=Path, metavar="B.json")
    compare.add_argument(
        "--systems",
        nargs=2,
        metavar=("SA", "SB"),
        help="compare system SA of A with system SB of B, not like with like",
    )
    compare.add_argument("--all", action="store_true", help="show what is noise, too")
    compare.add_argument("--fail-on-worse", action="store_true", help="exit with 1 if anything is worse")
    compare.add_argument("--json", action="store_true", help="print the comparison as JSON")
    compare.set_defaults(run=run_compare, extra="bench")


def run_report(options: argparse.Namespace) -> int:
    """Writes, or checks, section and plots."""
    from narrows import durable
    from narrows_tools.bench import plots, report, results

    files = sorted(options.results.glob("*.json"))
    if not files:
        raise BenchmarkError(f"{options.results} holds no results; make one with `narrows bench run --out`")
    loaded = {file.stem: results.load(file) for file in files}
    of_each = {
        name: {options.plots / f"{plot}.svg": svg for plot, svg in plots.plots(name, result).items()}
        for name, result in loaded.items()
    }
    drawn = {file: svg for files in of_each.values() for file, svg in files.items()}
    shown = {name: list(files) for name, files in of_each.items()}
    text = _text(options.readme)
    new_text = report.replaced(text, report.section(loaded, shown, options.readme), options.readme)
    others = [file for file in sorted(options.plots.glob("*.svg")) if file not in drawn]
    left_over = [file for file in others if plots.stamp(file.read_bytes())]  # of results that are gone
    stale = [] if text == new_text else [options.readme]
    stale += [file for file, svg in drawn.items() if not (file.is_file() and plots.is_of(file.read_bytes(), svg))]
    if options.check:
        if stale or left_over:
            names = ", ".join(map(str, [*stale, *left_over]))
            raise BenchmarkError(f"not what {options.results} says: {names}; run `narrows bench report`")
        return 0
    durable.make_directory(options.plots)
    for file in stale:
        durable.write_file(file, new_text.encode() if file == options.readme else drawn[file])
        print(f"wrote {file}")
    for file in left_over:
        file.unlink()
        print(f"deleted {file}")
    if not stale and not left_over:
        print("all up to date")
    return 0


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None


def run_compare(options: argparse.Namespace) -> int:
    """Compares, and prints what differs."""
    from narrows_tools.bench import compare, results

    systems = (options.systems[0], options.systems[1]) if options.systems else None
    found = compare.compare(results.load(options.first), results.load(options.second), systems)
    worse = found.count("worse")
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        lines = compare.table(found, everything=options.all)
        if len(lines) > 1:
            print_rows(lines)
            print()
        few = found.count("too few rounds")
        print(
            f"{found.count('better')} better, {worse} worse, {found.count('noise')} noise"
            + (f", {few} with too few rounds (at least {compare.MIN_ROUNDS} are needed)" if few else "")
        )
        for note in compare.notes(found):
            print(note, file=sys.stderr)
    return 1 if worse and options.fail_on_worse else 0
