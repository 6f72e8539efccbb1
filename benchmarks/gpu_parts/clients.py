"""Processes that ask a server: closed loops for what it can do, open ones for how long an answer takes at a given load.

Several processes, because one of Python's cannot ask as fast as a GPU answers; and without the packages that the load
generator of `narrows bench` wants, which few GPU machines have.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from narrows import messages
from narrows.messages import SearchOptions
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc
from narrows_tools.bench.pinned import Cores
from narrows_tools.bench.workers import Worker

CHANNELS = 8  # of a process: a connection is one front's for good
TIMEOUT_S = 20.0
WARM_S = 0.5  # of a closed loop, that do not count
K = 20


@dataclass(frozen=True, slots=True)
class Asker:
    """What a process asks, and whom."""

    address: str
    questions: Sequence[str]


@dataclass(frozen=True, slots=True)
class Load:
    """Messages of so many questions: `in_flight` at a time, or `rate_per_s` of them at random times."""

    questions: int
    seconds: float
    in_flight: int = 0
    rate_per_s: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answers:
    """Latencies of the messages that were answered in time, from when they should have been sent."""

    latencies_ms: npt.NDArray[np.float64]
    per_s: float
    failed: int
    error: str = ""

    def percentile_ms(self, percent: float) -> float:
        """Of the latencies."""
        return float(np.percentile(self.latencies_ms, percent)) if len(self.latencies_ms) else float("nan")


Client = Worker[Load, Answers]


@contextmanager
def clients(address: str, questions: Sequence[str], cores: Cores, count: int) -> Iterator[list[Client]]:
    """So many processes, connected, each with its share of the questions."""
    with ExitStack() as stack:
        yield [stack.enter_context(Worker(_serve, Asker(address, questions[n::count]), cores)) for n in range(count)]


def ask(workers: Sequence[Client], load: Load) -> Answers:
    """Has all of them do a load at once; its rate, or what is in flight, is shared among them."""
    share = len(workers)
    loads = [
        Load(load.questions, load.seconds, -(-load.in_flight // share), load.rate_per_s / share, load.seed + number)
        for number in range(share)
    ]
    with ThreadPoolExecutor(share) as pool:
        parts = list(pool.map(lambda worker, each: worker.ask(each), workers, loads))
    return Answers(
        np.concatenate([part.latencies_ms for part in parts]),
        sum(part.per_s for part in parts),
        sum(part.failed for part in parts),
        next((part.error for part in parts if part.error), ""),
    )


def _serve(connection: Connection, asker: Asker) -> None:
    asyncio.run(_loads(connection, asker))


async def _loads(connection: Connection, asker: Asker) -> None:
    options = [*messages.CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(asker.address, options) for _ in range(CHANNELS)]
    stubs: list[retrieval_pb2_grpc.RetrievalServiceAsyncStub] = [
        retrieval_pb2_grpc.RetrievalServiceStub(channel) for channel in channels
    ]
    for stub in stubs:
        await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=TIMEOUT_S, wait_for_ready=True)
    connection.send((True, None))
    while (load := connection.recv()) is not None:
        gc.collect()
        gc.disable()  # a pause here would look like one of the server
        connection.send((True, await _Run(stubs, asker.questions, load).run()))
        gc.enable()
    for channel in channels:
        await channel.close()


class _Run:
    """One load."""

    def __init__(
        self, stubs: Sequence["retrieval_pb2_grpc.RetrievalServiceAsyncStub"], questions: Sequence[str], load: Load
    ) -> None:
        size = load.questions
        options = SearchOptions(K, "id", "", "", "truncate")
        parts = [questions[start : start + size] for start in range(0, len(questions) - size + 1, size)]
        self._requests = itertools.cycle([options.request(part) for part in parts])
        self._stubs = itertools.cycle(stubs)
        self._load = load
        self._answered: list[tuple[float, float]] = []  # when, and after how many seconds
        self._failed, self._error = 0, ""

    async def run(self) -> Answers:
        load = self._load
        begin_s = time.monotonic()
        if load.in_flight:
            begin_s += WARM_S
            await asyncio.gather(*(self._loop(begin_s + load.seconds) for _ in range(load.in_flight)))
        else:
            await self._at_times(begin_s)
        counted = [took_s for at_s, took_s in self._answered if begin_s <= at_s]
        within = sum(begin_s <= at_s <= begin_s + load.seconds for at_s, _ in self._answered)
        return Answers(np.array(counted) * 1e3, within / load.seconds, self._failed, self._error)

    async def _loop(self, end_s: float) -> None:
        while (now_s := time.monotonic()) < end_s:
            await self._send(now_s)

    async def _at_times(self, begin_s: float) -> None:
        random = np.random.default_rng(self._load.seed)
        sent = []
        count = int(self._load.rate_per_s * self._load.seconds)
        for at_s in begin_s + np.cumsum(random.exponential(1 / self._load.rate_per_s, max(1, count))):
            if (wait_s := at_s - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            sent.append(asyncio.create_task(self._send(float(at_s))))
        await asyncio.gather(*sent)

    async def _send(self, from_s: float) -> None:
        try:
            await next(self._stubs).Search(next(self._requests), timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._failed += 1
            self._error = f"{error.code().name}: {error.details()}"
            return
        now_s = time.monotonic()
        self._answered.append((now_s, now_s - from_s))
