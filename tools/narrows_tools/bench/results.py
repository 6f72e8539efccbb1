"""A file of results: settings and environment of a run, and a row for each thing measured in each round."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from narrows import durable, manifests
from narrows.errors import BenchmarkError

SCHEMA_VERSION = 1
FOUND_LOAD = "server"  # a scenario whose load is what it found, another one in each round
Scenario = Literal["start", "single", "ceiling", "closed", "open", "server", "offline", "mixed_lanes"]

LATE = "the load generator itself was late: this says nothing about the server"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `load` is the offered rate in requests/s, 0 where it has no meaning.

    Names of metrics end in their units (`_ms`, `_per_s`, `_bytes`, `_share`, `_mean`). Histograms count by value:
    `{"batch_size": {"8": 120}}`.
    """

    system: str
    scenario: Scenario
    traffic: str  # short, mixed, or empty
    load: float
    round: int
    metrics: dict[str, float]
    histograms: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What one run of a benchmark found. `kind` says which: `narrows`, `peers`, ...; `created` is ISO 8601, UTC."""

    kind: str
    created: str
    environment: dict[str, Any]
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    schema_version: int = SCHEMA_VERSION


Group = tuple[str, str, str, float]  # system, scenario, traffic, load


def groups(rows: Iterable[Row], scenarios: Sequence[str] = ()) -> dict[Group, list[Row]]:
    """The rounds of everything that was measured in these scenarios (default: in any), in the order of the rows.

    Rounds in which the load generator was late are left out, unless it was late in all of them.
    """
    found: dict[Group, list[Row]] = {}
    for row in rows:
        if row.scenario in scenarios or not scenarios:
            load = 0.0 if row.scenario == FOUND_LOAD else row.load
            found.setdefault((row.system, row.scenario, row.traffic, load), []).append(row)
    return {group: in_time(rounds) or rounds for group, rounds in found.items()}


def in_time(rows: Iterable[Row]) -> list[Row]:
    """Those rows that say something about the server: the generator kept to its times."""
    return [row for row in rows if not row.metrics.get("generator_late")]


def values(rows: Iterable[Row], metric: str, factor: float = 1.0) -> list[float]:
    """A metric in every round that has it."""
    return [row.metrics[metric] * factor for row in rows if metric in row.metrics]


def save(file: Path, result: Result) -> None:
    """Writes a result: whole, or not at all."""
    durable.write_file(file, manifests.encode(result))


def load(file: Path) -> Result:
    """Reads a saved result.

    Raises:
        BenchmarkError: there is none, it is damaged, or it is of another schema version.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{file} cannot be read: {error.strerror}") from None
    return manifests.decode(data, Result, SCHEMA_VERSION, file, BenchmarkError)
