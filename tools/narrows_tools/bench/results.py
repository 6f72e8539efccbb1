"""A file of results: settings and environment of a run, and a row for each thing measured in each round."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from narrows import durable, manifests
from narrows.errors import BenchmarkError

SCHEMA_VERSION = 1
Scenario = Literal["start", "single", "ceiling", "closed", "open", "server", "offline", "mixed_lanes"]


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
