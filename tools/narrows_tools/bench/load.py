"""Loads: what is sent to a target and when, and the report of what came back.

An open loop sends at times fixed beforehand and counts latency from the time at which a request should have been sent,
so that a server that stalls pays for every request that it holds up (Tene's "coordinated omission"). A closed loop
sends when an answer comes; its rates say what a server can do, its latencies nothing about a given load.
"""

import asyncio
import gc
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from narrows_tools.bench.schedule import Schedule
from narrows_tools.bench.targets import STATUSES, BatchTarget, Reply, Status, Target, TargetSpec, Text

HEAD_START_S = 0.05  # from the call to the beginning of a schedule
LAG_BOUND_MS = 1.0  # a generator whose own delay in sending passes this at p99 is too slow for its load
TOKEN_STEP = 8  # width of the bars of token histograms
MAX_US = 600_000_000
BULK_IN_FLIGHT = 4  # requests of a background of passages
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of a distribution of times, in milliseconds, from an HdrHistogram of 3 digits; all 0 when it is empty."""

    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    p99_9_ms: float = 0.0
    max_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load found.

    Latency is of OK requests: from the intended time of sending in an open loop, else from the actual one. `send_lag`
    is the generator's own delay: actual minus intended time. Histograms are by request, tokens in steps of 8 rounded
    up; they and `padding_share` (of the tokens in the server's batches; packed variants compute padding in attention
    only) are of OK requests whose target knows.
    """

    counts: dict[Status, int]
    within_deadline: int  # OK, and no later than the load's deadline
    duration_s: float
    throughput_per_s: float  # OK
    goodput_per_s: float  # OK within the deadline
    latency: Quantiles
    refusal: Quantiles  # of those that were refused: how soon they heard
    send_lag: Quantiles
    batch_size_mean: float  # of batches; 0: unknown
    padding_share: float | None
    batch_sizes: dict[int, int]
    batch_tokens: dict[int, int]
    tokens: dict[int, int]
    client_cpu_share: float  # of one core
    background_per_s: float | None = None  # passages encoded meanwhile, where there was a background of them
    background_failed: int = 0  # passages of it that failed

    @property
    def requests(self) -> int:
        """All that were sent."""
        return sum(self.counts.values())


class Load(Protocol):
    """Something to do to a target."""

    async def run(self, target: Target) -> LoadReport:
        """Does it."""


@dataclass(frozen=True, slots=True)
class Background:
    """Passages sent in bulk over a connection of its own for as long as another load lasts, round and round."""

    target: TargetSpec
    texts: Sequence[Text]
    timeout_s: float


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Each text at its time, in seconds from the beginning; `deadline_ms` is for goodput, `timeout_s` is sent along."""

    texts: Sequence[Text]
    schedule: Schedule
    timeout_s: float
    deadline_ms: float
    background: Background | None = None

    async def run(self, target: Target) -> LoadReport:
        """Sends, and waits for all answers."""
        loop = asyncio.get_running_loop()
        record = _Record(self.texts)
        requests: list[asyncio.Task[None]] = []
        background_per_s = None
        async with _running(self.background) as passages:
            with _steady(record):
                record.begin(loop.time() + HEAD_START_S)
                for number, offset_s in enumerate(self.schedule):
                    await asyncio.sleep(max(0.0, record.start_s + offset_s - loop.time()))
                    requests.append(loop.create_task(record.send(number, target, self.timeout_s, offset_s)))
                await asyncio.gather(*requests)
            if self.background:
                background_per_s = passages["ok"] / float(record.done_s.max())
        report = record.report(self.deadline_ms, (0, len(self.texts)))
        return replace(report, background_per_s=background_per_s, background_failed=passages["failed"])


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`clients` that each send the next text when they have their answer, for a time or until the texts are used up.

    Rates leave out the first answers, one for each client, and what comes after the time; where that leaves nothing,
    the time was too short, and they are over everything.
    """

    texts: Sequence[Text]
    clients: int
    duration_s: float
    timeout_s: float
    deadline_ms: float

    async def run(self, target: Target) -> LoadReport:
        """Sends, and waits for all answers."""
        loop = asyncio.get_running_loop()
        record = _Record(self.texts)
        numbers = iter(range(len(self.texts)))

        async def client() -> None:
            for number in numbers:
                await record.send(number, target, self.timeout_s)
                if loop.time() - record.start_s > self.duration_s:
                    return

        with _steady(record):
            record.begin(loop.time())
            await asyncio.gather(*(client() for _ in range(self.clients)))
        answered = int(np.sum(record.done_s <= self.duration_s))
        whole = (0, len(record.replies))
        return record.report(self.deadline_ms, (self.clients, answered) if answered > self.clients else whole)


@dataclass(frozen=True, slots=True)
class Offline:
    """All texts at once, in requests as large as the target takes, `in_flight` requests at a time."""

    texts: Sequence[Text]
    in_flight: int
    timeout_s: float

    async def run(self, target: Target) -> LoadReport:
        """Sends, and waits for all answers."""
        loop = asyncio.get_running_loop()
        record = _Record(self.texts)
        parts = _parts(range(len(self.texts)), target.max_items if isinstance(target, BatchTarget) else 1)

        async def client() -> None:
            for part in parts:
                await record.send_batch(part, target, self.timeout_s)

        with _steady(record):
            record.begin(loop.time())
            await asyncio.gather(*(client() for _ in range(self.in_flight)))
        return record.report(self.timeout_s * 1e3, (0, len(self.texts)))


