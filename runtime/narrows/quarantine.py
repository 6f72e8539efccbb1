"""Works that kill the engine's process: found by what ran when it died, tried alone once, then refused for a while.

The engine notes the digests of each running batch in memory that outlives it (Journal). The supervisor reads it when
the engine has died (Quarantine). The next engine runs those works alone (Guard): that clears an innocent one, and one
that kills again is refused.
"""

import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from typing import TypeVar

from narrows.work import Work

T = TypeVar("T")

ENCODING, SEARCHING = STAGES = range(2)  # each has a place in the journal: both may run at the same time
MAX_WORKS = 256  # noted of one batch
PLACE_BYTES = 8 * (1 + MAX_WORKS)
MAX_SENT = 2000  # to one engine, of suspects and of refused works each: the latest
REFUSED_S = 600.0


def digest(work: Work) -> int:
    """Stands for what a work computes: the lane, and the tokens or the vector."""
    data = work.token_ids if work.vector is None else work.vector
    assert data is not None
    return int.from_bytes(blake2b(data.tobytes(), digest_size=8, person=work.lane.encode()).digest(), "little")


class Journal:
    """The digests of the batches that run now, in shared memory without a name: nothing of it stays behind."""

    def __init__(self, descriptor: int) -> None:
        """Maps the memory of a descriptor, which it takes over."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, len(STAGES) * PLACE_BYTES)

    @classmethod
    def create(cls) -> "Journal":
        """A new one, empty."""
        descriptor = os.memfd_create("narrows-journal")
        os.ftruncate(descriptor, len(STAGES) * PLACE_BYTES)
        return cls(descriptor)

    def begin(self, stage: int, digests: Sequence[int]) -> None:
        """Notes what a stage runs."""
        count = min(len(digests), MAX_WORKS)
        struct.pack_into(f"<{count}Q", self._memory, stage * PLACE_BYTES + 8, *digests[:count])
        struct.pack_into("<Q", self._memory, stage * PLACE_BYTES, count)

    def end(self, stage: int) -> None:
        """Notes that it runs nothing."""
        struct.pack_into("<Q", self._memory, stage * PLACE_BYTES, 0)

    def take(self) -> set[int]:
        """What was running, and forgets it."""
        found: set[int] = set()
        for stage in STAGES:
            (count,) = struct.unpack_from("<Q", self._memory, stage * PLACE_BYTES)
            found.update(struct.unpack_from(f"<{count}Q", self._memory, stage * PLACE_BYTES + 8))
            self.end(stage)
        return found


class Guard:
    """The engine's side: notes what runs, and keeps suspects alone. `cleared` is told of each that proves innocent."""

    def __init__(self, journal: Journal, suspects: Sequence[int], cleared: Callable[[int], None]) -> None:
        self._journal = journal
        self._suspects = set(suspects)
        self._cleared = cleared
        self._turn = threading.Lock()  # while there are suspects, the stages run one at a time

    def groups(self, items: Sequence[T], work_of: Callable[[T], Work]) -> list[Sequence[T]]:
        """Splits a batch into what may run together and each suspect alone."""
        if not self._suspects:
            return [items]
        together: list[T] = []
        alone: list[Sequence[T]] = []
        for item in items:
            if digest(work_of(item)) in self._suspects:
                alone.append([item])
            else:
                together.append(item)
        return [together, *alone] if together else alone

    @contextmanager
    def running(self, stage: int, works: Sequence[Work]) -> Iterator[None]:
        """Notes what runs inside of it, but for canaries."""
        digests = [digest(work) for work in works if work.lane != "canary"]
        with self._turn if self._suspects else nullcontext():
            self._journal.begin(stage, digests)
            try:
                yield
            finally:
                self._journal.end(stage)
        is_last = stage == SEARCHING or works[0].k == 0
        if is_last and len(digests) == 1 and digests[0] in self._suspects:
            self._suspects.discard(digests[0])
            self._cleared(digests[0])


class Quarantine:
    """The supervisor's side. Times are in seconds on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self._suspects: dict[int, float] = {}  # until when
        self._refused: dict[int, float] = {}

    def died(self, digests: set[int], now_s: float) -> list[int]:
        """Notes a death of the engine while these ran; returns those that are refused from now on.

        One that was a suspect already is, if it ran alone; a suspect that did not run alone stays one.
        """
        self._expire(now_s)
        if len(digests) == 1 and digests <= self._suspects.keys():
            (convicted,) = digests
            del self._suspects[convicted]
            self._refused[convicted] = now_s + REFUSED_S
            return [convicted]
        self._suspects |= dict.fromkeys(digests, now_s + REFUSED_S)
        return []

    def cleared(self, number: int) -> None:
        """It ran alone, and nothing happened."""
        self._suspects.pop(number, None)

    def suspects(self, now_s: float) -> list[int]:
        """What the next engine must run alone."""
        self._expire(now_s)
        return list(self._suspects)[-MAX_SENT:]

    def refused(self, now_s: float) -> dict[int, float]:
        """What the next engine must refuse, and until when."""
        self._expire(now_s)
        return dict(list(self._refused.items())[-MAX_SENT:])

    def _expire(self, now_s: float) -> None:
        self._suspects = {number: until_s for number, until_s in self._suspects.items() if until_s > now_s}
        self._refused = {number: until_s for number, until_s in self._refused.items() if until_s > now_s}


def refuses(refused: Mapping[int, float], works: Sequence[Work], now_s: float) -> bool:
    """Whether one of the works is refused now."""
    return bool(refused) and any(refused.get(digest(work), 0.0) > now_s for work in works)
