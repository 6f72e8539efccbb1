"""What an exported tower must show before its bundle is written: parity, and that the pair is a pair."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from narrows.bundle import PairCheck, Role
from narrows.costs import best_ms
from narrows.encoder import Embeddings, Encoder, Golden
from narrows.errors import ExportError
from narrows.padding import pad_right
from narrows.tokenizer import Reading, TokenIds, TowerTokenizer
from narrows_export import corpus
from narrows_export.checkpoint import TorchTower

PARITY_LIMIT = 1e-4
PAIRS = 64
# Chance finds 1 of 64; 16 or more by chance has a probability below 1e-14 (Poisson with mean 1).
PAIRS_NEEDED = 16
BATCH_SIZES = (1, 8)
SPEED_BATCH = 16
RUNS = 3
GOLDEN_READINGS, GOLDEN_READING_TOKENS = 32, 24


@dataclass(frozen=True, slots=True)
class Numerics:
    """How far a variant is from fp32, over `texts` texts alone; and from itself, alone against batches of 8."""

    texts: int
    max_abs_error: float
    min_cosine: float
    batch_max_abs_difference: float


@dataclass(frozen=True, slots=True)
class Parity:
    """The worst difference to PyTorch, and how fast both are on this machine.

    `question_ms` is the time of one short question alone; `texts_per_s` of a batch of 16 texts of like length.
    """

    max_abs_error: float
    min_cosine: float
    texts: int
    torch_question_ms: float
    onnx_question_ms: float
    torch_texts_per_s: float
    onnx_texts_per_s: float


def sample_texts(tokenizer: TowerTokenizer, role: Role) -> list[TokenIds]:
    """Real texts in English and Spanish, short and long, as a tower of this role sees them; two fill it whole."""
    if role == "reader":
        return [text.ids for text in _readings(tokenizer, 12)]
    encoded = []
    for language in corpus.LANGUAGES:
        passages = corpus.passages(language)
        long_text = " ".join(passage.text for passage in passages[:20])
        if role == "question_encoder":
            encoded += tokenizer.questions([q.question for q in corpus.questions(language)[:12]] + [long_text])
        else:
            encoded += tokenizer.passages([(p.title, p.text) for p in passages[:12]] + [("", long_text)])
    return [text.ids for text in encoded]


def _readings(tokenizer: TowerTokenizer, count: int) -> list[Reading]:
    """So many questions of each language with a passage that answers; and one with a text that fills the reader."""
    readings = []
    for language in corpus.LANGUAGES:
        by_id = {passage.id: passage for passage in corpus.passages(language)}
        asked = corpus.questions(language)[:count]
        for question in asked:
            found = by_id[question.positive_passage_ids[0]]
            readings += tokenizer.readings(question.question, [(found.title, found.text)])
        long_text = " ".join(passage.text for passage in list(by_id.values())[:20])
        readings += tokenizer.readings(asked[0].question, [("", long_text)])
    return readings


def real(output: Embeddings, token_ids: Sequence[TokenIds]) -> Embeddings:
    """A batch's embeddings; of a reader's logits, (texts, tokens, 3), those that are not of padding, (tokens, 3)."""
    if output.ndim == 2:
        return output
    return np.concatenate([logits[: len(ids)] for logits, ids in zip(output, token_ids, strict=True)])


def run_torch(tower: TorchTower, token_ids: Sequence[TokenIds], pad_id: int) -> Embeddings:
    """Embeds one right-padded batch with the PyTorch model, with the tower's segment ids; float32 (texts, dim)."""
    input_ids, mask = pad_right(token_ids, pad_id)
    inputs = {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(mask)}
    if tower.separator is not None:
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        for segments, ids in zip(inputs["token_type_ids"], token_ids, strict=True):
            separators = np.flatnonzero(ids == tower.separator)
            if len(separators):  # a question may fill the text
                segments[separators[0] + 1 :] = 1
    with torch.no_grad():
        output = tower.model(**inputs)
    embeddings: Embeddings = output[tower.output].numpy()
    return embeddings


