"""`narrows serve`: answers over gRPC."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrows import settings

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    command = commands.add_parser(
        "serve",
        help="answer questions over gRPC",
        description="Loads a bundle and an index, warms up, and serves narrows.v1.RetrievalService with health and "
        "reflection until SIGTERM; then it finishes what is queued and exits 0. It prints `narrows: serving on "
        "HOST:PORT` on stdout once it is ready.",
        epilog=_epilog(),
    )
    add_flags(command)
    command.set_defaults(run=run)


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of the settings that have one, and --config."""
    for name, about in settings.ABOUT.items():
        if about.flag:
            default = settings.DEFAULTS.get(name)
            text = about.meaning if default in (None, "") else f"{about.meaning} (default: {default})"
            metavar = "|".join([*about.choices, "N"] if about.bounds else about.choices) or name.upper()
            command.add_argument(settings.flag(name), help=text, metavar=metavar)
    command.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings, such as narrows.toml")


def given(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_flags` brought, by setting name; None where a flag was not given."""
    return {name: getattr(options, name) for name, about in settings.ABOUT.items() if about.flag}


def run(options: argparse.Namespace) -> int:
    """Serves until stopped."""
    from narrows.process import log_to_stderr
    from narrows.server.run import serve

    chosen = settings.load(given(options), os.environ, options.config)
    log_to_stderr(chosen.log_level)
    serve(chosen, lambda address: print(f"narrows: serving on {address}", flush=True))
    return 0


def _epilog() -> str:
    rows = [
        f"  {name:<21} {about.meaning} (default: {settings.DEFAULTS[name]})"
        for name, about in settings.ABOUT.items()
        if not about.flag
    ]
    return "\n".join(
        [
            "Every setting is taken from its flag, else from the variable NARROWS_<NAME>, else from the TOML file.",
            "Settings without a flag:",
            *rows,
            "`narrows config show` prints what would be used, and where each value came from.",
        ]
    )
