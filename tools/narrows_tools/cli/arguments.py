"""Arguments that several commands share."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from narrows import settings
from narrows.errors import SettingsError

if TYPE_CHECKING:
    from narrows_export.gate_data import GateRequest


TEXT_PRESETS = ("hf", "dpr-2020", "dpr-head", "haystack")  # narrows.text_presets says what they are


def threads(text: str) -> int:
    """A number of threads; 0 means all cores."""
    count = int(text)
    if not 0 <= count <= 1024:
        raise argparse.ArgumentTypeError("must be 0 to 1024")
    return count


def positive(text: str) -> int:
    """A number of things, at least one."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return count


def natural(text: str) -> int:
    """A number of things, or a seed, of which numpy takes none below 0."""
    count = int(text)
    if count < 0:
        raise argparse.ArgumentTypeError("must be at least 0")
    return count


def number(text: str) -> float:
    """Any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def device(text: str) -> str:
    """The CPU or a GPU, as the server's setting of that name."""
    if not settings.is_choice(text, settings.ABOUT["device"].choices):
        raise argparse.ArgumentTypeError(f"must be {settings.allowed('device')}, not {text!r}")
    return text


def check_output(file: Path) -> None:
    """Refuses a file that cannot be written: better now than when all is done.

    Raises:
        SettingsError: its directory is missing, or it is a directory itself.
    """
    if not file.parent.is_dir():
        raise SettingsError(f"{file} cannot be written: {file.parent} is no directory; make it first")
    if file.is_dir():
        raise SettingsError(f"{file} cannot be written: it is a directory")


def condition(text: str) -> tuple[str, object]:
    """KEY=VALUE; a value that is not JSON is a string."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError("expected KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


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
        help="questions or passages that int8 is, or was, calibrated on (repeatable); texts shared with the gate's "
        "are refused",
    )
    command.add_argument(
        "--gate-answers", choices=("string", "regex"), default="string", help="what the answers are (default: string)"
    )
    command.add_argument(
        "--gate-where",
        action="append",
        default=[],
        type=condition,
        metavar="KEY=VALUE",
        help="only questions whose JSON line has this value (JSON, or else a string); may be repeated",
    )
    command.add_argument("--gate-limit", type=positive, metavar="N", help="draw N of the questions (default: all)")
    command.add_argument(
        "--gate-seed", type=natural, default=0, metavar="S", help="seed of what is drawn by chance (default: 0)"
    )
    command.add_argument(
        "--gate-language", default="", metavar="L", help="language of the texts, such as en; only recorded"
    )


def add_int8_argument(command: argparse.ArgumentParser) -> None:
    """Adds the argument that says how int8 is made."""
    command.add_argument(
        "--int8",
        choices=("default", "auto"),
        help="make int8, by default settings or by a search (auto) for the fastest rounding that keeps fp32's answers: "
        "on the gate's questions and passages where they are given, else on held-out calibration texts; minutes for "
        "a 6-layer tower, an hour or more for BERT-base. Either is calibrated on --calibration, by default on the "
        "texts that ship with the exporter",
    )


def gate_request(options: argparse.Namespace) -> "GateRequest":
    """What the arguments of a gate ask for."""
    from narrows_export.gate_data import GateRequest

    return GateRequest(
        questions=options.gate_questions,
        passages=options.gate_passages,
        calibration=tuple(options.calibration),
        answer_kind=options.gate_answers,
        where=dict(options.gate_where),
        limit=options.gate_limit,
        seed=options.gate_seed,
        language=options.gate_language,
    )
