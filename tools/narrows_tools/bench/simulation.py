"""A server without overhead: the engine's own scheduler and admission, fed with arrivals, on a clock that jumps.

No thread, no model, no wall clock: a batch takes as long as a table of measured batches says, and everything else takes
no time. So the latencies are the least that this scheduler can give on these costs, which a real server is held
against, and whatever a scheduler must keep to can be tested over any arrivals. The stages are the engine's: a batch is
embedded, then searched for on a thread of its own (or on the encoder's, before any more is embedded).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrows.costs import CostTable
from narrows.scheduler import Batch, Entry, LaneSettings, Scheduler, admit
from narrows.towers import MAX_BATCH
from narrows.work import Lane, Work

Ending = Literal["ok", "refused", "late"]
StageName = Literal["encode", "search"]
TookMs = Callable[[int, float], float]

LANES = (LaneSettings("questions", 2048), LaneSettings("passages", 512, 0.1))  # the server's defaults
TIMEOUT_S = 10.0
PERCENTILES = {"p50_ms": 50.0, "p90_ms": 90.0, "p99_ms": 99.0, "p99_9_ms": 99.9}


@dataclass(frozen=True, slots=True)
class Call:
    """Texts that reach the server together, by their lengths in tokens; `k` above 0 asks for a search too."""

    at_s: float
    tokens: tuple[int, ...]
    lane: Lane = "questions"
    k: int = 0
    timeout_s: float = TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Stage:
    """What the scheduler believes of a stage, and what a batch then takes, given (batch size, tokens of each text)."""

    costs: Mapping[Lane, CostTable]
    took_ms: Mapping[Lane, TookMs]

    @classmethod
    def of(cls, believed: CostTable, took_ms: TookMs | None = None) -> "Stage":
        """A stage that costs the same for both lanes, and by default just what is believed."""
        took = took_ms or believed.ms
        return cls({"questions": believed, "passages": believed}, {"questions": took, "passages": took})


@dataclass(frozen=True, slots=True)
class Server:
    """What is simulated: the stages and lanes of an Engine. Without `search` no call may ask for one."""

    encode: Stage
    search: Stage | None = None
    own_thread: bool = True
    lanes: tuple[LaneSettings, ...] = LANES


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended, in the order of the calls: late is what was not ready at its deadline."""

    call: Call
    ending: Ending
    at_s: float


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch that was run. Texts are numbered through all calls, in their order."""

    stage: StageName
    lane: Lane
    texts: tuple[int, ...]
    tokens: tuple[int, ...]
    began_s: float
    took_ms: float


@dataclass(frozen=True, slots=True)
class Simulated:
    """What came of some calls."""

    ended: tuple[Ended, ...]
    batches: tuple[Ran, ...]

    def metrics(self, lane: Lane = "questions") -> dict[str, float]:
        """Of the calls of one lane, under the names that the load generator uses; times are from arrival.

        Shares are of calls, throughput is of texts from the first arrival to the last answer. `utilisation_share`
        is the encoder's, with all lanes; a metric of answers is left out where there are none.
        """
        calls = [item for item in self.ended if item.call.lane == lane]
        answered = [item for item in calls if item.ending == "ok"]
        ran = self._encoded(lane)
        found = {
            f"{ending}_share": sum(item.ending == ending for item in calls) / len(calls)
            for ending in ("refused", "late")
            if calls
        }
        if answered:
            latencies_ms = np.array([(item.at_s - item.call.at_s) * 1e3 for item in answered])
            for name, percent in PERCENTILES.items():
                found[name] = float(np.percentile(latencies_ms, percent, method="inverted_cdf"))
            elapsed_s = max(item.at_s for item in answered) - calls[0].call.at_s
            found["throughput_per_s"] = sum(len(item.call.tokens) for item in answered) / max(elapsed_s, 1e-9)
        if ran:
            texts = sum(len(batch.tokens) for batch in ran)
            padded = sum(len(batch.tokens) * max(batch.tokens) for batch in ran)
            found["padding_share"] = 1 - sum(sum(batch.tokens) for batch in ran) / padded
            found["batch_size_mean"] = texts / len(ran)
            found["utilisation_share"] = self._utilisation()
        return found

    def batch_sizes(self, lane: Lane = "questions") -> dict[str, int]:
        """How many batches of each size were embedded."""
        sizes = Counter(len(batch.tokens) for batch in self._encoded(lane))
        return {str(size): sizes[size] for size in sorted(sizes)}

    def _encoded(self, lane: Lane) -> list[Ran]:
        return [batch for batch in self.batches if batch.stage == "encode" and batch.lane == lane]

    def _utilisation(self) -> float:
        encoded = [batch for batch in self.batches if batch.stage == "encode"]
        ends_s = max(batch.began_s + batch.took_ms / 1e3 for batch in encoded)
        elapsed_s = ends_s - self.ended[0].call.at_s
        return sum(batch.took_ms for batch in encoded) / 1e3 / max(elapsed_s, 1e-9)


def simulate(calls: Sequence[Call], server: Server) -> Simulated:
    """Runs calls, in the order of their arrival, until the last one has ended."""
    return _Simulation(calls, server).run()


def open_loop(
    at_s: Sequence[float] | npt.NDArray[np.float64], tokens: Sequence[int], *, k: int = 0, timeout_s: float = TIMEOUT_S
) -> list[Call]:
    """One question a call, with given arrivals and lengths."""
    return [Call(float(at), (int(length),), k=k, timeout_s=timeout_s) for at, length in zip(at_s, tokens, strict=True)]


def closed_loop(tokens: Sequence[int], clients: int, server: Server, *, k: int = 0) -> Simulated:
    """One question a call, sent by clients of whom each waits for its answer before it sends another one."""
    return _Simulation(open_loop(np.zeros(len(tokens)), tokens, k=k, timeout_s=math.inf), server, clients).run()


def saturation_per_s(tokens: Sequence[int], server: Server, k: int = 0) -> float:
    """Texts a second when all of them wait from the beginning, and none is refused."""
    lanes = tuple(replace(lane, max_queued=len(tokens)) for lane in server.lanes)
    calls = open_loop(np.zeros(len(tokens)), tokens, k=k, timeout_s=math.inf)
    return simulate(calls, replace(server, lanes=lanes)).metrics()["throughput_per_s"]


def ceiling_per_s(tokens: Sequence[int], took_ms: TookMs, max_batch: int = MAX_BATCH) -> float:
    """Texts a second if each ran in the best batch of texts just like it: no scheduler can do better."""
    best_ms = {length: min(took_ms(size, length) / size for size in range(1, max_batch + 1)) for length in set(tokens)}
    return 1e3 * len(tokens) / sum(best_ms[length] for length in tokens)


def noisy(took_ms: TookMs, factors: Sequence[float], seed: int) -> TookMs:
    """Batch times with measured noise: each is multiplied by one of `factors`, drawn with a seed."""
    draw = np.random.default_rng(seed)
    return lambda size, tokens: took_ms(size, tokens) * float(draw.choice(factors))


@dataclass(slots=True)
class _Thread:
    """An engine's thread: the stages that it serves, the first of them first, and the batch that it runs."""

    stages: tuple[StageName, ...]
    running: tuple[StageName, Batch[int]] | None = None
    ends_s: float = math.inf


