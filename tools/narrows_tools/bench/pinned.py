"""Which cores a server may use, and which its clients. A process inherits those of the thread that starts it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from narrows.errors import BenchmarkError

Cores = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Cores of the server (and of the ceiling), and of its clients."""

    server: Cores
    client: Cores


def default_layout() -> Layout:
    """The last core for the clients, the others for the server; a machine with one core has to share it."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    return Layout(cores[:-1] or cores, cores[-1:])


def parse_cores(text: str) -> Cores:
    """Reads `0,2-3`.

    Raises:
        ValueError: it is no list of cores.
    """
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        cores.update(range(int(first), int(last if dash else first) + 1))
    if not cores:
        raise ValueError(f"{text} names no core")
    return tuple(sorted(cores))


@contextmanager
def on_cores(cores: Cores) -> Iterator[None]:
    """Runs the block, and for good what it starts, on these cores only.

    Raises:
        BenchmarkError: this process may not use them.
    """
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except (OSError, ValueError):
        raise BenchmarkError(f"cores {listed(cores)} cannot be used; this process has {listed(before)}") from None
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def listed(cores: "Cores | set[int]") -> str:
    """The cores as text."""
    return ",".join(map(str, sorted(cores)))
