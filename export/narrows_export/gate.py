"""The gate: every pair of variants searched over the same questions and passages, and compared with fp32 x fp32.

Each variant embeds each text once. Smaller scales are the first passages of one seeded shuffle, so each is part of the
next. The search is exact, in float32; ties fall as they may, and the overlap does not depend on how.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

import narrows
from narrows.bundle import REFERENCE_VARIANT, Bundle, BundleManifest, Role, open_bundle, update_manifest
from narrows.encoder import Embeddings
from narrows.offline import embed
from narrows.quality import QualityReport
from narrows.towers import load_towers
from narrows_export import scoring
from narrows_export.gate_data import GateData
from narrows_export.scoring import NOT_COUNTED, Found
from narrows_tools.evaluation.answers import AnswerMatcher
from narrows_tools.evaluation.steps import Start

SCALES = (1000, 4000)  # passages, where there are more; then all
TOP = max(scoring.ACCURACY_AT)
OVERLAP_TOP = 10
BLOCK = 256  # questions searched together: bounds the memory of the scores
# Of |q| |p|: two float32 inner products of the same vectors, summed in different orders, differ by less.
TIE_TOLERANCE = 2e-6

Pair = tuple[str, str]  # question variant, passage variant
Rows = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


def run_gate(path: Path, data: GateData, threads: int, start: Start) -> BundleManifest:
    """Judges every pair of a bundle's variants, and records the reports in its manifest in place of older ones.

    Raises:
        BundleError: no sound bundle there, a variant that is off on this machine, or another process is changing it.
    """

    def judge(manifest: BundleManifest) -> BundleManifest:
        bundle = open_bundle(path)
        questions = _embed_variants(bundle, "question_encoder", data, threads, start)
        passages = _embed_variants(bundle, "context_encoder", data, threads, start)
        found = search_pairs(data, questions, passages, start)
        reports = [_report(bundle, pair, data, found) for pair in found]
        kept = [old for old in manifest.quality if (old.question_variant, old.passage_variant) not in found]
        return replace(manifest, quality=(*kept, *reports))

    return update_manifest(path, judge)  # all of it under the lock: better refused now than after hours


def search_pairs(
    data: GateData, questions: Mapping[str, Embeddings], passages: Mapping[str, Embeddings], start: Start
) -> dict[Pair, list[Found]]:
    """What each question finds by every pair, at every scale.

    Args:
        data: the texts; its seed decides which passages make up the smaller scales.
        questions: embeddings by variant, float32 (questions, dim), fp32 among them.
        passages: the same of the passages.
        start: told what begins and how far it is.
    """
    pairs: list[Pair] = [(question, passage) for passage in passages for question in questions]
    shuffled = np.random.default_rng(data.seed).permutation(len(data.passages))
    scales = [np.sort(shuffled[:size]) for size in _sizes(len(data.passages))]
    judge = _Judge(data)
    longest = np.linalg.norm(passages[REFERENCE_VARIANT], axis=1).max()
    parts: dict[Pair, list[list[Found]]] = {pair: [[] for _ in scales] for pair in pairs}
    advance = start("comparing pairs", len(data.questions))
    for first in range(0, len(data.questions), BLOCK):
        block = slice(first, min(first + BLOCK, len(data.questions)))
        reference = questions[REFERENCE_VARIANT][block] @ passages[REFERENCE_VARIANT].T
        slack = TIE_TOLERANCE * longest * np.linalg.norm(questions[REFERENCE_VARIANT][block], axis=1)
        for pair in pairs:
            scores = questions[pair[0]][block] @ passages[pair[1]].T
            for number, rows in enumerate(scales):
                best = rows[_best(scores[:, rows], TOP)]
                overlap = _overlap(reference, reference[:, rows], best, slack)
                parts[pair][number].append(
                    Found(len(rows), overlap, judge.by_answers(block, best), judge.by_positives(block, rows, best))
                )
        advance(block.stop - block.start)
    return {pair: [_joined(blocks) for blocks in parts[pair]] for pair in pairs}


class _Judge:
    """Finds the first right passage of rankings, and remembers which texts hold which answers."""

    def __init__(self, data: GateData) -> None:
        self._questions = data.questions
        self._texts = [passage.text for passage in data.passages]
        row_of = {passage.id: row for row, passage in enumerate(data.passages)}
        self._positives = [
            np.array([row_of[id_] for id_ in question.positive_ids if id_ in row_of], dtype=np.int64)
            for question in data.questions
        ]
        self._matchers = {kind: AnswerMatcher(kind) for kind in {question.answer_kind for question in data.questions}}
        self._holds: dict[tuple[int, int], bool] = {}  # (question, row): whether an answer is in the text

    def by_answers(self, block: slice, best: Rows) -> Rows:
        """Ranks by answer matching, (questions of the block,); `best` is (questions, TOP or fewer), best first."""
        ranks = np.full(len(best), TOP)
        for place, number in enumerate(range(block.start, block.stop)):
            if not self._questions[number].answers:
                ranks[place] = NOT_COUNTED
                continue
            for rank, row in enumerate(best[place]):
                if self._answered(number, int(row)):
                    ranks[place] = rank
                    break
        return ranks

    def by_positives(self, block: slice, rows: Rows, best: Rows) -> Rows:
        """Ranks by positive passages, of which only those among `rows` can be found."""
        among = np.zeros(len(self._texts), dtype=bool)
        among[rows] = True
        ranks = np.full(len(best), TOP)
        for place, number in enumerate(range(block.start, block.stop)):
            positives = self._positives[number]
            if not among[positives].any():
                ranks[place] = NOT_COUNTED
                continue
            right = np.flatnonzero(np.isin(best[place], positives))
            if len(right):
                ranks[place] = right[0]
        return ranks

    def _answered(self, number: int, row: int) -> bool:
        key = (number, row)
        if key not in self._holds:
            question = self._questions[number]
            self._holds[key] = self._matchers[question.answer_kind].matches(question.answers, self._texts[row])
        return self._holds[key]


def _sizes(count: int) -> list[int]:
    return [*(size for size in SCALES if size < count), count]


def _best(scores: Scores, k: int) -> Rows:
    """The columns of the k highest scores of each row, best first; all columns where there are fewer."""
    if k < scores.shape[1]:
        columns = np.argpartition(scores, -k, axis=1)[:, -k:]
    else:
        columns = np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)


def _overlap(reference: Scores, among: Scores, best: Rows, slack: Scores) -> npt.NDArray[np.float64]:
    """The share of each row's first ten that fp32 scores no lower than its own tenth, `slack` for rounding."""
    k = min(OVERLAP_TOP, among.shape[1])
    tenth = -np.partition(-among, k - 1, axis=1)[:, k - 1]
    scores = np.take_along_axis(reference, best[:, :k], axis=1)
    shares: npt.NDArray[np.float64] = (scores >= (tenth - slack)[:, None]).mean(axis=1, dtype=np.float64)
    return shares


