"""Section 6: a real server over a million random passages, asked by real clients; by the number of its fronts."""

import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import random_index
from benchmarks.gpu_parts.clients import Answers, Client, K, Load, ask, clients
from benchmarks.gpu_parts.rows import Bench, Kind
from benchmarks.gpu_parts.towers import VARIANTS
from narrows import gpu_loading
from narrows.bundle import Bundle, open_bundle
from narrows.device import CudaDevice, choose
from narrows.process import available_cores
from narrows.tokenizer import load_tokenizer
from narrows_tools.bench.pinned import Cores, Layout
from narrows_tools.bench.servers import narrows_server
from narrows_tools.bench.traffic import Traffic, single_token_words

QUESTIONS = 16  # of a message
TEXTS = 4096
IN_FLIGHT_MESSAGES, IN_FLIGHT_SINGLES = 64, 512  # half of what a server lets wait
HALF = 0.5
BATCHED_PER_S, SINGLES_PER_S, P99_MS, ALONE_MS = 20_000.0, 8000.0, 10.0, 3.0  # goals, on one H100
STARTS_S, LOADS = 15.0, 5  # of a server; and what follows it


def run(bench: Bench) -> None:
    """Makes the index, and serves it with each number of fronts."""
    order = bench.order
    if order.bundle is None:
        bench.skip("everything", "no --bundle was given")
        return
    device, bundle = choose(order.device), open_bundle(order.bundle, "stamp")
    is_gpu = isinstance(device, CudaDevice)
    half, full = VARIANTS
    variant = half if is_gpu and half in bundle.tower("question_encoder").variants else full
    index = order.scratch / "served.index"
    bench.say(f"an index of {order.sizes.served:,} passages")
    start_s = time.monotonic()
    try:
        random_index.make(index, bundle, order.sizes.served, bundle.manifest.dim, variant, "a passage")
        bench.row(f"index of {order.sizes.served:,} random passages made", time.monotonic() - start_s, "s")
        if is_gpu:
            needed = gpu_loading.towers_need(bundle, {"question_encoder": variant, "context_encoder": variant})
            needed += gpu_loading.vectors_need(order.sizes.served, bundle.manifest.dim, "fp16")
            counted = sum(need.size_bytes for need in needed)
            bench.row("memory on the card, as counted beforehand", counted / 2**30, "GiB")
        needed_s = LOADS * order.sizes.load_s + (STARTS_S if is_gpu else 0.0)
        for fronts in order.sizes.frontends:
            part = partial(_served, bench, bundle, index, fronts, variant)
            bench.attempt(f"{fronts} fronts", part, needed_s=needed_s)
    finally:
        shutil.rmtree(index, ignore_errors=True)


def _served(bench: Bench, bundle: Bundle, index: Path, fronts: int, variant: str) -> None:
    tower = bundle.tower("question_encoder")
    words = single_token_words(load_tokenizer(bundle, tower))
    questions = [each.text for each in Traffic(words, tower.max_tokens, fronts).short(TEXTS)]
    layout = _layout()
    flags = ["--device", bench.order.device, "--frontends", str(fronts), "--variant", variant]
    flags += ["--search-threads", str(available_cores())] if bench.order.device == "cpu" else []
    with narrows_server(bundle.path, index, layout.server, flags) as server:
        bench.row(f"{fronts} fronts: server ready", server.ready_s, "s")
        with clients(server.address, questions, layout.client, len(layout.client)) as workers:
            _loads(bench, fronts, workers)


def _loads(bench: Bench, fronts: int, workers: Sequence[Client]) -> None:
    """One question alone, then saturation and half of it, in messages and one by one."""
    seconds = bench.order.sizes.load_s
    alone = ask(workers[:1], Load(1, seconds, in_flight=1))
    _latency(bench, f"{fronts} fronts: one question alone", alone, 50, ALONE_MS)
    kinds = (
        ("messages of 16", QUESTIONS, IN_FLIGHT_MESSAGES, BATCHED_PER_S),
        ("unary", 1, IN_FLIGHT_SINGLES, SINGLES_PER_S),
    )
    for kind, size, in_flight, goal_per_s in kinds:
        most = ask(workers, Load(size, seconds, in_flight=in_flight))
        what = f"{fronts} fronts, {kind}, k = {K}"
        bench.row(f"{what}: saturation", most.per_s * size, "questions/s", goal_per_s, "at least", _remark(most))
        if not most.per_s:
            bench.skip(f"{what}, half load", "nothing was answered")
            continue
        half = ask(workers, Load(size, seconds, rate_per_s=HALF * most.per_s, seed=1))
        _latency(bench, f"{what}, half load", half, 50, None)
        _latency(bench, f"{what}, half load", half, 99, P99_MS)


def _latency(bench: Bench, what: str, answers: Answers, percent: int, goal_ms: float | None) -> None:
    kind: Kind = "at most" if goal_ms else ""
    bench.row(f"{what}, p{percent}", answers.percentile_ms(percent), "ms", goal_ms, kind, _remark(answers))


def _remark(answers: Answers) -> str:
    return f"{answers.failed} failed: {answers.error}" if answers.failed else ""


def _layout() -> Layout:
    """A quarter of the cores for the clients, one each; the others for the server."""
    cores: Cores = tuple(sorted(os.sched_getaffinity(0)))
    asking = max(1, len(cores) // 4)
    return Layout(cores[:-asking] or cores, cores[-asking:])
