"""`--int8 auto`: which rounding of a bundle's towers is fast and keeps its answers, found by measuring.

1. One alpha of migration and one range of the activations for all, by the error of the embeddings.
2. The products ranked by the error that each makes alone, for the time that it would cost in float.
3. From all products in integers on, more and more of the ranking left in float: each rounding is timed on this machine
   and searched with, questions and passages both by int8, until one keeps enough of fp32's first ten and one more has
   been looked at. The fastest that keeps enough is taken.

What is searched is a part of the evaluation data, so that it takes minutes and not hours. Overlap falls with the number
of passages, about linearly in its logarithm, and is carried on so to all of them; `narrows bundle gate` judges what was
chosen over all. Without evaluation data the held-out half of the calibration texts must do, as far as it reaches.
"""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from narrows.bundle import Bundle, CurvePoint, Role, Rounding, TowerManifest
from narrows.encoder import Embeddings, Encoder
from narrows.errors import GateDataError
from narrows.offline import embed
from narrows.quality import MIN_PASSAGES, MIN_TOP10_OVERLAP
from narrows.tokenizer import TokenIds, TowerTokenizer
from narrows.towers import Tower
from narrows_export import calibrate, scoring
from narrows_export.calibrate import Calibration, Seen
from narrows_export.gate import OVERLAP_TOP, top10_overlap
from narrows_export.gate_data import GateData
from narrows_export.quantize import Product, products, quantize
from narrows_tools.evaluation.steps import Start

ALPHAS = (0.0, 0.5, 0.7, 0.8, 0.9)
PERCENTILES = (100.0, 99.99)
LEFT_IN_FLOAT = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
ERROR_TEXTS = 48
SUBSET_PASSAGES, SUBSET_QUESTIONS = 2000, 1000
MIN_SUBSET = 4 * OVERLAP_TOP  # passages: a quarter of them shows how overlap falls with their number
# Texts x tokens: a question alone, questions, and passages; timed in this order, round by round.
SHAPES = ((1, 14), (8, 14), (8, 64), (4, 128))
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Found:
    """The rounding of each tower, by its directory, and the points that were compared."""

    roundings: Mapping[str, Rounding]
    curve: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class _Tower:
    """A tower of the bundle on its way through the search."""

    manifest: TowerManifest
    tokenizer: TowerTokenizer
    model: onnx.ModelProto
    fp32: Encoder
    seen: Seen
    held_out: list[TokenIds]
    expected: Embeddings


def choose(curve: Sequence[CurvePoint]) -> int:
    """The place of the fastest point that passed; if none did, of the one with the highest expected overlap."""
    passed = [place for place, point in enumerate(curve) if point.passed]
    if passed:
        return max(passed, key=lambda place: curve[place].speedup)
    return max(range(len(curve)), key=lambda place: curve[place].expected_overlap or 0)


def expected_overlap(few: float, many: float, low: float, sizes: tuple[int, int], passages: int) -> float:
    """The low end of the overlap expected among so many passages.

    Args:
        few: mean overlap among the first of `sizes`, passages.
        many: of the same questions, among the second.
        sizes: how many passages those are.
        low: the low end of the interval of `many`.
        passages: how many there are in all; the loss grows with their logarithm.
    """
    growth = max(few - many, 0) / math.log(sizes[1] / sizes[0])
    return low - growth * math.log(max(passages / sizes[1], 1))


def check_size(calibration: Calibration, data: GateData | None) -> None:
    """Checks that there are passages enough to compare the first ten of.

    Raises:
        GateDataError: there are not.
    """
    passages = len(_subset(data, calibration.half(1))[1])
    if passages < MIN_SUBSET:
        where = "in the gate's file" if data else "to calibrate on that are held out; give twice as many"
        raise GateDataError(f"--int8 auto searches at least {MIN_SUBSET} passages, and there are {passages} {where}")


