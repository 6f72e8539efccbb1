"""`make bench`: what one served question costs beside the encoder alone, on this machine, in about a minute.

Closed loop: each client sends its next question when it has the answer, so these are no figures under a given load.
The encoder alone is measured in the same run, between the rounds, on the same cores. Every question is distinct.
Run `make demo` first: it makes the bundle and the index.
"""

import argparse
import functools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np

from narrows import Client
from narrows.bundle import open_bundle
from narrows.towers import Tower, available_cores, load_towers
from narrows_export import corpus
from narrows_export.steps import running_server

ROUNDS = 5
ALONE, LOADED, CLIENTS = 60, 240, 16


def main() -> int:
    """Measures, prints a table, and writes JSON beside it where --out says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".demo"), help="where `make demo` keeps bundle and index")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args()
    bundle, index = options.work / "minilm.bundle", options.work / "demo.index"
    tower = load_towers(open_bundle(bundle), "fp32", available_cores(), ["question_encoder"])["question_encoder"]
    with running_server(bundle, index) as address:
        rounds = [_round(tower, address) for _ in range(ROUNDS)]
    results = {name: _median_and_range([found[name] for found in rounds]) for name in rounds[0]}
    for name, (median, low, high) in results.items():
        print(f"{name:<42}{median:>10.2f}   ({low:.2f} to {high:.2f})")
    if options.out:
        environment = {"python": platform.python_version(), "machine": platform.processor(), "cores": available_cores()}
        options.out.write_text(json.dumps({"environment": environment, "rounds": ROUNDS, "results": results}, indent=1))
    return 0


_numbers = count()


def _questions(wanted: int) -> list[str]:
    """Distinct questions of ordinary length."""
    texts = [question.question for question in corpus.questions("en")]
    return [f"{texts[number % len(texts)][:-1]} {number}?" for number in (next(_numbers) for _ in range(wanted))]


def _round(tower: Tower, address: str) -> dict[str, float]:
    found = {}
    alone_ms = _times_ms(lambda texts: tower.encoder.encode([t.ids for t in tower.tokenizer.questions(texts)]), ALONE)
    found["encoder alone, one question, p50 ms"] = statistics.median(alone_ms)
    with Client(address) as client:
        search = functools.partial(client.search, k=10)
        served_ms = _times_ms(search, ALONE)
        found["served, one client, p50 ms"] = statistics.median(served_ms)
        found["served, one client, p99 ms"] = float(np.percentile(served_ms, 99))
        texts = _questions(LOADED)
        started_s = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            loaded_ms = list(pool.map(lambda text: _ms(search, text), texts))
        elapsed_s = time.perf_counter() - started_s
    found[f"served, {CLIENTS} clients (closed loop), questions/s"] = LOADED / elapsed_s
    found[f"served, {CLIENTS} clients (closed loop), p99 ms"] = float(np.percentile(loaded_ms, 99))
    ids = sorted((text.ids for text in tower.tokenizer.questions(_questions(LOADED))), key=len)
    started_s = time.perf_counter()
    for start in range(0, LOADED, 8):
        tower.encoder.encode(ids[start : start + 8])
    found["encoder alone, batches of 8, questions/s"] = LOADED / (time.perf_counter() - started_s)
    return found


def _times_ms(run: Callable[[list[str]], object], times: int) -> list[float]:
    return [_ms(run, text) for text in _questions(times)]


def _ms(run: Callable[[list[str]], object], text: str) -> float:
    started_s = time.perf_counter()
    run([text])
    return (time.perf_counter() - started_s) * 1e3


def _median_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


if __name__ == "__main__":
    sys.exit(main())
