"""`narrows eval rank`: how far ahead of other passages a bundle's towers put the gold one, in a pool and in batches.

Two reports over one biencoder file. The pool is that of DPR's validation by average rank (Karpukhin et al. 2020,
section 5; val_av_rank_* in DPR's configuration). The batches are those of the Spanish DPR cards: 32 questions, each
with its gold passage and one hard negative. Every distinct passage is encoded once, and all vectors are held in memory.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import narrows
from narrows import durable
from narrows.bundle import Bundle, Role
from narrows.encoder import Embeddings
from narrows.offline import embed, embed_chunks
from narrows.tokenizer import TokenizedText
from narrows.towers import Tower, load_towers
from narrows.variants import Choice
from narrows_tools.evaluation import batch_metrics, biencoder_files
from narrows_tools.evaluation.batch_metrics import BatchMetrics
from narrows_tools.evaluation.biencoder_files import BiencoderQuestion, Context
from narrows_tools.evaluation.paired import RESAMPLES, SEED, bootstrap_mean, wilson
from narrows_tools.evaluation.pool_ranks import pool_ranks
from narrows_tools.evaluation.steps import Advance, Start, silent

CHUNK_PASSAGES = 4096
DPR_QUESTIONS = 10_000
DPR_NEGATIVES = 30


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """What makes the pool: the first questions, and for each its gold passage and its first negatives."""

    questions: int = DPR_QUESTIONS
    hard_negatives: int = DPR_NEGATIVES
    other_negatives: int = DPR_NEGATIVES


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """What makes the batches: the first questions (None: all), shuffled."""

    questions: int | None = None
    size: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PoolReport:
    """Ranks are from 0; `passages` counts copies, `distinct` does not. Intervals are of 95 %."""

    settings: PoolSettings
    questions: int
    passages: int
    distinct: int
    average_rank: float
    average_rank_interval: tuple[float, float]
    average_ties: float  # passages that score the same as the gold one, its copies among them
    first: float  # share of questions with rank 0
    first_interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The metrics with all contexts of a batch, and with the copies of a question's own gold passage left out."""

    settings: BatchSettings
    with_other_negative: int  # questions without a hard negative: another one is taken
    without_negative: int
    with_gold_copies: int  # questions whose gold passage stands in their batch again
    all_contexts: BatchMetrics
    copies_masked: BatchMetrics


