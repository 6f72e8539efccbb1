"""The GPU, checked and measured: one command, one table.

    python -m benchmarks.gpu --bundle base/bundle --checkpoint base/checkpoint --out gpu.json
    python -m benchmarks.gpu --device cpu --quick --bundle small.bundle       # the same code, where there is no GPU

Each section runs in a process of its own, so that one that crashes, hangs or spoils the card costs its own rows alone;
what a section does not use of its time is left to those that follow. Messages go to standard error; the table comes
last, on standard output; --out is written anew after each section. Exit status 1: a part of a section failed. A goal
that is missed is no failure: the table says so.

benchmarks/notes/gpu.md says how to get this onto a GPU machine without a network.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.gpu_parts import child, rows, vectors
from benchmarks.gpu_parts.memory import Peak
from benchmarks.gpu_parts.rows import FULL, QUICK, Floors, Order, Row

# Seconds of a budget of 450; what one leaves is the next one's.
SECTIONS = {"environment": 30, "floors": 30, "correctness": 60, "encoder": 70, "search": 120, "end_to_end": 140}
WITH_MEMORY = ("correctness", "encoder", "search", "end_to_end")
INDEX_ROOM = 4e9  # beside the vectors: an index that is served


def main() -> int:
    """Runs the sections and prints the table."""
    options = _options()
    sizes = QUICK if options.quick else FULL
    largest_bytes = 4.0 * max(sizes.vectors) * sizes.dim * vectors.ROOM + INDEX_ROOM
    found: list[Row] = []
    floors = Floors()
    begin_s = time.time()
    with tempfile.TemporaryDirectory(dir=options.scratch or vectors.roomy_folder(largest_bytes)) as scratch:
        share_s = 0.0
        for name in options.sections:
            share_s += SECTIONS[name]
            order = Order(
                section=name,
                device=options.device,
                sizes=sizes,
                bundle=options.bundle,
                checkpoint=options.checkpoint,
                questions=options.questions,
                passages=options.passages,
                scratch=Path(scratch),
                rows_file=Path(scratch) / f"{name}.jsonl",
                end_s=begin_s + options.budget_s * share_s / sum(SECTIONS[each] for each in options.sections),
                floors=floors,
            )
            found += _section(order)
            if name == "floors":
                floors = rows.floors_of(found)
            if options.out:
                options.out.write_text(_json(options, found, time.time() - begin_s), "utf-8")
    print(f"{options.device}{', quick' if options.quick else ''}: {time.time() - begin_s:.0f} s")
    print(rows.table(found), flush=True)
    return int(any(row.outcome == "failed" for row in found))


def _section(order: Order) -> list[Row]:
    """The rows of a section, and the most memory that was used meanwhile."""
    started_s = time.time()
    print(f"=== {order.section}: up to {order.end_s - started_s:.0f} s", file=sys.stderr, flush=True)
    with Peak(order.device) as peak:
        found = child.run_apart(order)
    if order.section in WITH_MEMORY:
        what = f"most in use during {order.section}"
        gib = peak.most_bytes / 2**30 if peak.most_bytes else None
        counted = next((row.value for row in found if row.what.startswith("memory on the card")), None)
        row = Row("memory", what, gib, "GiB", counted, "at most" if counted else "", peak.source)
        found.append(row if gib else replace(row, remark=peak.why_none, outcome="skipped"))
    found.append(Row(order.section, "the section", time.time() - started_s, "s"))
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="towers to measure; without one only card and search are")
    parser.add_argument(
        "--checkpoint", type=Path, help="the same in PyTorch: DIR/question_encoder, DIR/context_encoder"
    )
    parser.add_argument("--questions", type=Path, help="one a line, for correctness (default: the demo's)")
    parser.add_argument("--passages", type=Path, help="a passage file, for correctness (default: the demo's)")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu (default: cuda:0)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME")
    parser.add_argument("--budget-s", type=float, default=float(sum(SECTIONS.values())), metavar="S")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the program")
    parser.add_argument("--scratch", type=Path, help="folder for large files (default: memory, if there is enough)")
    parser.add_argument("--out", type=Path, help="file for the rows as JSON")
    options = parser.parse_args()
    if not re.fullmatch(r"cpu|cuda:\d{1,3}", options.device):
        parser.error("--device must be cpu or cuda:N")
    return options


def _json(options: argparse.Namespace, found: list[Row], took_s: float) -> str:
    """Everything in the table, for a program."""
    listed = [asdict(row) | {"ratio": row.ratio, "met": row.met} for row in found]
    head = {"device": options.device, "quick": options.quick, "took_s": took_s, "command": sys.argv[1:]}
    return json.dumps(head | {"rows": listed}, indent=1)


if __name__ == "__main__":
    sys.exit(main())
