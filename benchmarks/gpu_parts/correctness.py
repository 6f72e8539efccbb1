"""Section 3: are the embeddings PyTorch's, and are the answers? Real questions against real passages."""

import importlib.util
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu_parts.rows import Bench, Order
from benchmarks.gpu_parts.towers import VARIANTS, load
from narrows import offline, passage_files
from narrows.bundle import Bundle, Role, open_bundle
from narrows.encoder import Embeddings
from narrows.process import available_cores
from narrows.tokenizer import TokenizedText, TowerTokenizer, load_tokenizer
from narrows.towers import Tower
from narrows_export import corpus

COSINE, OVERLAP, TOP = 0.9999, 0.99, 10
ALONE = 32  # questions that are embedded alone as well

Embedded = tuple[Embeddings, Embeddings]  # questions and passages


def run(bench: Bench) -> None:
    """Compares every variant that the device runs, with PyTorch and with fp32."""
    order = bench.order
    if order.bundle is None:
        bench.skip("everything", "no --bundle was given")
        return
    bundle = open_bundle(order.bundle, "stamp")
    found: dict[str, Embedded] = {}
    for variant in VARIANTS:
        if variant in bundle.tower("question_encoder").variants:
            bench.attempt(variant, partial(_variant, bench, bundle, variant, found))
        else:
            bench.skip(variant, "the bundle has none")
    if len(found) == len(VARIANTS):
        half, full = VARIANTS
        _compare(bench, half, found[half], full, found[full])
    if order.checkpoint is None:
        bench.skip("PyTorch", "no --checkpoint was given")
    elif importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        bench.skip("PyTorch", "torch or transformers is not installed")
    else:
        bench.attempt("PyTorch", partial(_against_pytorch, bench, order.checkpoint, bundle, found))


def _variant(bench: Bench, bundle: Bundle, variant: str, found: dict[str, Embedded]) -> None:
    towers = load(bundle, variant, bench.order.device)
    question = towers["question_encoder"]
    questions, passages = _texts(bench.order, question.tokenizer, towers["context_encoder"].tokenizer)
    found[variant] = _embed(question, questions), _embed(towers["context_encoder"], passages)
    alone = np.concatenate([question.encoder.encode([text.ids]) for text in questions[:ALONE]])
    moved = float(np.abs(alone - found[variant][0][:ALONE]).max() / np.abs(alone).max())
    bench.row(f"{variant}: alone and in a batch, largest difference to largest value", moved, "")


def _against_pytorch(bench: Bench, checkpoint: Path, bundle: Bundle, found: dict[str, Embedded]) -> None:
    # In a process of its own: PyTorch brings other CUDA libraries than ONNX Runtime loads.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
        expected = apart.submit(_reference, bench.order, checkpoint, bundle).result()
    for variant, ours in found.items():
        _compare(bench, variant, ours, "PyTorch", expected)
    spread = _cosines(expected[0][1:], expected[0][:-1])
    bench.row("PyTorch: mean cosine of one question and the next", float(spread.mean()), "", remark="1: all alike")


def _compare(bench: Bench, name: str, ours: Embedded, other: str, theirs: Embedded) -> None:
    for what, mine, expected in zip(("questions", "passages"), ours, theirs, strict=True):
        worst = float(_cosines(mine, expected).min())
        bench.row(f"{name}: worst cosine to {other}, {len(mine)} {what}", worst, "", COSINE, "at least")
    bench.row(f"{name}: top-{TOP} overlap with {other}", _overlap(ours, theirs), "", OVERLAP, "at least")


def _texts(
    order: Order, question: TowerTokenizer, context: TowerTokenizer
) -> tuple[list[TokenizedText], list[TokenizedText]]:
    return question.questions(_questions(order.questions)), context.passages(_passages(order.passages))


def _questions(file: Path | None) -> list[str]:
    if file is None:
        return [question.question for language in corpus.LANGUAGES for question in corpus.questions(language)]
    return file.read_text("utf-8").splitlines()


def _passages(file: Path | None) -> list[tuple[str, str]]:
    if file is None:
        found = [passage for language in corpus.LANGUAGES for passage in corpus.passages(language)]
    else:
        found = [row.passage for row in passage_files.read(file)]
    return [(passage.title, passage.text) for passage in found]


def _embed(tower: Tower, texts: Sequence[TokenizedText]) -> Embeddings:
    return offline.embed(tower, texts, available_cores())


def _reference(order: Order, checkpoint: Path, bundle: Bundle) -> Embedded:
    from benchmarks.gpu_parts.reference import Reference

    roles: tuple[Role, Role] = ("question_encoder", "context_encoder")
    question, context = (load_tokenizer(bundle, bundle.tower(role)) for role in roles)
    embedded = [
        Reference(checkpoint, role, bundle.tower(role)).encode([text.ids for text in texts])
        for role, texts in zip(roles, _texts(order, question, context), strict=True)
    ]
    return embedded[0], embedded[1]


def _cosines(a: Embeddings, b: Embeddings) -> Embeddings:
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    cosines: Embeddings = (wide_a * wide_b).sum(1) / np.linalg.norm(wide_a, axis=1) / np.linalg.norm(wide_b, axis=1)
    return cosines


def _overlap(ours: Embedded, theirs: Embedded) -> float:
    """The share of the best passages by their embeddings that are among the best by ours."""
    best, wanted = (np.argsort(-(questions @ passages.T), axis=1)[:, :TOP] for questions, passages in (ours, theirs))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(best, wanted, strict=True)]
    return float(np.mean(shared)) / min(TOP, len(ours[1]))
