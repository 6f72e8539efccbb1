"""Results as text for a terminal."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from narrows_tools.evaluation.metrics import Accuracies
from narrows_tools.evaluation.result import Compared, EvaluationResult
from narrows_tools.evaluation.search import Searched

if TYPE_CHECKING:  # it needs ONNX Runtime and FAISS
    from narrows_tools.evaluation.presets import PresetCost

NAME_WIDTH, CELL_WIDTH, WIDE_CELL = 44, 9, 18
SHOWN_ANSWERS = 5


def result_table(result: EvaluationResult) -> str:
    """The numbers of one run."""
    searched, metrics = result.searched, result.metrics
    lines = [
        f"{len(result.judged)} questions of {result.asked.file}, {searched.passage_count} passages of "
        f"{searched.index or 'no index'} ({searched.generation}), bundle {searched.bundle} ({_variants(searched)})"
    ]
    if metrics.by_answers:
        lines += ["", *_accuracy_rows("a passage with an answer, %", metrics.by_answers)]
    if metrics.by_positives:
        lines += ["", *_accuracy_rows("a positive passage, %", metrics.by_positives)]
    if metrics.ranks:
        ranks = metrics.ranks
        lines += [
            "",
            f"{'MRR':<{NAME_WIDTH}}{ranks.mrr:>{CELL_WIDTH}.4f}",
            f"{'nDCG@10':<{NAME_WIDTH}}{ranks.ndcg_10:>{CELL_WIDTH}.4f}",
            f"{'mean rank of the first positive, from 0':<{NAME_WIDTH}}{ranks.mean_positive_rank:>{CELL_WIDTH}.2f}"
            f"   ({ranks.missed_count} not within {result.depth}: counted as {result.depth})",
        ]
    return "\n".join([*lines, *_remarks(result)])


def _variants(searched: Searched) -> str:
    """The variant, or both where they differ."""
    if searched.variant == searched.passage_variant:
        return searched.variant
    return f"questions by {searched.variant}, passages by {searched.passage_variant}"


def _accuracy_rows(name: str, table: Accuracies) -> list[str]:
    rows = [
        f"{name:<{NAME_WIDTH}}" + "".join(f"{f'top-{k}':>{CELL_WIDTH}}" for k in table.accuracy),
        _row(f"accuracy over {table.question_count} questions", table.accuracy),
        _row("  95 % interval, from", {k: low for k, (low, _) in table.interval.items()}),
        _row("  to", {k: high for k, (_, high) in table.interval.items()}),
    ]
    if table.random is not None:
        rows.append(_row("random ranking", table.random))
    if table.ceiling is not None:
        rows.append(_row("ceiling: the corpus holds one", dict.fromkeys(table.accuracy, table.ceiling)))
    if table.answerable is not None and table.answerable_count != table.question_count:
        rows.append(_row(f"accuracy over those {table.answerable_count} questions", table.answerable))
    return rows


def _row(name: str, shares: dict[int, float]) -> str:
    return f"{name:<{NAME_WIDTH}}" + "".join(f"{100 * share:>{CELL_WIDTH}.2f}" for share in shares.values())


def _remarks(result: EvaluationResult) -> list[str]:
    remarks = list(result.notes)
    for answers, meaning in (
        (result.problems.empty, "answers without a letter, digit or other visible character, found in every passage"),
        (result.problems.malformed, "answers that are no regular expressions, found in no passage"),
        (result.problems.timed_out, "answers that ran out of time as regular expressions, and so were not found there"),
    ):
        if answers:
            shown = ", ".join(map(repr, answers[:SHOWN_ANSWERS])) + (", ..." if len(answers) > SHOWN_ANSWERS else "")
            remarks.append(f"{meaning}: {len(answers)} ({shown})")
    return ["", *(f"note: {remark}" for remark in remarks)] if remarks else []


def comparison_table(compared: Sequence[Compared], first: str, second: str) -> str:
    """Metrics of two runs side by side; shares in percent, their differences in points."""
    width = max(14, len(first) + 2, len(second) + 2)
    lines = [f"{'':<28}{first:>{width}}{second:>{width}}{'difference':>12}   95 % interval"]
    for item in compared:
        factor, digits = (100, 2) if item.is_share else (1, 2 if item.difference.first > 1 else 4)
        one, two, difference, low, high = (
            f"{factor * value:{sign}.{digits}f}"
            for value, sign in (
                (item.difference.first, ""),
                (item.difference.second, ""),
                (item.difference.difference, "+"),
                (item.difference.low, "+"),
                (item.difference.high, "+"),
            )
        )
        interval = f"{low} to {high}"
        lines.append(f"{item.name:<28}{one:>{width}}{two:>{width}}{difference:>12}   {interval:<20} {item.verdict}")
    return "\n".join(lines)


def presets_table(costs: "Sequence[PresetCost]", question_count: int) -> str:
    """One block for each way of judging: every preset's accuracies, and how they differ from the bundle's own."""
    lines = [f"{question_count} questions; changed: what the towers read differently than with the bundle's own preset"]
    blocks = (
        ("a passage with an answer, %", "an answer", [cost.metrics.by_answers for cost in costs]),
        ("a positive passage, %", "a positive", [cost.metrics.by_positives for cost in costs]),
    )
    for heading, judged_by, tables in blocks:
        if tables[0] is None:
            continue
        ks = list(tables[0].accuracy)
        lines += ["", f"{heading:<40}" + "".join(f"{f'top-{k}':>{WIDE_CELL}}" for k in ks)]
        for cost, table in zip(costs, tables, strict=True):
            assert table is not None  # the questions are the same
            lines.append(
                f"{cost.preset + ('' if cost.compared else ' (the own one)'):<40}" + _cells(table.accuracy.values())
            )
            if cost.compared:
                changed = f"  changed: {cost.changed_questions} questions, {cost.changed_passages} passages"
                own = [item.difference for item in cost.compared if item.is_share and item.name.endswith(judged_by)]
                lines.append(f"{changed:<40}" + _cells([each.difference for each in own], "+"))
                intervals = (f"{100 * each.low:+.2f} to {100 * each.high:+.2f}" for each in own)
                lines.append(f"{'  95 % interval':<40}" + "".join(f"{each:>{WIDE_CELL}}" for each in intervals))
    return "\n".join(lines)


def _cells(shares: Iterable[float], sign: str = "") -> str:
    return "".join(f"{f'{100 * share:{sign}.2f}':>{WIDE_CELL}}" for share in shares)
