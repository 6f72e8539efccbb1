"""The server's settings: one frozen object, built once, passed down.

A value comes from the first of these that has it: command-line flag, environment variable NARROWS_<NAME>, the TOML
file, the default. A setting is one field of ServerSettings: default, meaning and bounds stand there and nowhere else.
"""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from narrows.errors import SettingsError

ENVIRONMENT_PREFIX = "NARROWS_"


@dataclass(frozen=True, slots=True)
class About:
    """What a setting means and which values it may have: a number in `bounds`, one of the words in `choices`.

    A word that ends in `:N` stands for itself with any number.
    """

    meaning: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()
    flag: bool = False  # `narrows serve` has a flag for it


def _setting(
    default: Any,  # noqa: ANN401  (of the field's own type)
    meaning: str,
    bounds: tuple[float, float] | None = None,
    choices: tuple[str, ...] = (),
    *,
    flag: bool = False,
) -> Any:  # noqa: ANN401  (a dataclass field, which stands for its value)
    return field(default=default, metadata={"about": About(meaning, bounds, choices, flag)})


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """What `narrows serve` runs with."""

    bundle: Path = field(metadata={"about": About("bundle of towers", flag=True)})
    index: Path | None = _setting(None, "index to search; without one no Search, GetPassages or Answer", flag=True)  # noqa: RUF009
    variant: str = _setting("", "question encoder's variant; default: the fastest that passed for the index", flag=True)
    listen: str = _setting("127.0.0.1:50051", "HOST:PORT; port 0 picks a free one", flag=True)
    device: str = _setting(
        "auto",
        "where the towers run; auto: the first GPU if CUDA loads, else the CPU",
        choices=("auto", "cpu", "cuda", "cuda:N"),
        flag=True,
    )
    gpu_vectors: str = _setting(
        "auto",
        "how a GPU holds the index's vectors; the answers are the same; auto: fp16 where FAISS has GPU code, else off",
        choices=("auto", "fp16", "fp32", "off"),
        flag=True,
    )
    frontends: int | Literal["auto"] = _setting(
        "auto",
        "front processes (gRPC, tokenizing), and one for the engine; 0: one process for all; auto: one for 8 cores",
        (0, 64),
        choices=("auto",),
        flag=True,
    )
    encode_threads: int = _setting(0, "threads of the encoder; 0 is all cores it may use", (0, 1024), flag=True)
    search_threads: int = _setting(0, "threads of the index; 0 is all cores it may use", (0, 1024), flag=True)
    max_items: int = _setting(64, "texts or embeddings in one call", (1, 100_000))
    max_ids: int = _setting(1000, "ids in one GetPassages call", (1, 100_000))
    max_k: int = _setting(1000, "passages for each question", (1, 1_000_000))
    max_text_bytes: int = _setting(16_384, "size of one text, title included", (1, 2**30))
    max_reply_bytes: int = _setting(3_670_016, "larger replies are refused; clients accept 4 MiB", (1024, 2**30))
    max_stream_in_flight: int = _setting(64, "requests of one stream that are answered at a time", (1, 100_000))
    max_queued_questions: int = _setting(2048, "questions that may wait; at least max_items", (1, 10_000_000))
    max_queued_passages: int = _setting(512, "passages that may wait; at least max_items", (1, 10_000_000))
    max_queued_readings: int = _setting(
        2048, "passages to read for answers that may wait; at least max_items", (1, 10_000_000)
    )
    readings_min_share: float = _setting(0.2, "the reader's share of the encoder while questions wait", (0.0, 0.9))
    passages_min_share: float = _setting(0.1, "passages' share of the encoder while questions wait", (0.0, 0.9))
    default_deadline_ms: int = _setting(10_000, "deadline of calls that set none", (1, 86_400_000))
    canary_deadline_ms: int = _setting(
        10_000, "how long a canary question may take before the server says that it is not ready", (1, 3_600_000)
    )
    warmup_budget_ms: int = _setting(1500, "time for measuring batches at start", (0, 600_000))
    drain_ms: int = _setting(10_000, "how long calls in flight may take after SIGTERM", (0, 3_600_000))
    verify: Literal["full", "stamp"] = _setting(
        "stamp", "full hashes every file at each start, stamp what changed since", choices=("full", "stamp"), flag=True
    )
    log_level: str = _setting(
        "info", "the least severe messages to log", choices=("debug", "info", "warning", "error"), flag=True
    )