@dataclass(slots=True)
class _Record:
    """Times of each request in seconds from `start_s`, NaN where it was never sent; and its reply."""

    texts: Sequence[Text]
    start_s: float = 0.0
    cpu_s: float = 0.0
    intended_s: npt.NDArray[np.float64] = field(init=False)
    sent_s: npt.NDArray[np.float64] = field(init=False)
    done_s: npt.NDArray[np.float64] = field(init=False)
    replies: dict[int, Reply] = field(default_factory=dict)
    clock: Callable[[], float] = field(init=False)

    def __post_init__(self) -> None:
        self.intended_s, self.sent_s, self.done_s = (np.full(len(self.texts), np.nan) for _ in range(3))

    def begin(self, start_s: float) -> None:
        self.clock = asyncio.get_running_loop().time
        self.start_s = start_s

    async def send(self, number: int, target: Target, timeout_s: float, intended_s: float | None = None) -> None:
        sent_s = self.clock() - self.start_s
        self.replies[number] = await target.send(self.texts[number], timeout_s)
        self.done_s[number] = self.clock() - self.start_s
        self.sent_s[number] = sent_s
        self.intended_s[number] = sent_s if intended_s is None else intended_s

    async def send_batch(self, numbers: Sequence[int], target: Target, timeout_s: float) -> None:
        if not isinstance(target, BatchTarget):
            for number in numbers:
                await self.send(number, target, timeout_s)
            return
        sent_s = self.clock() - self.start_s
        replies = await target.send_batch([self.texts[number] for number in numbers], timeout_s)
        self.done_s[list(numbers)] = self.clock() - self.start_s
        self.sent_s[list(numbers)] = self.intended_s[list(numbers)] = sent_s
        self.replies.update(zip(numbers, replies, strict=True))

    def report(self, deadline_ms: float, window: tuple[int, int]) -> LoadReport:
        """The report; rates are over `window`: the first and the last answer that count, in order of arrival."""
        sent = sorted(self.replies, key=lambda number: self.done_s[number])
        ok = [number for number in sent if self.replies[number].status == "ok"]
        latency_ms = (self.done_s - self.intended_s) * 1e3
        first, last = window
        counted = sent[first:last]
        begin_s = float(self.done_s[sent[first - 1]]) if first else 0.0
        seconds = max(float(self.done_s[counted[-1]]) - begin_s, 1e-9) if counted else float("inf")
        in_window = set(counted)
        counted_ok = [number for number in ok if number in in_window]
        in_time = [number for number in counted_ok if latency_ms[number] <= deadline_ms]
        known = [(self.texts[n].tokens, self.replies[n]) for n in ok if self.replies[n].padded_tokens]
        sizes = Counter(self.replies[n].batch_size for n in ok if self.replies[n].batch_size)
        padded = sum(reply.padded_tokens for _, reply in known)
        statuses = Counter(reply.status for reply in self.replies.values())
        duration_s = float(self.done_s[sent[-1]]) if sent else 0.0
        return LoadReport(
            counts={status: statuses[status] for status in STATUSES},
            within_deadline=sum(bool(latency_ms[number] <= deadline_ms) for number in ok),
            duration_s=duration_s,
            throughput_per_s=len(counted_ok) / seconds,
            goodput_per_s=len(in_time) / seconds,
            latency=_quantiles(latency_ms[ok]),
            refusal=_quantiles(latency_ms[[number for number in sent if self.replies[number].status == "refused"]]),
            send_lag=_quantiles((self.sent_s - self.intended_s)[sent] * 1e3),
            batch_size_mean=sizes.total() / sum(count / size for size, count in sizes.items()) if sizes else 0.0,
            padding_share=1 - sum(tokens for tokens, _ in known) / padded if padded else None,
            batch_sizes=dict(sorted(sizes.items())),
            batch_tokens=_token_histogram(reply.padded_tokens for _, reply in known),
            tokens=_token_histogram(self.texts[number].tokens for number in ok),
            client_cpu_share=self.cpu_s / duration_s if duration_s else 0.0,
        )


@contextmanager
def _steady(record: _Record) -> Iterator[None]:
    """No garbage collection meanwhile: a pause of the generator would look like one of the server."""
    gc.collect()
    gc.disable()
    before_s = time.process_time()
    try:
        yield
    finally:
        record.cpu_s = time.process_time() - before_s
        gc.enable()


@asynccontextmanager
async def _running(background: Background | None) -> AsyncIterator[Counter[Status]]:
    """Keeps a background going, and yields how many of its passages have ended so far, and how: it goes on counting."""
    ended: Counter[Status] = Counter()
    if background is None:
        yield ended
        return
    target = background.target.make()
    await target.open()

    async def client(first: int) -> None:
        assert isinstance(target, BatchTarget)
        parts = list(_parts(background.texts, target.max_items))
        while True:
            for part in parts[first:] + parts[:first]:
                replies = await target.send_batch(part, background.timeout_s)
                ended.update(reply.status for reply in replies)

    clients = [asyncio.create_task(client(number)) for number in range(BULK_IN_FLIGHT)]
    try:
        yield ended
    finally:
        for task in clients:
            task.cancel()
        for task in clients:
            with suppress(asyncio.CancelledError):
                await task
        await target.close()


def _parts(items: Sequence[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part


def _quantiles(times_ms: npt.NDArray[np.float64]) -> Quantiles:
    if len(times_ms) == 0:
        return Quantiles()
    histogram = HdrHistogram(1, MAX_US, 3)
    for time_ms in times_ms:
        histogram.record_value(min(MAX_US, max(1, round(time_ms * 1e3))))
    p50, p90, p99, p99_9, most = (histogram.get_value_at_percentile(share) / 1e3 for share in (50, 90, 99, 99.9, 100))
    return Quantiles(p50, p90, p99, p99_9, most)


def _token_histogram(lengths: Iterator[int]) -> dict[int, int]:
    return dict(sorted(Counter(-(-length // TOKEN_STEP) * TOKEN_STEP for length in lengths).items()))
