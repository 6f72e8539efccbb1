"""Recall against queries a second: every preset, FAISS called directly, hnswlib and usearch, one question at a time.

    python -m benchmarks.search.run --index wiki.index --bundle nq.bundle --questions dev.jsonl --out real.json
    python -m benchmarks.search.run --synthetic 100000 --dim 768 --out synthetic.json

All are built first; then each round goes through every setting of each, so that what the machine does meanwhile meets
all of them alike. Recall counts by the exact score. With --scratch what is built is kept, and a run that was stopped
builds what is missing. Peers that are not installed are left out, and said so: pip install -r
benchmarks/search/requirements.txt
"""

import argparse
import contextlib
import gc
import importlib.metadata
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.search import data as vectors
from benchmarks.search.data import Data
from benchmarks.search.systems import PEERS, Faiss, Narrows, System, installed
from narrows.index.presets import PRESETS
from narrows.process import available_cores
from narrows_tools.bench.environment import fingerprint


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of one system. Rates are of each round."""

    system: str
    effort: int
    recall: float  # of the k best
    recall_10: float  # of the 10 best, among the k found
    queries_per_s: tuple[float, ...]
    build_s: float
    vector_bytes: float


def main() -> int:
    """Measures, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, help="a flat index of real vectors")
    parser.add_argument("--bundle", type=Path, help="its bundle")
    parser.add_argument("--questions", type=Path, help="questions for it")
    parser.add_argument("--synthetic", type=int, metavar="N", help="so many synthetic vectors instead")
    parser.add_argument("--dim", type=int, default=768, help="of the synthetic ones (default: 768)")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=PEERS)
    parser.add_argument("--queries", type=int, default=500, metavar="N", help="questions (default: 500)")
    parser.add_argument("-k", type=int, default=100, help="passages of each (default: 100)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="at most, for a setting in a round (default: 3)")
    parser.add_argument("--scratch", type=Path, help="folder that keeps what is built (default: a temporary one)")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    threads = available_cores()
    with contextlib.ExitStack() as stack:
        scratch = options.scratch or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        scratch.mkdir(parents=True, exist_ok=True)
        if options.synthetic:
            found = vectors.synthetic(scratch, options.synthetic, options.dim, options.queries, options.k, threads)
        elif options.index and options.bundle and options.questions:
            found = vectors.real(options.index, options.bundle, options.questions, options.queries, options.k, threads)
        else:
            parser.error("give --index, --bundle and --questions, or --synthetic N")
        systems = _built(found, options.presets, options.peers, scratch, threads)
        points = _measured(found, systems, options.rounds, options.seconds)
    result = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": found.name,
        "k": found.exam.k,
        "queries": len(found.exam.queries),
        "rounds": options.rounds,
        "environment": fingerprint(None, None, [], [], vectors.SEED) | {"peers": _versions(options.peers)},
        "points": [asdict(point) for point in points],
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _versions(peers: Sequence[str]) -> dict[str, str]:
    modules = {PEERS[peer].module for peer in peers if installed(peer)}
    return {module: importlib.metadata.version(module) for module in sorted(modules)}


def _built(found: Data, presets: Sequence[str], peers: Sequence[str], scratch: Path, threads: int) -> list[System]:
    systems: list[System] = []
    for preset in tqdm(presets, desc="building", file=sys.stderr):
        made = Narrows(preset, found, scratch / preset, threads)
        print(f"{made.name}: built in {made.build_s:.1f} s", file=sys.stderr)
        systems += [made, Faiss(made)]
    for peer in peers:
        if not installed(peer):
            print(f"{peer} is not installed: left out", file=sys.stderr)
            continue
        systems.append(PEERS[peer].system(found, scratch / peer, threads))
        print(f"{peer}: built in {systems[-1].build_s:.1f} s", file=sys.stderr)
    return systems


def _measured(found: Data, systems: Sequence[System], rounds: int, seconds: float) -> list[Point]:
    settings = [(system, effort) for system in systems for effort in system.efforts()]
    rates: dict[tuple[str, int], list[float]] = {}
    recalls = {}
    gc.disable()
    for number in tqdm(range(rounds), desc="rounds", file=sys.stderr):
        for system, effort in settings:
            system.use(effort)
            if number == 0:  # and warms up
                recalls[system.name, effort] = _recalls(found, system)
            rates.setdefault((system.name, effort), []).append(_rate(found, system, seconds))
    return [
        Point(
            system=system.name,
            effort=effort,
            recall=recalls[system.name, effort][0],
            recall_10=recalls[system.name, effort][1],
            queries_per_s=tuple(round(rate, 2) for rate in rates[system.name, effort]),
            build_s=round(system.build_s, 2),
            vector_bytes=round(system.size_bytes / found.file.count, 1),
        )
        for system, effort in settings
    ]


def _recalls(found: Data, system: System) -> tuple[float, float]:
    exam = found.exam
    best = exam.exact.search(exam.queries, min(10, exam.k)).scores[:, -1]
    shares = []
    for query, threshold, best_threshold in zip(exam.queries, exam.thresholds, best, strict=True):
        rows = system.search(query[None], exam.k)[0]
        scores = exam.exact.scores(query, rows[rows >= 0])
        shares.append(((scores >= threshold).sum() / exam.k, min(1.0, (scores >= best_threshold).sum() / 10)))
    return tuple(np.mean(shares, axis=0).round(5).tolist())


def _rate(found: Data, system: System, seconds: float) -> float:
    """Questions a second, one after another."""
    started_s = time.perf_counter()
    count = 0
    for query in found.exam.queries:
        system.search(query[None], found.exam.k)
        count += 1
        if time.perf_counter() - started_s > seconds:
            break
    return count / (time.perf_counter() - started_s)


if __name__ == "__main__":
    sys.exit(main())