def search(bundle: Bundle, calibration: Calibration, data: GateData | None, threads: int, start: Start) -> Found:
    """Finds the rounding for a bundle's towers.

    Args:
        bundle: has fp32.
        calibration: texts to observe activations on; every second one is held out to see how that did.
        data: evaluation data, disjoint from the calibration texts; None: the held-out ones stand in for it.
        threads: for observing and embedding; the timing has one.
        start: told what begins and how far it is.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = _Search(bundle, calibration, data, threads, start, Path(scratch))
        return run.find()


class _Search:
    def __init__(
        self, bundle: Bundle, calibration: Calibration, data: GateData | None, threads: int, start: Start, scratch: Path
    ) -> None:
        self._bundle, self._threads, self._start, self._file = bundle, threads, start, scratch / "tried.onnx"
        towers = {tower.directory: tower for tower in bundle.manifest.towers.values()}
        advance = start("observing activations", len(towers))
        self._towers: dict[str, _Tower] = {}
        for directory, manifest in towers.items():
            self._towers[directory] = self._observed(manifest, calibration)
            advance(1)
        self._questions, self._passages, self._total = _subset(data, calibration.half(1))
        self._is_evaluation = data is not None
        self._expected = self._embedded({name: tower.fp32 for name, tower in self._towers.items()}, "fp32")

    def find(self) -> Found:
        base = {name: tower.seen.in_one_row(tower.model) for name, tower in self._towers.items()}
        alpha, percentile = self._ranges(base)
        ranking = {name: self._ranking(name, alpha, percentile, base[name]) for name in base}
        curve: list[CurvePoint] = []
        tried: list[dict[str, Rounding]] = []
        for left in LEFT_IN_FLOAT:
            if left >= max(len(each) for each in ranking.values()) or sum(point.passed for point in curve) > 1:
                break
            roundings = {name: Rounding(alpha, percentile, (*base[name], *ranking[name][:left])) for name in base}
            curve.append(self._measured(roundings, alpha, percentile, left))
            tried.append(roundings)
        return Found(tried[choose(curve)], tuple(curve))

    def _observed(self, manifest: TowerManifest, calibration: Calibration) -> _Tower:
        tokenizer_file = self._bundle.file(manifest, manifest.tokenizer_file)
        tokenizer = TowerTokenizer.load(tokenizer_file, manifest.tokenizer, manifest.max_tokens)
        file = self._bundle.file(manifest, manifest.variants["fp32"].file)
        texts = calibration.half(0).token_ids(tokenizer, manifest.directory)
        seen = calibrate.observe(file, texts, tokenizer.pad_id, self._threads)
        held_out = calibration.half(1).token_ids(tokenizer, manifest.directory)
        held_out = held_out[:: len(held_out) // ERROR_TEXTS + 1]
        fp32 = Encoder(file, tokenizer.pad_id, 1)
        expected = np.concatenate([fp32.encode([ids]) for ids in held_out])
        return _Tower(manifest, tokenizer, onnx.load(file), fp32, seen, held_out, expected)

    def _encoder(self, tower: _Tower, rounding: Rounding) -> Encoder:
        onnx.save(quantize(tower.model, tower.seen.rows, rounding), self._file)
        return Encoder(self._file, tower.tokenizer.pad_id, 1)

    def _error(self, name: str, rounding: Rounding) -> float:
        """The mean squared error of the held-out embeddings, as a share of their variance."""
        tower = self._towers[name]
        encoder = self._encoder(tower, rounding)
        found = np.concatenate([encoder.encode([ids]) for ids in tower.held_out])
        spread = np.square(tower.expected - tower.expected.mean(axis=0)).mean()
        return float(np.square(found - tower.expected).mean() / spread)

    def _ranges(self, base: Mapping[str, tuple[str, ...]]) -> tuple[float, float]:
        advance = self._start("trying alphas and ranges", len(ALPHAS) + len(PERCENTILES) - 1)

        def error(alpha: float, percentile: float) -> float:
            total = sum(self._error(name, Rounding(alpha, percentile, base[name])) for name in base)
            advance(1)
            return total

        errors = {(alpha, PERCENTILES[0]): error(alpha, PERCENTILES[0]) for alpha in ALPHAS}
        alpha = min(errors, key=lambda tried: errors[tried])[0]
        errors |= {(alpha, percentile): error(alpha, percentile) for percentile in PERCENTILES[1:]}
        return min(errors, key=lambda tried: errors[tried])

    def _ranking(self, name: str, alpha: float, percentile: float, base: Sequence[str]) -> list[str]:
        """The products, by the error of each alone in integers for its share of the multiplications."""
        tower = self._towers[name]
        found = products(tower.model)
        every = tuple(product.name for product in found)
        ranked: list[tuple[float, str]] = []
        advance = self._start(f"ranking products: {name.replace('_', ' ')}", len(every) - len(base))
        for product in found:
            if product.name in base:
                continue
            others = tuple(other for other in every if other != product.name)
            error = self._error(name, Rounding(alpha, percentile, others))
            ranked.append((error / _multiplications(product, tower.seen), product.name))
            advance(1)
        return [product for _, product in sorted(ranked, reverse=True)]

    def _measured(self, roundings: dict[str, Rounding], alpha: float, percentile: float, left: int) -> CurvePoint:
        encoders, speedups = {}, []
        for name, rounding in roundings.items():
            tower = self._towers[name]
            file = self._bundle.file(tower.manifest, tower.manifest.variants["fp32"].file)
            pair = [Encoder(file, tower.tokenizer.pad_id, 1), self._encoder(tower, rounding)]
            speedups.append(_speedup(pair[0], pair[1], self._start(f"timing, {left} left in float", ROUNDS)))
            encoders[name] = pair[1]
        found = self._embedded(encoders, f"int8, {left} left in float")
        overlap = self._overlap(found)
        return CurvePoint(
            alpha=alpha,
            percentile=percentile,
            left_in_float=left,
            speedup=round(float(np.exp(np.mean(np.log(speedups)))), 3),
            expected_overlap=round(overlap, 4),
            passages=self._total,
            data="evaluation" if self._is_evaluation else "held-out calibration",
            passed=overlap >= MIN_TOP10_OVERLAP,
        )

    def _overlap(self, found: tuple[Embeddings, Embeddings]) -> float:
        scores = [questions @ passages.T for questions, passages in (self._expected, found)]
        few = len(self._passages) // 4
        at_few = top10_overlap(scores[0][:, :few], scores[1][:, :few])
        estimate = scoring.estimate(top10_overlap(scores[0], scores[1]), seed=0)
        return expected_overlap(
            float(at_few.mean()), estimate.mean, estimate.low, (few, len(self._passages)), self._total
        )

    def _embedded(self, encoders: Mapping[str, Encoder], label: str) -> tuple[Embeddings, Embeddings]:
        """The subset's questions and passages, float32 (texts, dim) each."""

        def embedded(role: Role) -> Embeddings:
            manifest = self._bundle.tower(role)
            tokenizer = self._towers[manifest.directory].tokenizer
            is_question = role == "question_encoder"
            texts = tokenizer.questions(self._questions) if is_question else tokenizer.passages(self._passages)
            advance = self._start(f"{'questions' if is_question else 'passages'} by {label}", len(texts))
            return embed(Tower(manifest, tokenizer, encoders[manifest.directory]), texts, self._threads, advance)

        return embedded("question_encoder"), embedded("context_encoder")


