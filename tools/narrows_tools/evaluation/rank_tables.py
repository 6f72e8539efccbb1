"""The result of `narrows eval rank` as text for a terminal."""

from collections.abc import Callable

from narrows_tools.evaluation.batch_metrics import BatchMetrics
from narrows_tools.evaluation.ranks import BatchReport, PoolReport, RankResult

NAME_WIDTH, CELL_WIDTH = 44, 14

ROWS: tuple[tuple[str, Callable[[BatchMetrics], str]], ...] = (
    ("loss: mean NLL of a question", lambda found: f"{found.loss:.4f}"),
    ("loss, batch means over questions", lambda found: f"{found.batch_means_over_questions:.4f}"),
    ("accuracy over pairs", lambda found: f"{found.accuracy:.4f}"),
    ("F1 of gold pairs", lambda found: f"{found.f1:.4f}"),
    ("acc_and_f1", lambda found: f"{found.acc_and_f1:.4f}"),
    ("average rank in the batch, from 0", lambda found: f"{found.average_rank:.4f}"),
    ("questions that are wrong", lambda found: f"{found.wrong}"),
    ("questions that are right, %", lambda found: f"{100 * found.question_accuracy:.2f}"),
)


def rank_table(result: RankResult) -> str:
    """Both reports, as far as they were made."""
    variants = result.question_variant
    if result.passage_variant != variants:
        variants = f"questions by {variants}, passages by {result.passage_variant}"
    lines = [f"{result.questions} questions of {result.data}, bundle {result.bundle} ({variants})"]
    if result.without_positive:
        lines.append(f"left out: {result.without_positive} questions without a positive passage")
    if result.pool:
        lines += ["", *_pool_lines(result.pool)]
    if result.batches:
        lines += ["", *_batch_lines(result.batches)]
    return "\n".join(lines)


def _pool_lines(pool: PoolReport) -> list[str]:
    low, high = pool.average_rank_interval
    first_low, first_high = (100 * bound for bound in pool.first_interval)
    return [
        f"pool: {pool.questions} questions against {pool.passages} passages ({pool.distinct} distinct)",
        f"{'average rank, from 0':<{NAME_WIDTH}}{pool.average_rank:>{CELL_WIDTH}.2f}   95 %: {low:.2f} to {high:.2f}",
        f"{'passages that tie with the gold one':<{NAME_WIDTH}}{pool.average_ties:>{CELL_WIDTH}.2f}",
        f"{'gold passage first, %':<{NAME_WIDTH}}{100 * pool.first:>{CELL_WIDTH}.2f}"
        f"   95 %: {first_low:.2f} to {first_high:.2f}",
    ]


def _batch_lines(report: BatchReport) -> list[str]:
    settings, both = report.settings, (report.all_contexts, report.copies_masked)
    plain = report.all_contexts
    lines = [
        f"batches: {plain.questions} questions in {plain.batches} batches of {settings.size} (seed {settings.seed}), "
        "each with its gold passage and one hard negative",
        _row("", "all contexts", "copies masked"),
        *(_row(name, *(shown(found) for found in both)) for name, shown in ROWS),
        "",
        f"{'pairs':<22}" + "".join(f"{name:>{CELL_WIDTH}}" for name in ("precision", "recall", "F1", "support")),
    ]
    for metrics, heading in zip(both, ("all contexts", "copies masked"), strict=True):
        for name, one in (("other", metrics.other), ("gold", metrics.gold)):
            cells = (f"{one.precision:.4f}", f"{one.recall:.4f}", f"{one.f1:.4f}", str(one.support))
            lines.append(f"{f'{heading}, {name}':<22}" + "".join(f"{cell:>{CELL_WIDTH}}" for cell in cells))
    notes = (
        (report.with_gold_copies, "questions have another copy of their gold passage in their batch"),
        (report.with_other_negative, "questions have no hard negative: another negative is taken"),
        (report.without_negative, "questions have no negative: they bring their gold passage alone"),
    )
    return [*lines, *(f"note: {count} {what}" for count, what in notes if count)]


def _row(name: str, *cells: str) -> str:
    return f"{name:<{NAME_WIDTH}}" + "".join(f"{cell:>{CELL_WIDTH}}" for cell in cells)