def top10_overlap(reference: Scores, scores: Scores) -> npt.NDArray[np.float64]:
    """What share of fp32's first ten each question finds by others' scores of the same passages.

    Args:
        reference: fp32's scores, float32 (questions, passages).
        scores: the others', of the same shape.

    Returns:
        float64 (questions,).
    """
    slack = TIE_TOLERANCE * np.abs(reference).max(axis=1)
    return _overlap(reference, reference, _best(scores, OVERLAP_TOP), slack)


def _joined(blocks: Sequence[Found]) -> Found:
    return Found(
        passages=blocks[0].passages,
        overlap=np.concatenate([block.overlap for block in blocks]),
        by_answers=np.concatenate([block.by_answers for block in blocks]),
        by_positives=np.concatenate([block.by_positives for block in blocks]),
    )


def _embed_variants(bundle: Bundle, role: Role, data: GateData, threads: int, start: Start) -> dict[str, Embeddings]:
    """The texts of one side by every variant of its tower; float32 (texts, dim) each."""
    embedded: dict[str, Embeddings] = {}
    for variant in bundle.tower(role).variants:
        tower = load_towers(bundle, variant, 1, [role])[role]
        if role == "question_encoder":
            texts = tower.tokenizer.questions([question.text for question in data.questions])
        else:
            texts = tower.tokenizer.passages([(passage.title, passage.text) for passage in data.passages])
        what = "questions" if role == "question_encoder" else "passages"
        embedded[variant] = embed(tower, texts, threads, start(f"{what} by {variant}", len(texts)))
    return embedded


def _report(bundle: Bundle, pair: Pair, data: GateData, found: Mapping[Pair, Sequence[Found]]) -> QualityReport:
    question, passage = pair
    reference = found[REFERENCE_VARIANT, REFERENCE_VARIANT]
    return QualityReport(
        question_variant=question,
        passage_variant=passage,
        question_model_sha256=bundle.tower("question_encoder").variants[question].sha256,
        passage_model_sha256=bundle.tower("context_encoder").variants[passage].sha256,
        created_by=f"narrows {narrows.__version__}",
        language=data.language,
        questions=data.question_file,
        passages=data.passage_file,
        where=data.where,
        calibration=data.calibration,
        seed=data.seed,
        scales=tuple(scoring.scale(mine, fp32, data.seed) for mine, fp32 in zip(found[pair], reference, strict=True)),
    )