ABOUT: dict[str, About] = {setting.name: setting.metadata["about"] for setting in fields(ServerSettings)}
DEFAULTS: dict[str, Any] = {
    setting.name: setting.default for setting in fields(ServerSettings) if setting.default is not MISSING
}
NAMES = tuple(ABOUT)
_NUMBERED = re.compile(r":[0-9]{1,3}\Z")
_ADDRESS = re.compile(r"\S+:[0-9]{1,5}")


def flag(name: str) -> str:
    """A setting's flag."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """A setting's environment variable."""
    return ENVIRONMENT_PREFIX + name.upper()


def allowed(name: str) -> str:
    """The values that a setting may have, for people: `1 to 1000`, `auto or cpu`, or nothing where any will do."""
    about = ABOUT[name]
    numbers = (f"{about.bounds[0]} to {about.bounds[1]}",) if about.bounds is not None else ()
    return " or ".join((*about.choices, *numbers))


@dataclass(frozen=True, slots=True)
class Value:
    """A setting's checked value, and where it came from: `--max-k`, `NARROWS_MAX_K`, `FILE: max_k`, or `default`."""

    value: Any
    origin: str


def resolve(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> dict[str, Value]:
    """Finds the value of every setting, in the order of ServerSettings; `bundle` is left out where nothing names one.

    Args:
        flags: values from the command line by setting name; None means not given.
        environment: the process's environment.
        file: TOML file with setting names as its top-level keys, or None.

    Raises:
        SettingsError: an unreadable file, an unknown name, a value of the wrong type or out of bounds; says where.
    """
    given: dict[str, Value] = {}
    if file is not None:
        given |= {name: Value(value, f"{file}: {name}") for name, value in _read_toml(file).items()}
    for name in NAMES:
        if environment.get(variable(name), "") != "":
            given[name] = Value(environment[variable(name)], variable(name))
    given |= {name: Value(value, flag(name)) for name, value in flags.items() if value is not None}

    values = {name: Value(default, "default") for name, default in DEFAULTS.items()}
    values |= {name: Value(_checked(name, value.value, value.origin), value.origin) for name, value in given.items()}
    for name in ("max_queued_questions", "max_queued_passages", "max_queued_readings"):
        if values[name].value < values["max_items"].value:
            raise SettingsError(
                f"{name} must be at least max_items ({values['max_items'].value}): no full call would ever fit"
            )
    return {name: values[name] for name in NAMES if name in values}


def load(flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None) -> ServerSettings:
    """Builds the settings from what `resolve` finds.

    Raises:
        SettingsError: as `resolve`; or nothing names a bundle.
    """
    values = resolve(flags, environment, file)
    if "bundle" not in values:
        raise SettingsError("which bundle? Give --bundle, NARROWS_BUNDLE, or `bundle` in the configuration file")
    return ServerSettings(**{name: found.value for name, found in values.items()})


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


def is_choice(value: str, choices: tuple[str, ...]) -> bool:
    """Whether a value is one of the words; without any, it may be whatever it likes."""
    return not choices or (_NUMBERED.sub(":N", value) in choices and not value.endswith(":N"))


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
    about = ABOUT[name]
    if about.bounds is None:
        if not isinstance(value, str) or not is_choice(value, about.choices):
            raise SettingsError(f"{origin} must be {' or '.join(about.choices) or 'text'}, not {value!r}")
        return value
    if value in about.choices:
        return value
    kind = float if isinstance(DEFAULTS[name], float) else int
    or_words = "".join(f"{word} or " for word in about.choices)
    low, high = about.bounds
    try:
        number = kind(value)
        fits = not isinstance(value, bool) and number == float(value) and low <= number <= high
    except OverflowError:  # infinite, or an integer beyond any float
        fits = False
    except (TypeError, ValueError):
        raise SettingsError(f"{origin} must be {or_words}a {'whole ' * (kind is int)}number, not {value!r}") from None
    if not fits:
        raise SettingsError(
            f"{origin} must be {or_words}{'a whole number ' if kind is int else ''}from {low} to {high}, not {value!r}"
        )
    return number
