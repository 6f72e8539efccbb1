"""`narrows`: reads the command line and hands over to one command."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import narrows
from narrows.errors import MissingExtraError, NarrowsError
from narrows_tools.cli import (
    bench,
    bundle,
    config,
    doctor,
    evaluate,
    export,
    index,
    passages,
    quickstart,
    search,
    serve,
)
from narrows_tools.packages import extra_of

PIPE_CLOSED = 141  # what a shell says of a program that SIGPIPE ended


class HelpFormatter(argparse.HelpFormatter):
    """Wraps a text of one line to the terminal, and leaves one of several lines as it is."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """The parser, and so those of its commands, with HelpFormatter."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  (ArgumentParser's own)
        super().__init__(**settings, formatter_class=HelpFormatter)


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root: argparse.ArgumentParser = Parser(
        prog="narrows",
        description="Dense passage retrieval, served: checkpoint -> bundle -> index -> answers over gRPC.",
        epilog="Begin with: narrows quickstart --pair minilm. The usual way: narrows export, narrows passages split, "
        "narrows index build, narrows serve, narrows search. Each has its own --help.",
    )
    root.add_argument("--version", action="version", version=f"narrows {narrows.__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (quickstart, doctor, export, bundle, passages, index, serve, search, evaluate, bench, config):
        command.add(commands)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit status: 0 done, 1 an expected failure, 2 bad usage, 130 interrupted, 141 nobody reads the output.
    """
    options = parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains of it at its end
        return PIPE_CLOSED
    except NarrowsError as error:
        print(f"narrows: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a missing permission: the message names the file
        print(f"narrows: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = extra_of(error.name or "")
        if extra is None:
            raise
        extra = getattr(options, "extra", extra)  # the command's own, where it needs more than what is missing first
        missing = MissingExtraError(f"this command needs {error.name}: pip install 'narrows[{extra}]'")
        print(f"narrows: {missing}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("narrows: interrupted", file=sys.stderr)
        return 130
    return status
