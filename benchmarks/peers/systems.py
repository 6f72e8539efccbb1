"""The systems that are compared: each peer and Narrows, started in the same way and checked before it is timed."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from benchmarks.peers.description import Material, Peer, Setting, Start
from benchmarks.peers.processes import free_port, serving, started, tail
from benchmarks.peers.rules import MIN_COSINE, min_cosine
from narrows.errors import BenchmarkError
from narrows_tools.bench.pinned import Cores
from narrows_tools.bench.servers import Server, narrows_server
from narrows_tools.bench.targets import TargetSpec, Text

CHECK_TIMEOUT_S = 60.0
OFFLINE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Check:
    """Texts, and the embeddings that a system must return for them: Narrows' own, in process, fp32."""

    texts: Sequence[Text]
    expected: npt.NDArray[np.float32]  # (texts, dim)
    least: float = MIN_COSINE

    def passed_by(self, name: str, found: npt.NDArray[np.float32]) -> float:
        """Returns the lowest cosine.

        Raises:
            BenchmarkError: the system computes something else, and is not to be timed.
        """
        cosine = min_cosine(found, self.expected)
        if cosine < self.least:
            raise BenchmarkError(f"{name} is not timed: its embeddings have a cosine of {cosine:.6f} to Narrows'")
        return cosine


@dataclass(frozen=True, slots=True)
class Running:
    """A system that answers, how the load generator reaches it, and the lowest cosine of its check."""

    server: Server
    target: TargetSpec
    min_cosine: float


class ServedSystem(Protocol):
    """A system behind a server."""

    @property
    def name(self) -> str:
        """Its name in results."""

    def running(self, number: int) -> AbstractContextManager[Running]:
        """Starts it with its setting of that number and checks it; see `check`."""


@dataclass(frozen=True, slots=True)
class InstalledPeer:
    """A peer in its environment."""

    name: str
    peer: Peer
    material: Material
    cores: Cores
    logs: Path
    check: Check

    @property
    def settings(self) -> Sequence[Setting]:
        """Its grid."""
        return self.peer.settings

    def start(self, number: int, **more: object) -> Start:
        """How to start it with one of its settings; `more` as in Peer.filled."""
        return self.peer.filled(self.material, len(self.cores), self.settings[number], **more)


@dataclass(frozen=True, slots=True)
class PeerServer(InstalledPeer):
    """A peer that has a server."""

    @contextmanager
    def running(self, number: int) -> Iterator[Running]:
        """Starts it with a setting, and checks its embeddings.

        Raises:
            BenchmarkError: it does not start, or fails the check.
        """
        port = free_port()
        target = TargetSpec(self.peer.target, {"port": port})
        try:
            with serving(
                self.start(number, port=port), target, port, self.cores, self.logs / f"{self.name}.log"
            ) as server:
                keeping = TargetSpec(self.peer.target, {"port": port, "keep_embeddings": True})
                yield Running(server, target, checked(self.name, keeping, self.check))
        except BenchmarkError as error:
            raise BenchmarkError(f"{self.name} {json.dumps(self.settings[number])}: {error}") from None


@dataclass(frozen=True, slots=True)
class NarrowsServer:
    """Narrows: unary Encode, a question a request. `variant` "" is the one that it serves by itself."""

    name: str
    bundle: Path
    index: Path | None
    variant: str
    cores: Cores
    check: Check

    @contextmanager
    def running(self, number: int) -> Iterator[Running]:
        """Starts it, and checks its embeddings.

        Raises:
            BenchmarkError: it does not start, or fails the check.
        """
        flags = ["--variant", self.variant] if self.variant else []
        factory = "narrows_tools.bench.targets:NarrowsTarget"
        with narrows_server(self.bundle, self.index, self.cores, flags) as server:
            where = {"address": server.address, "method": "encode"}
            keeping = TargetSpec(factory, where | {"keep_embeddings": True})
            yield Running(server, TargetSpec(factory, where), checked(self.name, keeping, self.check))


@dataclass(frozen=True, slots=True)
class PeerInProcess(InstalledPeer):
    """A library without a server: texts per second when it has all texts at hand."""

    def measure(self, number: int, texts: dict[str, list[Text]], seconds: float) -> dict[str, float]:
        """Texts per second for each traffic, with one of its settings.

        Raises:
            BenchmarkError: it fails, or fails the check.
        """
        order, report, log = (self.logs / f"{self.name}.{kind}" for kind in ("texts.json", "report.json", "log"))
        loads = {traffic: [text.text for text in wanted] for traffic, wanted in texts.items()}
        check = [text.text for text in self.check.texts]
        order.write_text(json.dumps({"check": check, "seconds": seconds, "loads": loads}))
        report.unlink(missing_ok=True)
        places = {"texts": order.resolve(), "report": report.resolve()}
        with started(self.start(number, **places), self.cores, log) as process:
            status = process.wait(OFFLINE_TIMEOUT_S)
        if status != 0:
            raise BenchmarkError(f"{self.name} ended with status {status}; it wrote: {tail(log)}")
        found = json.loads(report.read_text())
        self.check.passed_by(self.name, np.array(found["check"], dtype=np.float32))
        per_s: dict[str, float] = found["per_s"]
        return per_s


def checked(name: str, spec: TargetSpec, check: Check) -> float:
    """Sends a check's texts all at once, so that they share batches, and returns the lowest cosine.

    Raises:
        BenchmarkError: a text failed, or the embeddings are others.
    """
    found = asyncio.run(_embeddings(spec, check.texts))
    if any(row is None for row in found):
        raise BenchmarkError(f"{name} is not timed: it did not embed every text of the check")
    return check.passed_by(name, np.array(found))


async def _embeddings(spec: TargetSpec, texts: Sequence[Text]) -> list[npt.NDArray[np.float32] | None]:
    target = spec.make()
    await target.open()
    try:
        replies = await asyncio.gather(*(target.send(text, CHECK_TIMEOUT_S) for text in texts))
    finally:
        await target.close()
    return [reply.embedding for reply in replies]
