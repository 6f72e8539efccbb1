"""`narrows index convert` and `narrows index merge`: vectors that were encoded once, held otherwise or together."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import threads
from narrows_tools.cli.index_vectors import (
    add_vector_arguments,
    described,
    described_recall,
    described_skips,
    tuning,
    wanted,
)

if TYPE_CHECKING:
    from narrows.index.target import BuildReport, Target

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(actions: "Commands") -> None:
    """Adds both to the actions of `narrows index`."""
    convert = actions.add_parser(
        "convert",
        help="hold an index's vectors another way, without encoding again",
        description="Makes an index of the same passages and vectors with another preset: in minutes, where encoding "
        "took hours. The source must hold its vectors as they were encoded (flat, or --rescore fp32); its files are "
        "linked, not copied, where the file system can.",
        epilog="example:\n  narrows index convert wiki.index --bundle nq.bundle --out hnsw.index --preset hnsw \\\n"
        "    --questions nq-dev.qa.csv --target-recall 0.98",
    )
    convert.add_argument("source", type=Path, metavar="INDEX")
    convert.set_defaults(run=lambda options: _run(options, [options.source]))

    merge = actions.add_parser(
        "merge",
        help="make one index of several, such as those of `narrows index build --shard`",
        description="Makes one index of the passages of several, in their order, without encoding again. They must "
        "have been filled by the same context encoder, and hold their vectors as they were encoded (flat, or --rescore "
        "fp32); no id may be in two of them.",
        epilog="example:\n  narrows index merge part1.index part2.index --bundle nq.bundle --out wiki.index",
    )
    merge.add_argument("sources", type=Path, nargs="+", metavar="INDEX")
    merge.set_defaults(run=lambda options: _run(options, options.sources))

    for command in (convert, merge):
        command.add_argument("--bundle", required=True, type=Path, help="bundle that filled it")
        add_target_arguments(command)
        add_vector_arguments(command)


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


def _run(options: argparse.Namespace, sources: Sequence[Path]) -> int:
    from narrows.bundle import open_bundle
    from narrows.index.merge import merge_indexes
    from narrows_tools.cli.index_progress import Bars

    bars = Bars()
    try:
        report = merge_indexes(open_bundle(options.bundle), sources, target(options), bars)
    finally:
        bars.close()
    print_report(report, options.json)
    return 0


def print_report(report: "BuildReport", as_json: bool, more: Mapping[str, object] = MappingProxyType({})) -> None:
    """Prints what was made, on stdout; `more` goes into the JSON."""
    if as_json:
        print(json.dumps({**asdict(report), **more}))
        return
    print(
        f"wrote {report.index} ({report.generation}): {report.count} passages of "
        f"{described(report.plan, report.dim)}, {report.size_bytes / 2**20:.1f} MiB"
    )
    if report.recall:
        print(f"recall: {described_recall(report.recall)}")
    for line in described_skips(report.skipped):
        print(f"skipped {line}")