def parity(tower: TorchTower, encoder: Encoder, texts: Sequence[TokenIds], pad_id: int) -> Parity:
    """Compares the graph with the PyTorch model on right-padded batches of 1 and 8 texts of mixed length.

    Raises:
        ExportError: the embeddings differ by more than 1e-4 anywhere, are not finite, or depend on their batch.
    """
    embedded = [_in_batches(encoder.encode, texts, size) for size in BATCH_SIZES]
    expected = [_in_batches(lambda batch: run_torch(tower, batch, pad_id), texts, size) for size in BATCH_SIZES]
    worst = float(np.abs(np.concatenate(embedded) - np.concatenate(expected)).max())  # NaN if any is
    if not worst <= PARITY_LIMIT:
        raise ExportError(
            f"the exported graph differs from the PyTorch model by {worst:.2e}; the limit is {PARITY_LIMIT:.0e}"
        )
    if moved := float(np.abs(embedded[1] - embedded[0]).max()):
        raise ExportError(
            f"an embedding depends on its batch (by {moved:.1e}), so that answers would too: ONNX Runtime adds in "
            "another order where attention heads are wider than 128, or the size of a mean-pooled embedding is no "
            "multiple of 4"
        )
    by_length = sorted(texts, key=len)[:SPEED_BATCH]
    return Parity(
        max_abs_error=worst,
        min_cosine=_min_cosine(embedded[0], expected[0]),
        texts=len(texts),
        torch_question_ms=best_ms(lambda: run_torch(tower, by_length[:1], pad_id), RUNS, time.perf_counter),
        onnx_question_ms=best_ms(lambda: encoder.encode(by_length[:1]), RUNS, time.perf_counter),
        torch_texts_per_s=1e3
        * len(by_length)
        / best_ms(lambda: run_torch(tower, by_length, pad_id), RUNS, time.perf_counter),
        onnx_texts_per_s=1e3 * len(by_length) / best_ms(lambda: encoder.encode(by_length), RUNS, time.perf_counter),
    )


def compare(reference: Encoder, encoder: Encoder, texts: Sequence[TokenIds]) -> Numerics:
    """Measures a variant against the fp32 encoder of the same tower.

    Raises:
        BundleError: an embedding is not finite.
    """
    expected = _in_batches(reference.encode, texts, 1)
    alone, batched = (_in_batches(encoder.encode, texts, size) for size in BATCH_SIZES)
    return Numerics(
        texts=len(texts),
        max_abs_error=float(np.abs(alone - expected).max()),
        min_cosine=_min_cosine(alone, expected),
        batch_max_abs_difference=float(np.abs(batched - alone).max()),
    )


def golden_texts(tokenizer: TowerTokenizer) -> list[TokenIds]:
    """The 32 texts of the golden pairs: 14 questions and two passages of each language."""
    token_ids: list[TokenIds] = []
    for language in corpus.LANGUAGES:
        token_ids += [text.ids for text in tokenizer.questions([q.question for q in corpus.questions(language)[:14]])]
        token_ids += [
            text.ids for text in tokenizer.passages([(p.title, p.text) for p in corpus.passages(language)[:2]])
        ]
    return token_ids


def golden_readings(encoder: Encoder, tokenizer: TowerTokenizer) -> Golden:
    """A reader's golden pairs: sequences of one length, and all their logits."""
    tokens = min(GOLDEN_READING_TOKENS, tokenizer.max_tokens)
    token_ids = [reading.ids[:tokens] for reading in _readings(tokenizer, GOLDEN_READINGS // 2)]
    kept = [ids for ids in token_ids if len(ids) == tokens][:GOLDEN_READINGS]
    return Golden(tuple(kept), np.concatenate([encoder.encode([ids]) for ids in kept]))


def golden(encoder: Encoder, tokenizer: TowerTokenizer) -> Golden:
    """The golden pairs, each text embedded alone."""
    token_ids = golden_texts(tokenizer)
    return Golden(tuple(token_ids), _in_batches(encoder.encode, token_ids, 1))


def pair_check(question: tuple[Encoder, TowerTokenizer], context: tuple[Encoder, TowerTokenizer]) -> PairCheck:
    """In-batch top-1 over 64 question-passage pairs, in the language that does better."""
    results = []
    for language in corpus.LANGUAGES:
        by_id = {passage.id: passage for passage in corpus.passages(language)}
        chosen = corpus.questions(language)[:PAIRS]
        positives = [by_id[q.positive_passage_ids[0]] for q in chosen]
        question_ids = [text.ids for text in question[1].questions([q.question for q in chosen])]
        passage_ids = [text.ids for text in context[1].passages([(p.title, p.text) for p in positives])]
        question_vectors = _in_batches(question[0].encode, question_ids, BATCH_SIZES[-1])
        passage_vectors = _in_batches(context[0].encode, passage_ids, BATCH_SIZES[-1])
        best = (question_vectors @ passage_vectors.T).argmax(axis=1)
        correct = int((best == np.arange(len(chosen))).sum())
        results.append(PairCheck(language, len(chosen), correct, correct >= PAIRS_NEEDED))
    return max(results, key=lambda result: result.correct)


def _in_batches(
    encode: Callable[[Sequence[TokenIds]], Embeddings], token_ids: Sequence[TokenIds], size: int
) -> Embeddings:
    """Embeds texts in batches of `size`, in order; float32 (texts, dim), or a reader's (tokens of all texts, dim)."""
    batches = [token_ids[start : start + size] for start in range(0, len(token_ids), size)]
    return np.concatenate([real(encode(batch), batch) for batch in batches])


def _min_cosine(a: Embeddings, b: Embeddings) -> float:
    """The smallest cosine between a row of `a` and the same row of `b`, in float64."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    norms = np.linalg.norm(wide_a, axis=1) * np.linalg.norm(wide_b, axis=1)
    return float(((wide_a * wide_b).sum(axis=1) / norms).min())
