"""`narrows config show`: every setting of a server, its value, and where the value came from."""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from narrows import settings
from narrows.settings import ABOUT, DEFAULTS, Value
from narrows_tools.cli import serve
from narrows_tools.cli.tables import print_rows

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MISSING = Value(None, "missing")  # a setting without a default that nothing names


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    group = commands.add_parser("config", help="show the settings that a server would run with")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")
    show = actions.add_parser(
        "show",
        help="each setting, its value, and where it came from",
        description="Prints each setting of `narrows serve`, the value that it would have with these flags, this "
        "environment and this file, and which of them it came from. Nothing is loaded.",
        epilog="""examples:
  narrows config show --config narrows.toml
  NARROWS_MAX_K=100 narrows config show --toml > narrows.toml""",
    )
    serve.add_flags(show)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object, settings by name")
    form.add_argument("--toml", action="store_true", help="print a file for --config")
    show.set_defaults(run=run_show)


def run_show(options: argparse.Namespace) -> int:
    """Prints the settings."""
    found = settings.resolve(serve.given(options), os.environ, options.config)
    values = {name: found.get(name, MISSING) for name in ABOUT}
    if options.json:
        print(json.dumps({name: _described(name, value) for name, value in values.items()}))
    elif options.toml:
        print(to_toml(values), end="")
    else:
        _print_table(values)
    return 0


def to_toml(values: dict[str, Value]) -> str:
    """A TOML file that gives every setting the value that it has now."""
    lines = []
    for name, found in values.items():
        lines.append(f"# {ABOUT[name].meaning}; from: {_one_line(found.origin)}")
        lines.append(f"{name} = {_toml(found.value)}" if found.value is not None else f"# {name} =")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:  # noqa: ANN401  (any setting)
    if isinstance(value, (str, Path)):
        # JSON's escapes are TOML's, but for DEL, which TOML wants escaped and JSON leaves.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _one_line(text: str) -> str:
    return text.encode("unicode_escape").decode() if not text.isprintable() else text


def _described(name: str, found: Value) -> dict[str, Any]:
    about = ABOUT[name]
    return {
        "value": str(found.value) if isinstance(found.value, Path) else found.value,
        "from": found.origin,
        "default": DEFAULTS.get(name),
        "bounds": about.bounds,
        "choices": about.choices or None,
        "meaning": about.meaning,
    }


def _print_table(values: dict[str, Value]) -> None:
    rows = [("setting", "value", "from", "allowed", "meaning")]
    for name, found in values.items():
        value = "-" if found.value in (None, "") else str(found.value)
        rows.append((name, value, found.origin, settings.allowed(name), ABOUT[name].meaning))
    print_rows(rows)
