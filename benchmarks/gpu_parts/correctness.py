"""Section 3: are the embeddings PyTorch's, and are the answers? Real questions against real passages."""

import importlib.util
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.gpu_parts.rows import Bench
from benchmarks.gpu_parts.towers import VARIANTS, load
from narrows import offline, passage_files
from narrows.bundle import Bundle, open_bundle
from narrows.encoder import Embeddings
from narrows.process import available_cores
from narrows.tokenizer import TokenizedText
from narrows.towers import Tower
from narrows_export import corpus

COSINE, OVERLAP, TOP = 0.9999, 0.99, 10
ALONE = 32  # questions that are embedded alone as well
NEEDED_S = 10.0


def run(bench: Bench) -> None:
    """Compares every variant that the device runs."""
    order = bench.order
    if order.bundle is None:
        bench.skip("everything", "no --bundle was given")
        return
    bundle = open_bundle(order.bundle, "stamp")
    expected: tuple[Embeddings, Embeddings] | None = None
    for variant in VARIANTS:
        if variant not in bundle.tower("question_encoder").variants:
            bench.skip(variant, "the bundle has none")
            continue
        towers = load(bundle, variant, order.device)
        question, context = towers["question_encoder"], towers["context_encoder"]
        questions = question.tokenizer.questions(_questions(order.questions))
        passages = context.tokenizer.passages(_passages(order.passages))
        found = _embed(question, questions), _embed(context, passages)
        alone = np.concatenate([question.encoder.encode([text.ids]) for text in questions[:ALONE]])
        moved = float(np.abs(alone - found[0][:ALONE]).max() / np.abs(alone).max())
        bench.row(f"{variant}: alone and in a batch, largest difference to largest value", moved, "")
        if order.checkpoint is None:
            bench.skip(f"{variant} against PyTorch", "no --checkpoint was given")
            continue
        if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
            bench.skip(f"{variant} against PyTorch", "torch or transformers is not installed")
            continue
        if expected is None:
            bench.say("PyTorch")
            # In a process of its own: PyTorch brings other CUDA libraries than ONNX Runtime loads.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as apart:
                expected = apart.submit(_reference, order.checkpoint, bundle, questions, passages).result()
        for what, ours, theirs in zip(("questions", "passages"), found, expected, strict=True):
            worst = float(_cosines(ours, theirs).min())
            bench.row(f"{variant}: worst cosine to PyTorch, {len(ours)} {what}", worst, "", COSINE, "at least")
        bench.row(f"{variant}: top-{TOP} overlap with PyTorch", _overlap(found, expected), "", OVERLAP, "at least")
        if variant == VARIANTS[0]:
            spread = _cosines(expected[0][1:], expected[0][:-1])
            bench.row(
                "PyTorch: mean cosine of one question and the next", float(spread.mean()), "", remark="1: all alike"
            )


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


def _reference(
    checkpoint: Path, bundle: Bundle, questions: Sequence[TokenizedText], passages: Sequence[TokenizedText]
) -> tuple[Embeddings, Embeddings]:
    from benchmarks.gpu_parts.reference import Reference

    question = Reference(checkpoint, "question_encoder", bundle.tower("question_encoder"))
    context = Reference(checkpoint, "context_encoder", bundle.tower("context_encoder"))
    return question.encode([text.ids for text in questions]), context.encode([text.ids for text in passages])


def _cosines(a: Embeddings, b: Embeddings) -> Embeddings:
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    cosines: Embeddings = (wide_a * wide_b).sum(1) / np.linalg.norm(wide_a, axis=1) / np.linalg.norm(wide_b, axis=1)
    return cosines


def _overlap(ours: tuple[Embeddings, Embeddings], theirs: tuple[Embeddings, Embeddings]) -> float:
    """The share of the best passages by PyTorch's embeddings that are among the best by ours."""
    best, wanted = (np.argsort(-(questions @ passages.T), axis=1)[:, :TOP] for questions, passages in (ours, theirs))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(best, wanted, strict=True)]
    return float(np.mean(shared)) / min(TOP, len(ours[1]))
