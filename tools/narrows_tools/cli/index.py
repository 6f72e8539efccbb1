"""`narrows index build`, `narrows index verify` and `narrows index info`."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.settings import ABOUT
from narrows_tools.cli import index_import, index_merge
from narrows_tools.cli.arguments import check_output, device, natural, threads
from narrows_tools.cli.index_target import add_target_arguments, print_report, target
from narrows_tools.cli.index_vectors import (
    add_vector_arguments,
    described,
    described_recall,
    described_skips,
)

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG = """passage files, plain or gzipped:
  *.tsv     DPR's psgs_w100.tsv: a header `id text title`, tab-separated, csv-quoted
  *.jsonl   one object a line: {"id": "...", "title": "...", "text": "..."}

examples:
  narrows index build --bundle nq.bundle --passages psgs_w100.tsv.gz --out wiki.index
  narrows index build --bundle nq.bundle --passages new.jsonl --out wiki.index --replace --skip-bad
  narrows index build --bundle nq.bundle --passages psgs_w100.tsv.gz --out wiki.index \\
    --preset hnsw --questions nq-dev.qa.csv --target-recall 0.98"""
SKIP_BAD = """leave bad rows out (wrong columns, invalid UTF-8, malformed JSON, empty passage, empty, over-long or
duplicate id), count them and name the first few; a damaged gzip file, and a TSV row whose quotation mark is not closed
on its line, stay errors"""


def add(commands: "Commands") -> None:
    """Adds the commands and their arguments."""
    group = commands.add_parser("index", help="build an index of passages, check it, or describe it")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")

    build = actions.add_parser(
        "build",
        help="encode a file of passages into an index",
        description="Encodes passages with a bundle's context encoder and writes an index: exact (flat), unless "
        "another preset is asked for. The file is checked whole before encoding begins. A build that was stopped, in "
        "whatever way, goes on where it was when the same command is started again, to the same result.",
        epilog=EPILOG,
    )
    build.add_argument("--bundle", required=True, type=Path, help="bundle whose context encoder to use")
    build.add_argument(
        "--passages", required=True, type=Path, metavar="FILE", help="passages: .tsv or .jsonl, or .gz of them"
    )
    build.add_argument("--skip-bad", action="store_true", help=SKIP_BAD)
    build.add_argument(
        "--truncated-report",
        type=Path,
        metavar="FILE",
        help="also write the passages that were cut there, as JSON lines (id, tokens, kept); the index holds them in "
        "truncated.jsonl",
    )
    build.add_argument(
        "--variant",
        default="fp32",
        metavar="V",
        help="context encoder's variant (default: fp32); the server then uses the same one for passages",
    )
    build.add_argument(
        "--device",
        default="auto",
        metavar="|".join(ABOUT["device"].choices),
        type=device,
        help="where to encode (default: auto, the first GPU if CUDA loads, else the CPU)",
    )
    build.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="only the I-th of N equal parts of the passages, from 1; `narrows index merge` puts the parts together",
    )
    add_target_arguments(build)
    add_vector_arguments(build)
    build.set_defaults(run=run_build)

    index_merge.add(actions)
    index_import.add(actions)

    verify = actions.add_parser(
        "verify",
        help="check an index in full",
        description="Reads every file against its hash, checks that counts, id tables and vectors are consistent, and "
        "encodes a sample of the passages again. Exit status 1, and a list, if anything is wrong.",
        epilog="example: narrows index verify wiki.index --bundle nq.bundle --sample 1000",
    )
    verify.add_argument("index", type=Path, metavar="INDEX")
    verify.add_argument("--bundle", required=True, type=Path, help="bundle that filled the index")
    verify.add_argument(
        "--sample", type=natural, default=200, metavar="N", help="passages to encode again (default: 200)"
    )
    verify.add_argument("--seed", type=natural, default=0, help="which passages the sample holds (default: 0)")
    verify.add_argument("--threads", type=threads, default=0, metavar="N", help="encoder threads (default: all cores)")
    verify.add_argument("--json", action="store_true", help="print the report as JSON")
    verify.set_defaults(run=run_verify)

    info = actions.add_parser(
        "info",
        help="describe an index",
        description="Shows what an index holds, which tower filled it, and which rows were cut or skipped.",
    )
    info.add_argument("index", type=Path, metavar="INDEX")
    info.add_argument("--json", action="store_true", help="print the manifest as JSON")
    info.set_defaults(run=run_info)


def shard(text: str) -> tuple[int, int]:
    """Which part of how many: I/N."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 2/4")
    return int(match[1]), int(match[2])


