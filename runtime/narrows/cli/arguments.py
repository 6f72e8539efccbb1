"""Arguments that several commands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from narrows_export.gate_data import GateRequest


def threads(text: str) -> int:
    """A number of threads; 0 means all cores."""
    number = int(text)
    if not 0 <= number <= 1024:
        raise argparse.ArgumentTypeError("must be 0 to 1024")
    return number


def add_gate_arguments(command: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds the arguments of a gate."""
    command.add_argument(
        "--gate-questions",
        type=Path,
        required=required,
        metavar="FILE",
        help="questions with answers or positive passages: DPR's .csv, .jsonl or SQuAD's .json, or .gz of them",
    )
    command.add_argument(
        "--gate-passages", type=Path, required=required, metavar="FILE", help="passages: .tsv or .jsonl, or .gz of them"
    )
    command.add_argument(
        "--calibration",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="questions or passages that a variant was calibrated on (repeatable); texts shared with the gate's are "
        "refused",
    )
    command.add_argument("--gate-limit", type=_at_least_one, metavar="N", help="draw N of the questions (default: all)")
    command.add_argument(
        "--gate-seed", type=int, default=0, metavar="S", help="seed of what is drawn by chance (default: 0)"
    )
    command.add_argument(
        "--gate-language", default="", metavar="L", help="language of the texts, such as en; only recorded"
    )


def gate_request(options: argparse.Namespace) -> "GateRequest":
    """What the arguments of a gate ask for."""
    from narrows_export.gate_data import GateRequest

    return GateRequest(
        questions=options.gate_questions,
        passages=options.gate_passages,
        calibration=tuple(options.calibration),
        limit=options.gate_limit,
        seed=options.gate_seed,
        language=options.gate_language,
    )


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number
