"""Section 4: questions by size of batch, and passages in bulk, beside the least time that their arithmetic takes."""

import time
from functools import partial

import numpy as np

from benchmarks.gpu_parts.rows import Bench
from benchmarks.gpu_parts.towers import VARIANTS, load, operations
from narrows import offline
from narrows.bundle import Bundle, open_bundle
from narrows.process import available_cores
from narrows.tokenizer import TokenIds, TokenizedText
from narrows.towers import Tower

QUESTION_TOKENS = 16
PASSAGE_TOKENS, PASSAGE_SPREAD, PASSAGE_LEAST = 140, 35, 20  # 100 words and a title: a normal distribution, cut
PASSAGES_SHARE = 0.5  # of the floor's rate: the goal


def run(bench: Bench) -> None:
    """Every variant that the device runs, the served one first."""
    if bench.order.bundle is None:
        bench.skip("everything", "no --bundle was given")
        return
    bundle = open_bundle(bench.order.bundle, "stamp")
    for variant in VARIANTS:
        if variant in bundle.tower("question_encoder").variants:
            bench.attempt(variant, partial(_variant, bench, bundle, variant), needed_s=1.0)
        else:
            bench.skip(variant, "the bundle has none")


def _variant(bench: Bench, bundle: Bundle, variant: str) -> None:
    start_s = time.monotonic()
    towers = load(bundle, variant, bench.order.device)
    bench.row(f"{variant}: both towers loaded, and every shape run", time.monotonic() - start_s, "s")
    _passages(bench, towers["context_encoder"], variant)
    for size in bench.order.sizes.batches:
        _questions(bench, towers["question_encoder"], variant, size)


def _questions(bench: Bench, tower: Tower, variant: str, size: int) -> None:
    random = np.random.default_rng(0)
    batch = [_ids(random, tower, QUESTION_TOKENS) for _ in range(size)]
    times = bench.timed(lambda: tower.encoder.encode(batch))
    floor_ms = _floor_ms(bench, tower, variant, [QUESTION_TOKENS] * size)
    what = f"{variant}: {size} question{'s' * (size > 1)} of {QUESTION_TOKENS} tokens"
    bench.row(f"{what}, p50", times.p50_ms, "ms", floor_ms, "floor")
    bench.row(f"{what}, p99", times.p99_ms, "ms", remark=f"{times.runs} runs")
    bench.row(f"{what}, rate", size / times.p50_ms * 1e3, "questions/s")


def _passages(bench: Bench, tower: Tower, variant: str) -> None:
    random = np.random.default_rng(1)
    drawn = random.normal(PASSAGE_TOKENS, PASSAGE_SPREAD, bench.order.sizes.passages)
    lengths = [int(each) for each in drawn.clip(PASSAGE_LEAST, tower.manifest.max_tokens)]
    texts = [TokenizedText(_ids(random, tower, length), 0) for length in lengths]
    threads = available_cores()
    offline.embed(tower, texts[: len(texts) // 8], threads)  # warms up
    start_s = time.monotonic()
    offline.embed(tower, texts, threads)
    rate = len(texts) / (time.monotonic() - start_s)
    floor_ms = _floor_ms(bench, tower, variant, lengths)
    remark = f"{np.mean(lengths):.0f} tokens on average"
    best = len(texts) / floor_ms * 1e3 if floor_ms else None
    bench.row(f"{variant}: passages in bulk", rate, "passages/s", best, "floor", remark)
    if best and variant == VARIANTS[0]:
        bench.row(f"{variant}: passages in bulk, of the floor's rate", rate / best, "", PASSAGES_SHARE, "at least")


def _floor_ms(bench: Bench, tower: Tower, variant: str, lengths: list[int]) -> float | None:
    """By half-precision products; of fp32 no floor was measured."""
    return bench.order.floors.ms(operations(tower.manifest, lengths)) if variant == VARIANTS[0] else None


def _ids(random: np.random.Generator, tower: Tower, tokens: int) -> TokenIds:
    return random.integers(0, tower.tokenizer.settings.vocabulary_size, tokens)
