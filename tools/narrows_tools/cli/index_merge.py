"""`narrows index convert` and `narrows index merge`: vectors that were encoded once, held otherwise or together."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from narrows_tools.cli.index_target import add_target_arguments, print_report, target
from narrows_tools.cli.index_vectors import add_vector_arguments

if TYPE_CHECKING:
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
