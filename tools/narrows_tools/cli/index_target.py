"""What the commands that make an index have in common: where to make it and how, and what they print of it."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import threads
from narrows_tools.cli.index_vectors import described, described_recall, described_skips, tuning, wanted

if TYPE_CHECKING:
    from narrows.index.target import BuildReport, Target


def add_target_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments that say where to make an index, and how."""
    command.add_argument("--out", required=True, type=Path, metavar="INDEX", help="directory to write")
    command.add_argument(
        "--name", help="the index's name in requests and replies (default: the name of --out without suffix)"
    )
    command.add_argument("--replace", action="store_true", help="make the next generation of an index that exists")
    command.add_argument("--restart", action="store_true", help="throw away what was stopped in --out, and begin anew")
    command.add_argument("--threads", type=threads, default=0, metavar="N", help="threads (default: all cores)")
    command.add_argument("--json", action="store_true", help="print the report as JSON")


def target(options: argparse.Namespace) -> "Target":
    """What the arguments ask for."""
    from narrows.index.target import Target
    from narrows.process import available_cores

    return Target(
        out=options.out,
        name=options.name or options.out.resolve().stem,
        threads=options.threads or available_cores(),
        replace=options.replace,
        restart=options.restart,
        wanted=wanted(options),
        tuning=tuning(options),
    )


def print_report(
    report: "BuildReport", as_json: bool, notes: Sequence[str] = (), also: Mapping[str, object] = MappingProxyType({})
) -> None:
    """Prints what was made, on stdout: `notes` in its first line, or `also` in the JSON."""
    if as_json:
        print(json.dumps({**asdict(report), **also}))
        return
    made = (
        f"wrote {report.index} ({report.generation}): {report.count} passages of "
        f"{described(report.plan, report.dim)}, {report.size_bytes / 2**20:.1f} MiB"
    )
    print("; ".join((made, *notes)))
    if report.recall:
        print(f"recall: {described_recall(report.recall)}")
    for line in described_skips(report.skipped):
        print(f"skipped {line}")