def run_build(options: argparse.Namespace) -> int:
    """Builds, with progress on stderr and the report on stdout."""
    from narrows import variants
    from narrows.bundle import open_bundle
    from narrows.device import choose as choose_device
    from narrows.durable import write_file
    from narrows.index.build import BuildRequest, build_index
    from narrows.index.shard import Shard
    from narrows.index.store import TRUNCATED
    from narrows.index.unfinished import BUILD, read_journal
    from narrows_tools.cli.index_progress import Bars

    if options.truncated_report:
        check_output(options.truncated_report)
    goal = target(options)
    request = BuildRequest(
        passages=options.passages,
        variant=options.variant,
        skip_bad=options.skip_bad,
        device=choose_device(options.device, options.variant),
        shard=Shard(*options.shard) if options.shard else None,
    )
    bundle = open_bundle(options.bundle)
    warning = variants.choose(bundle.manifest, options.variant, "").warning
    bars = Bars()
    try:
        report = build_index(bundle, request, goal, bars)
    except (KeyboardInterrupt, OSError):  # a full disk is one
        bars.close()
        if journal := read_journal(options.out / BUILD):
            encoded = f"{journal.encoded.rows} of {journal.count} passages are encoded and kept"
            print(f"{encoded}: the same command goes on from there (--restart begins anew)", file=sys.stderr)
        raise
    finally:
        bars.close()
    if warning:
        print(f"WARNING: this index will be served by default with {warning}", file=sys.stderr)
    if options.truncated_report:
        write_file(options.truncated_report, (options.out / report.generation / TRUNCATED).read_bytes())
    speed = f"{report.passages_per_s:.0f} passages/s on {request.device.name}"
    print_report(
        report, options.json, (speed, _cut(report.truncated_count, report.cut_token_count, report.token_count))
    )
    return 0


def _cut(passages: int, cut_tokens: int, tokens: int) -> str:
    return f"{passages} passages were cut to the tower's length ({cut_tokens / max(tokens, 1):.2%} of all tokens)"


def run_verify(options: argparse.Namespace) -> int:
    """Checks an index; prints what was found."""
    from tqdm import tqdm

    from narrows.bundle import open_bundle
    from narrows.index.verify import verify_index
    from narrows.process import available_cores

    bundle = open_bundle(options.bundle)
    with tqdm(desc="verifying", unit=" steps", file=sys.stderr) as bar:

        def step(what: str) -> None:
            bar.set_description(what)
            bar.update()

        threads = options.threads or available_cores()
        report = verify_index(options.index, bundle, options.sample, options.seed, threads, step)
    if options.json:
        print(json.dumps({"ok": not report.failures, **asdict(report)}))
    else:
        for failure in report.failures:
            print(f"FAILED {failure}")
        if report.sample:
            print(
                f"{report.sample} passages encoded again: {report.identical} bit for bit as stored, max abs error "
                f"{report.max_abs_error:.1e}, lowest cosine {report.lowest_cosine:.6f} (allowed: {report.allowed})"
            )
        if not report.failures:
            print(f"{options.index} ({report.generation}) is whole: {report.count} passages")
    return 1 if report.failures else 0


def run_info(options: argparse.Namespace) -> int:
    """Prints the manifest of the current generation."""
    from narrows.errors import IndexFileError
    from narrows.index.store import read_manifest
    from narrows.index.unfinished import BUILD, read_journal

    generation, manifest = read_manifest(options.index)
    if options.json:
        print(json.dumps({"generation": generation, **asdict(manifest)}))
        return 0
    size_bytes = sum(file.size_bytes for file in manifest.files.values())
    rows = {
        "name": manifest.name,
        "generation": generation,
        "passages": f"{manifest.count} from {manifest.source}",
        "cut": _cut(manifest.truncated_count, manifest.cut_token_count, manifest.token_count),
        "vectors": f"{described(manifest.plan, manifest.dim)}, {manifest.metric}"
        + (f", {manifest.vector_bytes:,.0f} bytes each" if manifest.vector_bytes else ""),
        "filled by": f"bundle {manifest.bundle}, variant {manifest.variant}, tower_id {manifest.tower_id}",
        "size": f"{size_bytes / 2**20:.1f} MiB",
        "made by": manifest.created_by,
    }
    if not manifest.plan.is_exact or manifest.recall:
        rows["recall"] = described_recall(manifest.recall)
    try:
        if journal := read_journal(options.index / BUILD):
            rows["unfinished"] = (
                f"{journal.encoded.rows} of {journal.count} passages of the next generation are encoded"
            )
    except IndexFileError as error:  # of the next generation; this one is none the worse
        rows["unfinished"] = f"the next generation, and it cannot go on: {error}"
    if manifest.truncated_count:
        rows["cut"] += f"; see {options.index / generation / 'truncated.jsonl'}"
    for name, value in rows.items():
        print(f"{name:<11} {value}")
    for line in described_skips(manifest.skipped):
        print(f"{'skipped':<11} {line}")
    return 0