@dataclass(frozen=True, slots=True)
class RankResult:
    """One run: of what, over what, and what came out; None for a report that was not asked for."""

    program: str
    data: str
    data_sha256: str
    questions: int
    without_positive: int
    bundle: str
    question_variant: str
    passage_variant: str
    question_tower_id: str
    context_tower_id: str
    pool: PoolReport | None
    batches: BatchReport | None


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Vectors of questions, one each, and of distinct passages: those that the tower reads alike share a row."""

    questions: Embeddings
    passages: Embeddings
    row_of: dict[Context, int]

    def rows(self, contexts: Iterable[Context]) -> npt.NDArray[np.int64]:
        return np.array([self.row_of[context] for context in contexts], dtype=np.int64)


def evaluate(
    bundle: Bundle,
    file: Path,
    pool: PoolSettings | None,
    batches: BatchSettings | None,
    chosen: Choice,
    threads: int,
    start: Start = silent,
) -> RankResult:
    """Makes the reports whose settings are given.

    Args:
        bundle: the towers.
        file: a biencoder file.
        pool: for the average rank.
        batches: for the metrics in batches.
        chosen: the variants of the towers.
        threads: for encoding.
        start: told what begins and how far it is.

    Raises:
        BundleError: as when serving.
        QuestionFileError: the file breaks its format.
    """
    # A batch takes one negative, whatever the pool takes.
    kept_hard = max(pool.hard_negatives if pool else 0, 1)
    kept_other = max(pool.other_negatives if pool else 0, 1)
    found = biencoder_files.read(file, kept_hard, kept_other)
    pooled = found.questions[: pool.questions] if pool else ()
    batched = found.questions[: batches.questions] if batches else ()
    wanted: dict[Context, None] = {}
    if pool:
        for question in pooled:
            wanted.update(dict.fromkeys(pool_contexts(question, pool)))
    for question in batched:
        wanted.update(dict.fromkeys(batch_contexts(question)))

    variants: dict[Role, str] = {"question_encoder": chosen.question, "context_encoder": chosen.passage}
    towers = load_towers(bundle, variants, 1, list(variants))
    asked = pooled if len(pooled) > len(batched) else batched
    encoded = _encode(towers, [question.text for question in asked], list(wanted), threads, start)
    return RankResult(
        program=f"narrows {narrows.__version__}",
        data=file.name,
        data_sha256=durable.sha256_file(file),
        questions=len(found.questions),
        without_positive=found.without_positive_count,
        bundle=bundle.manifest.name,
        question_variant=chosen.question,
        passage_variant=chosen.passage,
        question_tower_id=bundle.tower("question_encoder").tower_id,
        context_tower_id=bundle.tower("context_encoder").tower_id,
        pool=_pool_report(pooled, pool, encoded, start) if pool else None,
        batches=_batch_report(batched, batches, encoded) if batches else None,
    )


def pool_contexts(question: BiencoderQuestion, settings: PoolSettings) -> list[Context]:
    """What a question brings to the pool, its gold passage first."""
    return [
        question.gold,
        *question.hard_negatives[: settings.hard_negatives],
        *question.other_negatives[: settings.other_negatives],
    ]


def batch_contexts(question: BiencoderQuestion) -> list[Context]:
    """What a question brings to its batch: its gold passage and a hard negative, or else another, or else none."""
    return [question.gold, *(question.hard_negatives[:1] or question.other_negatives[:1])]


def _encode(
    towers: dict[Role, Tower], questions: Sequence[str], contexts: Sequence[Context], threads: int, start: Start
) -> _Encoded:
    asker, reader = towers["question_encoder"], towers["context_encoder"]
    read_questions = asker.tokenizer.questions(questions)
    asked = embed(asker, read_questions, threads, start("encoding questions", len(questions)))
    advance = start("encoding passages", len(contexts))
    rows: list[int] = []
    passages = np.empty((len(contexts), reader.manifest.dim), dtype=np.float32)
    filled = 0
    for _, embeddings in embed_chunks(reader, _distinct(reader, contexts, rows, advance), threads, advance):
        passages[filled : filled + len(embeddings)] = embeddings
        filled += len(embeddings)
    return _Encoded(asked, passages[:filled], dict(zip(contexts, rows, strict=True)))


def _distinct(
    tower: Tower, contexts: Sequence[Context], rows: list[int], advance: Advance
) -> Iterator[list[TokenizedText]]:
    """Chunks of the texts whose token ids are new; `rows` gets, for every context, the row of its ids.

    Without this, two texts of one vector could differ in score by a rounding error, and one would outrank the other.
    """
    seen: dict[bytes, int] = {}
    for first in range(0, len(contexts), CHUNK_PASSAGES):
        chunk = contexts[first : first + CHUNK_PASSAGES]
        fresh = []
        for text in tower.tokenizer.passages(chunk):
            key = hashlib.blake2b(text.ids.tobytes(), digest_size=16).digest()
            if key not in seen:
                seen[key] = len(seen)
                fresh.append(text)
            rows.append(seen[key])
        advance(len(chunk) - len(fresh))
        if fresh:
            yield fresh


def _pool_report(
    questions: Sequence[BiencoderQuestion], settings: PoolSettings, encoded: _Encoded, start: Start
) -> PoolReport:
    rows = encoded.rows(context for question in questions for context in pool_contexts(question, settings))
    counts = np.bincount(rows, minlength=len(encoded.passages))
    gold = encoded.rows(question.gold for question in questions)
    advance = start("ranking passages", len(encoded.passages))
    ranks, ties = pool_ranks(encoded.questions[: len(questions)], encoded.passages, counts, gold, advance)
    firsts = int((ranks == 0).sum())
    return PoolReport(
        settings=settings,
        questions=len(questions),
        passages=len(rows),
        distinct=int((counts > 0).sum()),
        average_rank=float(ranks.mean()),
        average_rank_interval=bootstrap_mean(ranks.astype(np.float64), SEED, RESAMPLES),
        average_ties=float(ties.mean()),
        first=firsts / len(questions),
        first_interval=wilson(firsts, len(questions)),
    )


def _batch_report(questions: Sequence[BiencoderQuestion], settings: BatchSettings, encoded: _Encoded) -> BatchReport:
    order = np.random.default_rng(settings.seed).permutation(len(questions))
    plain, masked, copied = [], [], 0
    for first in range(0, len(order), settings.size):
        members = order[first : first + settings.size]
        contexts = [batch_contexts(questions[number]) for number in members]
        rows = encoded.rows(context for own in contexts for context in own)
        gold = np.cumsum([0, *(len(own) for own in contexts[:-1])])  # each question's first context
        distinct, column = np.unique(rows, return_inverse=True)
        scores = (encoded.questions[members] @ encoded.passages[distinct].T)[:, column]  # copies score the same
        copies = rows[gold][:, None] == rows
        copies[np.arange(len(members)), gold] = False
        plain.append(batch_metrics.judge(scores, gold))
        masked.append(batch_metrics.judge(scores, gold, copies))
        copied += int(copies.any(axis=1).sum())
    softer = [question for question in questions if not question.hard_negatives]
    return BatchReport(
        settings=settings,
        with_other_negative=sum(bool(question.other_negatives) for question in softer),
        without_negative=sum(not question.other_negatives for question in softer),
        with_gold_copies=copied,
        all_contexts=batch_metrics.summarize(plain),
        copies_masked=batch_metrics.summarize(masked),
    )