def _subset(data: GateData | None, held_out: Calibration) -> tuple[list[str], list[tuple[str, str]], int]:
    """Questions, passages (title, text) in a random order, and how many passages to carry the overlap on to."""
    if data is None:
        return list(held_out.questions), list(held_out.passages), MIN_PASSAGES
    random = np.random.default_rng(data.seed)
    passages = [(data.passages[row].title, data.passages[row].text) for row in random.permutation(len(data.passages))]
    questions = [data.questions[row].text for row in random.permutation(len(data.questions))]
    return questions[:SUBSET_QUESTIONS], passages[:SUBSET_PASSAGES], max(len(passages), MIN_PASSAGES)


def _multiplications(product: Product, seen: Seen) -> float:
    return float(seen.counts[product.source]) * product.weight.size


def _speedup(fp32: Encoder, int8: Encoder, advance: Callable[[int], object]) -> float:
    """How many times as fast, in CPU time: the median of the rounds, the geometric mean of the shapes."""
    random = np.random.default_rng(0)
    batches = [[random.integers(1000, 2000, tokens) for _ in range(texts)] for texts, tokens in SHAPES]
    ratios: list[list[float]] = [[] for _ in SHAPES]
    for _ in range(ROUNDS):
        for number, batch in enumerate(batches):
            times = [_cpu_s(encoder, batch) for encoder in (fp32, int8)]
            ratios[number].append(times[0] / times[1])
        advance(1)
    return float(np.exp(np.mean(np.log([np.median(each) for each in ratios]))))


def _cpu_s(encoder: Encoder, batch: Sequence[TokenIds]) -> float:
    encoder.encode(batch)  # the first run of a shape allocates
    began = time.process_time()
    encoder.encode(batch)
    return time.process_time() - began
