"""How hard to search: the fastest settings that reach a recall on real questions, measured on others.

Recall of a question is the share of its exact k best passages that were found. Found passages are counted by their
exact score, so that of equal scores at the cut any may stand for any other.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows.errors import IndexFileError
from narrows.index.approximate import ApproximateIndex
from narrows.index.flat import FlatIndex
from narrows.index.presets import Plan, SearchSettings
from narrows.index.store import Recall

LEAST_EFFORT = {True: 16, False: 1}  # of a graph; of lists
REFINES = (1, 2, 4, 8, 16, 32)
TIMED_QUESTIONS = 200
BISECTIONS = 2  # between an effort that reaches the target and half of it, which does not
Z_ONE_SIDED_95 = 1.645
LEAST_QUESTIONS = 20

Queries = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What to tune and measure with: distinct questions, how many passages of each matter, the recall to reach or 0."""

    questions: Sequence[str]
    k: int = 100
    target: float = 0.0
    cpu: str = ""


@dataclass(frozen=True, slots=True)
class Exam:
    """Questions, float32 (questions, dim), and the exact score of each one's k-th best passage."""

    queries: Queries
    thresholds: npt.NDArray[np.float32]
    k: int
    exact: FlatIndex

    @classmethod
    def of(cls, exact: FlatIndex, queries: Queries, k: int) -> "Exam":
        """Searches all questions exactly."""
        k = min(k, exact.count)
        return cls(queries, exact.search(queries, k).scores[:, -1], k, exact)

    def part(self, which: slice) -> "Exam":
        """Some of the questions."""
        return Exam(self.queries[which], self.thresholds[which], self.k, self.exact)

    def recalls(self, index: ApproximateIndex | FlatIndex) -> npt.NDArray[np.float64]:
        """The recall of each question."""
        rows = index.search(self.queries, self.k).rows
        return np.array(
            [
                (self.exact.scores(query, found) >= threshold).mean()
                for query, found, threshold in zip(self.queries, rows, self.thresholds, strict=True)
            ]
        )

    def times_ms(self, index: ApproximateIndex | FlatIndex) -> list[float]:
        """How long a question takes alone, for some of them, ascending; the first one warms up."""
        queries = self.queries[:TIMED_QUESTIONS]
        index.search(queries[:1], self.k)
        times = []
        for query in queries:
            started_s = time.perf_counter()
            index.search(query[None], self.k)
            times.append((time.perf_counter() - started_s) * 1000)
        return sorted(times)


def check(questions: int, target: float) -> None:
    """Whether there are enough questions to tune with.

    Raises:
        IndexFileError: there are not.
    """
    if target and questions < LEAST_QUESTIONS:
        raise IndexFileError(f"{questions} questions are too few to tune with; give {LEAST_QUESTIONS}")


def measured(
    index: ApproximateIndex | FlatIndex, plan: Plan, exam: Exam, tuning: Tuning, step: Callable[[str], object]
) -> tuple[SearchSettings, Recall]:
    """The settings to search with, and what they were measured to do.

    With a target, every second question chooses the settings and the others measure them. So that what holds of the
    first holds of the others, the target must be within the recall's one-sided 95 % bound of the first.

    Args:
        index: as it will be served.
        plan: what it is.
        exam: all questions.
        tuning: k and target.
        step: told what is measured next.

    Raises:
        IndexFileError: the target cannot be reached, or was missed by the questions that measure.
    """
    settings, tuned_on = plan.search, 0
    if tuning.target and isinstance(index, ApproximateIndex):
        check(len(exam.queries), tuning.target)
        first, exam = exam.part(slice(0, None, 2)), exam.part(slice(1, None, 2))
        settings, tuned_on = _tuned(index, plan, first, tuning.target, step), len(first.queries)
        index.use(settings)
    step("measuring recall")
    reached = float(exam.recalls(index).mean())
    if reached < tuning.target:
        raise IndexFileError(
            f"recall at {exam.k} is {reached:.4f} on {len(exam.queries)} questions, below {tuning.target}"
            + (f", though {tuned_on} others reached it: give more questions, or ask for less" if tuned_on else "")
        )
    times = exam.times_ms(index)
    return settings, Recall(
        k=exam.k,
        recall=reached,
        target=tuning.target,
        questions=len(exam.queries),
        tuned_on=tuned_on,
        p50_ms=times[len(times) // 2],
        p99_ms=times[len(times) * 99 // 100],
        cpu=tuning.cpu,
    )


def _tuned(
    index: ApproximateIndex, plan: Plan, exam: Exam, target: float, step: Callable[[str], object]
) -> SearchSettings:
    """The fastest settings that surely reach the target."""
    best: tuple[float, SearchSettings] | None = None
    highest = 0.0
    for refine in REFINES if plan.store != "none" else (1,):

        def bound(effort: int, refine: float = refine) -> float:
            settings = SearchSettings(plan.effort(effort), refine)
            step(f"recall with {settings.parameters or 'all codes'}, {refine} k candidates")
            index.use(settings)
            recalls = exam.recalls(index)
            nonlocal highest
            highest = max(highest, float(recalls.mean()))
            return float(recalls.mean() - Z_ONE_SIDED_95 * recalls.std(ddof=1) / len(recalls) ** 0.5)

        effort = _least_effort(plan, bound, target)
        if effort is None:
            continue
        settings = SearchSettings(plan.effort(effort), refine)
        index.use(settings)
        times = exam.times_ms(index)
        middle = times[len(times) // 2]
        if best and middle > best[0]:
            break  # more candidates cost more than the effort they save
        best = (middle, settings)
    if best is None:
        raise IndexFileError(
            f"no search of {plan.factory} surely reaches a recall at {exam.k} of {target} on {len(exam.queries)} "
            f"questions; the highest was {highest:.4f}. Ask for less, give more questions, or choose a preset with "
            "more bytes a vector (--preset, --rescore)"
        )
    return best[1]


def _least_effort(plan: Plan, bound: Callable[[int], float], target: float) -> int | None:
    """About the least effort whose bound is at the target; None where none is."""
    most = plan.most_effort
    if not most:
        return 0 if bound(0) >= target else None
    reached = None
    before = -1.0
    for effort in _doubling(LEAST_EFFORT[plan.is_graph], most):
        found = bound(effort)
        if found >= target:
            reached = effort
            break
        if found == before > 0 and bound(most) < target:  # all that can be found is
            return None
        before = found
    if reached is None:
        return None
    low = reached // 2
    for _ in range(BISECTIONS):
        middle = (low + reached) // 2
        if middle in (low, reached):
            break
        if bound(middle) >= target:
            reached = middle
        else:
            low = middle
    return reached


def _doubling(least: int, most: int) -> Iterator[int]:
    yield from itertools.takewhile(lambda effort: effort < most, (least * 2**n for n in itertools.count()))
    yield most
