"""The result of an evaluation: what was asked, of what, and what came out, question by question; saved as JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from narrows import durable, manifests
from narrows.errors import EvaluationError
from narrows_tools.evaluation.answers import AnswerProblems
from narrows_tools.evaluation.metrics import Judged, Metrics, cutoffs, rank_or_depth
from narrows_tools.evaluation.paired import Difference, Verdict, paired_means, paired_shares
from narrows_tools.evaluation.questions import AnswerKind
from narrows_tools.evaluation.search import Searched

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Asked:
    """Which questions: the file, those chosen from it by key, and the sample drawn from these (None: all of them)."""

    file: str
    sha256: str
    where: dict[str, object]
    chosen_count: int
    limit: int | None
    seed: int | None
    impossible_count: int  # left out, because the file says that they have no answer


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One run. `judged` has the questions in the order asked."""

    schema_version: int
    created_by: str
    asked: Asked
    searched: Searched
    answer_kind: AnswerKind
    depth: int
    metrics: Metrics
    problems: AnswerProblems
    notes: tuple[str, ...]
    judged: tuple[Judged, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric of two runs over the same questions."""

    name: str
    question_count: int
    difference: Difference
    verdict: Verdict
    is_share: bool


def save(file: Path, result: EvaluationResult) -> None:
    """Writes a result, durably."""
    durable.write_file(file, manifests.encode(result))


def load(file: Path) -> EvaluationResult:
    """Reads a saved result.

    Raises:
        EvaluationError: there is none, it is damaged, or it is of another schema version.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise EvaluationError(f"{file} cannot be read: {error.strerror}") from None
    return manifests.decode(data, EvaluationResult, SCHEMA_VERSION, file, EvaluationError)


def check_comparable(first: EvaluationResult, asked: Asked, ids: Iterable[str], kind: AnswerKind, depth: int) -> None:
    """Whether a run of these questions can be compared with an earlier one.

    Raises:
        EvaluationError: it does not ask the same questions, to the same depth, and judge them in the same way.
    """
    if (first.depth, first.answer_kind) != (depth, kind):
        raise EvaluationError(
            f"the results cannot be compared: depth {first.depth} and {depth}, "
            f"answers as {first.answer_kind} and {kind}"
        )
    if first.asked.sha256 != asked.sha256:  # ids may be mere numbers
        raise EvaluationError(
            f"the results cannot be compared: the question files {first.asked.file} and {asked.file} differ in content"
        )
    ours = set(ids)
    missing = sum(item.id not in ours for item in first.judged)
    if missing or len(ours) != len(first.judged):
        raise EvaluationError(
            f"the results cannot be compared: they share {len(first.judged) - missing} of {len(first.judged)} and "
            f"{len(ours)} questions; ask both the same (--questions, --where, --limit, --seed)"
        )


def compare(first: EvaluationResult, second: EvaluationResult) -> list[Compared]:
    """Every metric that both runs have: second minus first, paired by question.

    Raises:
        EvaluationError: as `check_comparable`.
    """
    ours = {item.id: item for item in second.judged}
    check_comparable(first, second.asked, ours, second.answer_kind, second.depth)
    return compare_judged(first.judged, [ours[item.id] for item in first.judged], first.depth)


def compare_judged(first: Sequence[Judged], second: Sequence[Judged], depth: int) -> list[Compared]:
    """Every metric of the same questions judged twice, in the same order: second minus first.

    Raises:
        EvaluationError: a question has answers or positive passages in only one of them.
    """
    pairs = list(zip(first, second, strict=True))
    if any((a.by_answers, a.by_positives) != (b.by_answers, b.by_positives) for a, b in pairs):
        raise EvaluationError("the results cannot be compared: a question has answers or positives in only one of them")
    compared = []
    for name, ranks in (
        ("an answer", [(a.answer_rank, b.answer_rank) for a, b in pairs if a.by_answers]),
        ("a positive", [(a.positive_rank, b.positive_rank) for a, b in pairs if a.by_positives]),
    ):
        for k in cutoffs(depth) if ranks else ():
            found = [[rank is not None and rank < k for rank in side] for side in zip(*ranks, strict=True)]
            share = paired_shares(*found)
            compared.append(Compared(f"top-{k}, {name}", len(ranks), share, share.verdict(), True))
    pairs = [(a, b) for a, b in pairs if a.by_positives]
    if pairs:
        means = {
            "MRR": paired_means([a.reciprocal_rank for a, _ in pairs], [b.reciprocal_rank for _, b in pairs]),
            "nDCG@10": paired_means([a.ndcg_10 for a, _ in pairs], [b.ndcg_10 for _, b in pairs]),
        }
        compared += [Compared(name, len(pairs), mean, mean.verdict(), False) for name, mean in means.items()]
        rank = paired_means([rank_or_depth(a, depth) for a, _ in pairs], [rank_or_depth(b, depth) for _, b in pairs])
        verdict = rank.verdict(higher_is_better=False)
        compared.append(Compared("mean rank of a positive", len(pairs), rank, verdict, False))
    return compared
