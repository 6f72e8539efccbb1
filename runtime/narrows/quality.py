"""Quality reports: what a pair of variants finds beside fp32, and whether that is enough to be served by default.

A report judges a question encoder's variant together with the context encoder's variant that filled the index, over
questions and passages that no variant was calibrated on. It is measured by `narrows_export.gate` and kept in the
bundle's manifest; its status follows from its numbers here and is stored nowhere.
"""

from dataclasses import dataclass
from typing import Literal

Judgement = Literal["passed", "failed", "unverified"]
Status = Literal["reference", "passed", "failed", "unverified", "experimental"]

# The bars a pair must clear, at all passages of the report. Overlap in shares, accuracies in points (hundredths).
MIN_TOP10_OVERLAP = 0.93  # lower end of the 95 % interval of the tie-safe overlap with fp32
MAX_ACCURACY_DROP_POINTS = {1: 1.0, 20: 0.5}  # by k; by answers and, where the questions name them, by positives
# Below these a report says too little, whatever it says; the questions are those that count, by answers or positives.
MIN_QUESTIONS = 1000
MIN_PASSAGES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over the questions and its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """The share of questions with something right among the first `k`, and its difference from fp32 x fp32.

    Shares, not points. The interval of `change` is of the difference question by question
    (narrows_tools.evaluation.paired).
    """

    k: int
    share: float
    change: Estimate


@dataclass(frozen=True, slots=True)
class Scale:
    """A pair over one number of passages.

    `top10_overlap` counts a passage of the pair's first ten as common if fp32 scores it no lower than its own tenth
    (ties are then no matter of luck; ann-benchmarks counts recall so); its interval is a bootstrap over questions.
    `by_positives` covers only the questions with a positive passage among these passages, `positives_questions` of
    them.
    """

    passages: int
    top10_overlap: Estimate
    by_answers: tuple[Accuracy, ...]  # empty where the questions have no answers
    answers_questions: int
    by_positives: tuple[Accuracy, ...]  # empty where the questions name none
    positives_questions: int


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that a report rests on: its name, SHA-256, and how many of its texts were used."""

    name: str
    sha256: str
    texts: int


@dataclass(frozen=True, slots=True)
class QualityReport:
    """One pair, judged. The models' hashes say of which files; `scales` ends with all passages."""

    question_variant: str
    passage_variant: str
    question_model_sha256: str
    passage_model_sha256: str
    created_by: str
    language: str  # of the texts; empty: unknown
    questions: DataFile
    passages: DataFile
    where: tuple[str, ...]  # only questions whose JSON lines have these values, as KEY=JSON
    calibration: tuple[DataFile, ...]  # shares no text with the two above
    seed: int
    scales: tuple[Scale, ...]


def judge(report: QualityReport) -> Judgement:
    """Holds a report against the bars."""
    if questions_counted(report) < MIN_QUESTIONS or report.scales[-1].passages < MIN_PASSAGES:
        return "unverified"
    return "failed" if shortfalls(report) else "passed"


def questions_counted(report: QualityReport) -> int:
    """Questions that have an answer, or a positive among the passages: whichever are more."""
    return max(report.scales[-1].answers_questions, report.scales[-1].positives_questions)


def shortfalls(report: QualityReport) -> list[str]:
    """The bars that a report misses, each in a few words. A kind with too few questions of its own decides nothing."""
    scale = report.scales[-1]
    missed = []
    if not scale.top10_overlap.low >= MIN_TOP10_OVERLAP:
        missed.append(f"top-10 overlap {scale.top10_overlap.low:.3f} (at least {MIN_TOP10_OVERLAP})")
    for kind, accuracies, questions in (
        ("answers", scale.by_answers, scale.answers_questions),
        ("positives", scale.by_positives, scale.positives_questions),
    ):
        for accuracy in accuracies if questions >= MIN_QUESTIONS else ():
            allowed = MAX_ACCURACY_DROP_POINTS.get(accuracy.k)
            drop = -100 * accuracy.change.mean
            if allowed is not None and not drop <= allowed:
                missed.append(f"top-{accuracy.k} by {kind} {drop:.2f} points lower (at most {allowed})")
    return missed
