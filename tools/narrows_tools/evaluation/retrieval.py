"""`narrows eval retrieval`: asks all questions, judges the rankings, and compares with chance and with the possible."""

from collections.abc import Iterable, Sequence

import narrows
from narrows.passages import Passage
from narrows_tools.evaluation.answers import AnswerMatcher
from narrows_tools.evaluation.corpus import CorpusCounts, count
from narrows_tools.evaluation.metrics import Judged, judge, summarize
from narrows_tools.evaluation.questions import Question
from narrows_tools.evaluation.result import SCHEMA_VERSION, Asked, EvaluationResult
from narrows_tools.evaluation.run_files import RunFile
from narrows_tools.evaluation.search import Searcher
from narrows_tools.evaluation.steps import Start, silent

BLOCK = 64  # questions searched, judged and written before the next: bounds the memory for their passages
MAX_COUNTED_PASSAGES = 2_000_000  # a few minutes
MAX_COUNTED_EXPRESSIONS = 20_000_000  # questions x passages


def evaluate(
    searcher: Searcher,
    questions: Sequence[Question],
    asked: Asked,
    depth: int,
    corpus: Iterable[Passage] | None,
    run_files: Sequence[RunFile] = (),
    start: Start = silent,
) -> EvaluationResult:
    """Evaluates a system on questions of one answer kind.

    `corpus` is all passages, for the rows of chance and of the possible; without it, or if it is too large to count,
    they are left out and a note says so.
    """
    # First, so that a bad passage file costs no answers.
    counts, notes = _count(questions, corpus, searcher.searched.passage_count, start)
    judged, matcher = rank_and_judge(searcher, questions, depth, run_files, start)
    if counts and counts.passage_count != searcher.searched.passage_count:
        notes.append(
            f"the passages counted for chance and ceiling are {counts.passage_count}, those searched "
            f"{searcher.searched.passage_count}: is it the right file?"
        )
    if asked.impossible_count:
        notes.append(f"{asked.impossible_count} questions were left out: their file says that they have no answer")
    return EvaluationResult(
        SCHEMA_VERSION,
        f"narrows {narrows.__version__}",
        asked,
        searcher.searched,
        matcher.kind,
        depth,
        summarize(judged, depth, counts),
        matcher.problems,
        tuple(notes),
        tuple(judged),
    )


def rank_and_judge(
    searcher: Searcher,
    questions: Sequence[Question],
    depth: int,
    run_files: Sequence[RunFile] = (),
    start: Start = silent,
) -> tuple[list[Judged], AnswerMatcher]:
    """Asks and judges all questions; also returns the matcher, which knows of problems with the answers."""
    matcher = AnswerMatcher(questions[0].answer_kind if questions else "string")
    judged = []
    advance = start("asking questions", len(questions))
    for first in range(0, len(questions), BLOCK):
        block = questions[first : first + BLOCK]
        rankings = searcher.search([question.text for question in block], depth)
        for question, ranking in zip(block, rankings, strict=True):
            item, has_answer = judge(question, ranking, matcher)
            judged.append(item)
            for file in run_files:
                file.write(question, ranking, has_answer)
        advance(len(block))
    return judged, matcher


def _count(
    questions: Sequence[Question], corpus: Iterable[Passage] | None, passage_count: int, start: Start
) -> tuple[CorpusCounts | None, list[str]]:
    """The counts if there is something to count and it is not too much; and what to say otherwise."""
    if corpus is None:
        return None, ["no rows for chance and ceiling: they need all passages (--passages)"]
    is_regex = bool(questions) and questions[0].answer_kind == "regex"
    if passage_count > MAX_COUNTED_PASSAGES or (is_regex and passage_count * len(questions) > MAX_COUNTED_EXPRESSIONS):
        return None, [f"no rows for chance and ceiling: counting over {passage_count} passages would take too long"]
    return count(questions, corpus, start("counting passages", passage_count)), []
