"""`narrows index build` and `narrows index info`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

FORMATS = """passage files, plain or gzipped:
  *.tsv     DPR's psgs_w100.tsv: a header `id text title`, tab-separated, csv-quoted
  *.jsonl   one object a line: {"id": "...", "title": "...", "text": "..."}"""


def add(commands: "Commands") -> None:
    """Adds the commands and their arguments."""
    group = commands.add_parser("index", help="build an index of passages, or describe one")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")

    build = actions.add_parser(
        "build",
        help="encode a file of passages into an index",
        description="Encodes passages with a bundle's context encoder and writes an exact (flat) index. The file is "
        "checked whole before encoding begins.",
        epilog=FORMATS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("--bundle", required=True, type=Path, help="bundle whose context encoder to use")
    build.add_argument(
        "--passages", required=True, type=Path, metavar="FILE", help="passages: .tsv or .jsonl, or .gz of them"
    )
    build.add_argument("--out", required=True, type=Path, metavar="INDEX", help="directory to write")
    build.add_argument(
        "--name", help="the index's name in requests and replies (default: the name of --out without suffix)"
    )
    build.add_argument("--replace", action="store_true", help="build the next generation of an index that exists")
    build.add_argument("--threads", type=_count, default=0, metavar="N", help="encoder threads (default: all cores)")
    build.add_argument("--json", action="store_true", help="print the report as JSON")
    build.set_defaults(run=run_build)

    info = actions.add_parser("info", help="describe an index")
    info.add_argument("index", type=Path, metavar="INDEX")
    info.add_argument("--json", action="store_true", help="print the manifest as JSON")
    info.set_defaults(run=run_info)


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 1024:
        raise argparse.ArgumentTypeError("must be 0 to 1024")
    return number


def run_build(options: argparse.Namespace) -> int:
    """Builds, with progress on stderr and the report on stdout."""
    from tqdm import tqdm

    from narrows.bundle import open_bundle
    from narrows.index.build import BuildRequest, Progress, build_index
    from narrows.towers import DEFAULT_VARIANT, available_cores

    class Bars(Progress):
        """A count while reading; the estimate; then passages/s and ETA while encoding."""

        def __init__(self) -> None:
            self.bar = tqdm(desc="reading", unit=" passages", file=sys.stderr)

        def reading(self, passages: int) -> None:
            self.bar.update(passages - self.bar.n)

        def estimated(self, passages: int, seconds: float) -> None:
            self.bar.close()
            minutes, rest = divmod(round(seconds), 60)
            print(f"encoding {passages} passages should take about {minutes} min {rest} s", file=sys.stderr)
            self.bar = tqdm(desc="encoding", total=passages, unit=" passages", file=sys.stderr, smoothing=0.05)

        def encoded(self, passages: int) -> None:
            self.bar.update(passages)

    request = BuildRequest(
        passages=options.passages,
        out=options.out,
        name=options.name or options.out.resolve().stem,
        variant=DEFAULT_VARIANT,
        threads=options.threads or available_cores(),
        replace=options.replace,
    )
    bars = Bars()
    try:
        report = build_index(open_bundle(options.bundle), request, bars)
    finally:
        bars.bar.close()
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        print(
            f"wrote {report.index} ({report.generation}): {report.count} passages of {report.dim} dimensions, "
            f"{report.size_bytes / 2**20:.1f} MiB; {report.passages_per_s:.0f} passages/s; "
            f"{report.truncated_count} passages were cut to the tower's length"
        )
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Prints the manifest of the current generation."""
    from narrows.index.store import read_manifest

    generation, manifest = read_manifest(options.index)
    if options.json:
        print(json.dumps({"generation": generation, **asdict(manifest)}))
        return 0
    size_bytes = sum(file.size_bytes for file in manifest.files.values())
    rows = {
        "name": manifest.name,
        "generation": generation,
        "passages": f"{manifest.count} from {manifest.source} ({manifest.truncated_count} cut to the tower's length)",
        "vectors": f"{manifest.dim} dimensions, {manifest.factory}, {manifest.metric}",
        "filled by": f"bundle {manifest.bundle}, variant {manifest.variant}, tower_id {manifest.tower_id}",
        "size": f"{size_bytes / 2**20:.1f} MiB",
        "made by": manifest.created_by,
    }
    for name, value in rows.items():
        print(f"{name:<11} {value}")
    return 0