class _Simulation:
    """The state of one run: what an Engine holds, without its threads. A scheduler's cargo is the call's number."""

    def __init__(self, calls: Sequence[Call], server: Server, clients: int | None = None) -> None:
        self._calls = list(calls)
        self._clients = clients  # so many calls at a time, whenever they were due
        self._stages: dict[StageName, Stage] = {"encode": server.encode}
        self._threads = [_Thread(("encode",))]
        if server.search is not None:
            self._stages["search"] = server.search
            apart = [_Thread(("encode",)), _Thread(("search",))]
            self._threads = apart if server.own_thread else [_Thread(("search", "encode"))]
        after_ms = {"encode": server.search.costs["questions"].ms(1, 1)} if server.search else {}
        self._queues = {
            name: Scheduler[int](server.lanes, dict(stage.costs), after_ms.get(name, 0.0))
            for name, stage in self._stages.items()
        }
        self._texts = np.cumsum([0, *(len(call.tokens) for call in calls)])  # the first text of each call
        self._missing = [len(call.tokens) for call in calls]
        self._ended: dict[int, Ended] = {}
        self._batches: list[Ran] = []

    def run(self) -> Simulated:
        """Jumps from one arrival or end of a batch to the next."""
        number, now_s = 0, 0.0
        while True:
            now_s = max(now_s, min(self._due_s(number), *(thread.ends_s for thread in self._threads)))
            if now_s == math.inf:
                return Simulated(tuple(self._ended[each] for each in range(number)), tuple(self._batches))
            for thread in self._threads:
                if thread.ends_s <= now_s:
                    self._finish(thread, now_s)
            while self._due_s(number) <= now_s:
                self._calls[number] = replace(self._calls[number], at_s=now_s)
                self._submit(number, now_s)
                number += 1
            for thread in self._threads:
                if thread.running is None:
                    self._begin(thread, now_s)

    def _due_s(self, number: int) -> float:
        """When the next call comes: infinity if there is none, or while every client waits for an answer."""
        if number == len(self._calls):
            return math.inf
        if self._clients is not None and number - len(self._ended) >= self._clients:
            return math.inf
        return self._calls[number].at_s

    def _submit(self, number: int, now_s: float) -> None:
        call, first = self._calls[number], int(self._texts[number])
        works = [
            Work(first + place, call.lane, now_s + call.timeout_s, token_ids=np.empty(tokens, dtype=np.int64), k=call.k)
            for place, tokens in enumerate(call.tokens)
        ]
        way = [queue for name, queue in self._queues.items() if name == "encode" or call.k > 0]
        if admit(way, works, now_s) is not None:
            self._end(number, "refused", now_s)
            return
        for work in works:
            self._queues["encode"].add(Entry(work, number, now_s))

    def _begin(self, thread: _Thread, now_s: float) -> None:
        for name in thread.stages:
            batch, dropped = self._queues[name].next_batch(now_s)
            for entry in dropped:
                self._end(entry.cargo, "late", now_s)
            if batch is not None:
                texts = tuple(entry.work.request_id for entry in batch.entries)
                tokens = tuple(entry.work.tokens for entry in batch.entries)
                stage = self._stages[name]
                priced = stage.costs[batch.lane].priced_tokens(len(tokens), max(tokens), sum(tokens))
                took_ms = stage.took_ms[batch.lane](len(tokens), priced)
                self._batches.append(Ran(name, batch.lane, texts, tokens, now_s, took_ms))
                thread.running, thread.ends_s = (name, batch), now_s + took_ms / 1e3
                return

    def _finish(self, thread: _Thread, now_s: float) -> None:
        assert thread.running is not None
        name, batch = thread.running
        thread.running, thread.ends_s = None, math.inf
        self._queues[name].finished(now_s)
        for entry in batch.entries:
            number, work = entry.cargo, entry.work
            if number in self._ended:
                continue  # another text of the call was late
            if name == "encode" and work.k > 0:
                self._queues["search"].add(Entry(work, number, now_s))
                continue
            self._missing[number] -= 1
            if now_s > work.deadline_s:
                self._end(number, "late", now_s)
            elif self._missing[number] == 0:
                self._end(number, "ok", now_s)

    def _end(self, number: int, ending: Ending, now_s: float) -> None:
        """Ends a call, once; what else of it waits is cancelled, as the server does."""
        self._ended.setdefault(number, Ended(self._calls[number], ending, now_s))
        for text in range(self._texts[number], self._texts[number + 1]):
            for queue in self._queues.values():
                queue.cancel(text)
