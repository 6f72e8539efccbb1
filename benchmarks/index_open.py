"""How soon a large index is ready: opened in full, opened by its stamp, looked up by id, and served.

The index is made through the code that makes every index, but for the tokenizer and the encoder: the vectors are
random, and each passage has a title and about 600 bytes of text. It is deleted at the end unless --keep is given; an
index that is there already is measured, and stays.
`make demo` makes a bundle.
"""

import argparse
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks import random_index
from narrows.bundle import Bundle, open_bundle
from narrows.index.opened import OpenIndex, open_index
from narrows.process import available_cores
from narrows_export.steps import NARROWS

LOOKUPS = 2000

T = TypeVar("T")


def main() -> int:
    """Makes the index, measures, prints a table, and writes JSON where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--bundle", type=Path, default=Path(".demo/minilm.bundle"), help="whose index it pretends to be"
    )
    parser.add_argument("--index", type=Path, default=Path(".demo/large.index"), help="where to make it")
    parser.add_argument("--passages", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--keep", action="store_true", help="do not delete the index that was made")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args()
    path: Path = options.index
    bundle = open_bundle(options.bundle)
    results = {"passages": float(options.passages), "dim": float(options.dim)}
    is_new = not path.exists()
    if is_new:
        results |= random_index.make(path, bundle, options.passages, options.dim)
        results["memory while making it, MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    try:
        _measure(path, bundle, options.bundle, results)
    finally:
        if is_new and not options.keep:
            shutil.rmtree(path)
    for name, value in results.items():
        print(f"{name:<44}{value:>14.2f}")
    if options.out:
        options.out.write_text(json.dumps({"cores": available_cores(), "results": results}, indent=1))
    return 0


def _measure(path: Path, bundle: Bundle, bundle_path: Path, results: dict[str, float]) -> None:
    for stamp in path.glob(".*.verified"):
        stamp.unlink()
    threads = available_cores()
    for name in ("first open, in full, s", "second open, by its stamp, s"):
        opened = _timed(results, name, lambda: open_index(path, bundle, threads, "stamp"))
    _timed(results, "opened with --verify full, s", lambda: open_index(path, bundle, threads, "full"))
    _look_up(opened, results)
    query = np.random.default_rng(1).standard_normal((1, opened.vectors.dim)).astype(np.float32)
    for name in ("first search, k 100, s", "second search, k 100, s"):
        _timed(results, name, lambda: opened.vectors.search(query, 100))
    _timed(results, "served, by its stamp, s", lambda: _serve(path, bundle_path, "stamp"))
    _timed(results, "served, --verify full, s", lambda: _serve(path, bundle_path, "full"))


def _look_up(opened: OpenIndex, results: dict[str, float]) -> None:
    count = len(opened.passages)
    ids = [f"passage-{number:08d}" for number in np.random.default_rng(2).integers(0, count, LOOKUPS)]
    started_s = time.perf_counter()
    found = [opened.passages.find(passage_id) for passage_id in ids]
    results["id looked up, us"] = (time.perf_counter() - started_s) / LOOKUPS * 1e6
    assert None not in found


def _serve(path: Path, bundle: Path, verify: str) -> None:
    """Starts a server and waits until it is ready."""
    command = [*NARROWS, "serve", "--bundle", str(bundle), "--index", str(path), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, "--verify", verify], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  (our own command)
        assert process.stdout is not None
        if "serving on" not in process.stdout.readline():
            raise SystemExit("the server did not start; its messages are above")
        process.send_signal(signal.SIGKILL)


def _timed(results: dict[str, float], name: str, run: Callable[[], T]) -> T:
    started_s = time.perf_counter()
    found = run()
    results[name] = time.perf_counter() - started_s
    return found


if __name__ == "__main__":
    sys.exit(main())
