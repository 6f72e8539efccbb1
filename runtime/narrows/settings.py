"""The server's settings: one frozen object, built once, passed down.

A value comes from the first of these that has it: command-line flag, environment variable NARROWS_<NAME>, the TOML
file, the default.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from narrows.errors import SettingsError

ENVIRONMENT_PREFIX = "NARROWS_"


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What `narrows serve` runs with. 0 threads means all cores that the process may use."""

    bundle: Path
    index: Path | None = None  # without one, only Encode and Tokenize are served
    listen: str = "127.0.0.1:50051"
    device: str = "auto"
    encode_threads: int = 0
    search_threads: int = 0
    max_items: int = 64
    max_ids: int = 1000
    max_k: int = 1000
    max_text_bytes: int = 16_384
    max_reply_bytes: int = 3_670_016  # 3.5 MiB: clients accept 4 MiB by default
    max_stream_in_flight: int = 64
    max_queued_questions: int = 2048
    max_queued_passages: int = 512
    passages_min_share: float = 0.1
    default_deadline_ms: int = 10_000
    warmup_budget_ms: int = 1500
    drain_ms: int = 10_000
    verify: Literal["full", "stamp"] = "stamp"  # full: hash every file at each start
    log_level: str = "info"


_BOUNDS: dict[str, tuple[float, float]] = {
    "encode_threads": (0, 1024),
    "search_threads": (0, 1024),
    "max_items": (1, 100_000),
    "max_ids": (1, 100_000),
    "max_k": (1, 1_000_000),
    "max_text_bytes": (1, 2**30),
    "max_reply_bytes": (1024, 2**30),
    "max_stream_in_flight": (1, 100_000),
    "max_queued_questions": (1, 10_000_000),
    "max_queued_passages": (1, 10_000_000),
    "passages_min_share": (0.0, 0.9),
    "default_deadline_ms": (1, 86_400_000),
    "warmup_budget_ms": (0, 600_000),
    "drain_ms": (0, 3_600_000),
}
_CHOICES = {"device": ("auto", "cpu"), "verify": ("full", "stamp"), "log_level": ("debug", "info", "warning", "error")}
_ADDRESS = re.compile(r"\S+:[0-9]{1,5}")
NAMES = tuple(field.name for field in fields(ServerSettings))


def load(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> ServerSettings:
    """Builds the settings.

    Args:
        flags: values from the command line by setting name; None means not given.
        environment: the process's environment.
        file: TOML file with setting names as its top-level keys, or None.

    Raises:
        SettingsError: an unreadable file, an unknown name, a value of the wrong type or out of bounds; says where.
    """
    values: dict[str, tuple[Any, str]] = {}  # name -> value, where it came from
    if file is not None:
        for name, value in _read_toml(file).items():
            values[name] = (value, f"{file}: {name}")
    for name in NAMES:
        variable = ENVIRONMENT_PREFIX + name.upper()
        if environment.get(variable, "") != "":
            values[name] = (environment[variable], variable)
    for name, value in flags.items():
        if value is not None:
            values[name] = (value, "--" + name.replace("_", "-"))
    if "bundle" not in values:
        raise SettingsError("which bundle? Give --bundle, NARROWS_BUNDLE, or `bundle` in the configuration file")
    settings = ServerSettings(**{name: _checked(name, value, origin) for name, (value, origin) in values.items()})
    for name in ("max_queued_questions", "max_queued_passages"):
        if getattr(settings, name) < settings.max_items:
            raise SettingsError(
                f"{name} must be at least max_items ({settings.max_items}): no full call would ever fit"
            )
    return settings


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:  # TOMLDecodeError, UnicodeDecodeError, an integer of thousands of digits
        raise SettingsError(f"{file} is not TOML: {error}") from None
    unknown = sorted(set(table) - set(NAMES))
    if unknown:
        raise SettingsError(f"{file}: unknown setting {unknown[0]}; known are {', '.join(NAMES)}")
    return table


def _checked(name: str, value: Any, origin: str) -> Any:  # noqa: ANN401  (any TOML value comes in)
    """Converts a value to its setting's type and checks its bounds."""
    if name in ("bundle", "index"):
        if not isinstance(value, (str, Path)) or not str(value) or "\0" in str(value):
            raise SettingsError(f"{origin} must be a path")
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise SettingsError(f"{origin}: {error}") from None
    if name == "listen":
        if not isinstance(value, str) or not _ADDRESS.fullmatch(value) or int(value.rpartition(":")[2]) > 65_535:
            raise SettingsError(f"{origin} must be HOST:PORT, such as 127.0.0.1:50051, not {value!r}")
        return value
    if name not in _BOUNDS:
        if not isinstance(value, str) or value not in _CHOICES.get(name, (value,)):
            raise SettingsError(f"{origin} must be {' or '.join(_CHOICES.get(name, ('text',)))}, not {value!r}")
        return value
    kind = float if name == "passages_min_share" else int
    low, high = _BOUNDS[name]
    try:
        number = kind(value)
        fits = not isinstance(value, bool) and number == float(value) and low <= number <= high
    except OverflowError:  # infinite, or an integer beyond any float
        fits = False
    except (TypeError, ValueError):
        raise SettingsError(f"{origin} must be a number, not {value!r}") from None
    if not fits:
        raise SettingsError(
            f"{origin} must be {'a whole number ' if kind is int else ''}from {low} to {high}, not {value!r}"
        )
    return number
