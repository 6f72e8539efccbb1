"""Arguments and progress that all commands share which make an index: how its vectors are held and measured."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import positive

if TYPE_CHECKING:
    from narrows.index.presets import Plan, Wanted
    from narrows.index.store import Recall, SkippedRows
    from narrows.index.tuning import Tuning

UNITS = {"": 1, "B": 1} | {f"{unit}IB": 2 ** (10 * n) for n, unit in enumerate("KMGT", start=1)}
UNITS |= {f"{unit}B": 10 ** (3 * n) for n, unit in enumerate("KMGT", start=1)}
PRESETS = {  # narrows.index.presets says what they are; a test holds this to it
    "flat": "exact (default)",
    "flat-fp16": "exact, half the memory",
    "sq8": "all scanned, a quarter of the memory",
    "hnsw": "a graph: fast at high recall, the most memory",
    "hnsw-l2": "the same over Euclidean distances, as DPR's, for comparison",
    "ivf-sq8": "lists, a byte a dimension",
    "ivfpq-fs": "lists, a bit a dimension, and fp16 vectors on disk",
    "rabitq": "the same, trained faster",
}


def size(text: str) -> int:
    """A number of bytes, such as 8GiB or 500MB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?B?)", text.strip(), re.IGNORECASE)
    unit = match[2].upper() if match else ""
    unit = unit if unit in UNITS else unit + "B"
    if match is None or len(text) > 32 or unit not in UNITS or not (found := int(float(match[1]) * UNITS[unit])):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, such as 8GiB or 500MB")
    return found


def share(text: str) -> float:
    """A share above 0 and up to 1."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share, such as 0.98")
    return found


def add_vector_arguments(command: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how the vectors are held, and what to measure that with."""
    group = command.add_argument_group("how the vectors are held and searched")
    which = group.add_mutually_exclusive_group()
    which.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="P",
        help="; ".join(f"{name}: {about}" for name, about in PRESETS.items()),
    )
    which.add_argument(
        "--factory",
        metavar="S",
        help="any FAISS factory string of lists, a graph or codes, such as IVF4096,PQ64 or HNSW64,SQ8",
    )
    which.add_argument(
        "--memory-budget",
        type=size,
        metavar="SIZE",
        help="take the best preset whose vectors fit into so much memory, such as 8GiB, and say why",
    )
    group.add_argument(
        "--rescore",
        choices=("none", "fp16", "fp32"),
        help="vectors to keep on disk that candidates are scored again with (default: the preset's)",
    )
    group.add_argument(
        "--questions",
        type=Path,
        metavar="FILE",
        help="questions to measure recall with: a .txt with one a line, or a file that `narrows eval` reads",
    )
    group.add_argument(
        "--target-recall",
        type=share,
        metavar="R",
        help="search just hard enough for this recall, such as 0.98; half of --questions choose how hard, the others "
        "measure it. A miss is an error, and what was built stays for another try",
    )
    group.add_argument(
        "--recall-at", type=positive, default=100, metavar="K", help="passages that recall is of (default: 100)"
    )


def wanted(options: argparse.Namespace) -> "Wanted":
    """What the arguments ask for."""
    from narrows.index.presets import Wanted

    return Wanted(
        preset=options.preset or "flat",
        factory=options.factory or "",
        store=options.rescore,
        memory_budget_bytes=options.memory_budget or 0,
    )


def tuning(options: argparse.Namespace) -> "Tuning | None":
    """The questions to measure with.

    Raises:
        SettingsError: a target without questions.
        QuestionFileError: they cannot be read.
    """
    from narrows.errors import SettingsError
    from narrows.index.tuning import Tuning
    from narrows_tools.doctor.machine import parse_cpuinfo

    if options.questions is None:
        if options.target_recall:
            raise SettingsError("--target-recall is measured on questions: give --questions FILE")
        return None
    cpu = parse_cpuinfo(Path("/proc/cpuinfo").read_text()).model if Path("/proc/cpuinfo").exists() else ""
    # A question that stands there twice must not both tune and measure.
    questions = list(dict.fromkeys(_questions(options.questions)))
    return Tuning(questions, options.recall_at, options.target_recall or 0.0, cpu)


def _questions(file: Path) -> list[str]:
    from narrows.errors import QuestionFileError
    from narrows.text_lines import TextLines
    from narrows_tools.evaluation.questions import read

    if file.suffix != ".txt":
        return [question.text for question in read(file)]
    with TextLines(file, QuestionFileError) as lines:
        texts = [text for line in lines if (text := line.strip())]
    if not texts:
        raise QuestionFileError(f"{file} holds no questions: write one a line")
    return texts


def described(plan: "Plan", dim: int) -> str:
    """How vectors are held and searched, in a line."""
    stored = "" if plan.is_exact or plan.store == "none" else f", scored again with {plan.store} vectors"
    return f"{dim} dimensions, {plan.preset} ({plan.factory}{stored}){described_search(plan)}"


def described_search(plan: "Plan") -> str:
    """How hard is searched, as the end of a line; empty where there is no choice."""
    candidates = f"{plan.search.refine:g} k candidates" if plan.search.refine != 1 else ""
    return "".join(f", {setting}" for setting in (plan.search.parameters, candidates) if setting)


def described_recall(recall: "Recall | None") -> str:
    """What was measured, in a line."""
    if recall is None:
        return "not measured (give --questions when building)"
    target = f", target {recall.target:g}" if recall.target else ""
    return (
        f"{recall.recall:.4f} at {recall.k} on {recall.questions} questions{target}; a question takes "
        f"{recall.p50_ms:.2f} ms (p99 {recall.p99_ms:.2f}) on one thread of {recall.cpu or 'this machine'}"
    )


def described_skips(skipped: "dict[str, SkippedRows]") -> Iterator[str]:
    """Rows that were left out: a line for each reason, with the places of the first."""
    for reason, rows in skipped.items():
        places = ", ".join(place.partition(":")[0] for place in rows.first)
        more = ", ..." if rows.count > len(rows.first) else ""
        first = rows.first[0].partition(": ")[2]
        yield f"{rows.count} row{'s' * (rows.count > 1)}: {reason} (at line {places}{more}; the first: {first})"
