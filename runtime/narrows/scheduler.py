"""Which work runs next, together with what: late-closing batches, lanes, admission.

A scheduler serves one stage. It holds no thread, no lock and no clock: the caller passes the time, in seconds on
CLOCK_MONOTONIC. A batch's members are fixed only in `next_batch`, which the stage's worker calls when it is free.

The rules:
- A batch starts with the work whose turn it is in its lane, so nothing starves, and takes the neighbours in length for
  as long as the cost table says that joining costs no more than running alone, up to the smallest of the table's caps
  for their lengths: so none joins to which the batch is too large already. Of these it keeps, from the nearest on, as
  many as get the most done in a millisecond.
- Turns go round the sources of work, each stream being one, all other calls together another: by start-time fair
  queuing (Goyal et al., SIGCOMM 1996), in the milliseconds of the cost table. One source alone is served by age.
- A stream may take so many places of a lane as are free, times STREAM_SHARE, so that there is room for others (dynamic
  thresholds, Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998).
- Lanes go by priority. A lane with a minimum share runs first while it has had less than that share of the stage's
  time, counted over the batches closed while another lane was waiting too.
- Work is refused at the door when a lane on its way is full, or when the predicted wait passes its deadline (`admit`).
  The prediction follows what batches have lately taken under load, beside what the table says of them.
- Expired and cancelled work leaves the queue without being computed, and so does what would be ready too late in the
  batch that is closed. If what else waits can wait for it, the batch ends before what makes its oldest late instead.
"""

import bisect
import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from narrows.costs import CostTable
from narrows.pace import Pace
from narrows.work import Lane, Work

T = TypeVar("T")

ROUNDING = 1e-9
STREAM_SHARE = 4  # one stream takes four fifths of a lane, two take four ninths each, and so on
DEAD_DUES = 64  # so many, and one for each work that waits, may stay in the heap
SHARE_WINDOW_MS = 10_000.0  # shares are those of about this much recent competition


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """A queue of its own. Lanes are given in order of priority; `min_share` is of the stage's time."""

    name: Lane
    max_queued: int
    min_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A queued work with what the stage carries along for it."""

    work: Work
    cargo: T
    queued_s: float


@dataclass(frozen=True, slots=True)
class Batch(Generic[T]):
    """Works of one lane to be run together; `predicted_ms` by the cost table."""

    lane: Lane
    entries: tuple[Entry[T], ...]
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a whole submission was turned away. `expired`: it could not meet its deadline even on an idle server."""

    reason: Literal["overloaded", "expired"]
    message: str
    retry_after_ms: int = 0


@dataclass(slots=True)
class _Source:
    """What waits of one source: request ids by age; and when, on the lane's clock, its next turn begins."""

    start_ms: float
    waiting: OrderedDict[int, None] = field(default_factory=OrderedDict)
    waiting_ms: float = 0.0


class _Queue(Generic[T]):
    """One lane's entries, by turn and by length."""

    def __init__(self, settings: LaneSettings, costs: CostTable) -> None:
        self.settings = settings
        self.costs = costs
        self.entries: dict[int, Entry[T]] = {}  # by request id, in the order of arrival
        self.by_length: list[tuple[int, int]] = []  # (tokens, request_id), sorted
        self.sources: dict[int, _Source] = {}  # those of which something waits
        self.waiting_ms = 0.0
        self.served_ms = 0.0  # while another lane was waiting too
        self._clock_ms = 0.0  # the start of the last turn
        self._starts_ms: dict[int, float] = {}  # of sources of which nothing waits, while the clock is not there yet

    def add(self, entry: Entry[T]) -> None:
        work, own_ms = entry.work, self.costs.item_ms(entry.work.tokens)
        self.entries[work.request_id] = entry
        bisect.insort(self.by_length, (work.tokens, work.request_id))
        source = self.sources.get(work.source)
        if source is None:
            start_ms = max(self._clock_ms, self._starts_ms.pop(work.source, 0.0))
            source = self.sources[work.source] = _Source(start_ms)
        source.waiting[work.request_id] = None
        source.waiting_ms += own_ms
        self.waiting_ms += own_ms

    def remove(self, request_id: int, *, served: bool = False) -> Entry[T] | None:
        """Takes a work out; only one that is served counts as a turn of its source."""
        entry = self.entries.pop(request_id, None)
        if entry is None:
            return None
        work, own_ms = entry.work, self.costs.item_ms(entry.work.tokens)
        del self.by_length[bisect.bisect_left(self.by_length, (work.tokens, request_id))]
        source = self.sources[work.source]
        del source.waiting[request_id]
        source.waiting_ms -= own_ms
        self.waiting_ms -= own_ms
        if served:
            source.start_ms += own_ms
        if not source.waiting:
            del self.sources[work.source]
            if source.start_ms > self._clock_ms:
                self._starts_ms[work.source] = source.start_ms
        if not self.entries:
            self.waiting_ms = 0.0  # what rounding left over
            self._starts_ms.clear()
        return entry

    def room_for(self, works: Sequence[Work]) -> bool:
        left = self.settings.max_queued - len(self.entries)
        source = self.sources.get(works[0].source)
        held = len(source.waiting) if source and works[0].source else 0  # source 0 is many
        return len(works) <= left and (held == 0 or held + len(works) <= STREAM_SHARE * left)

    def waiting_before_ms(self, source: int, own_ms: float) -> float:
        """What is served before new work of a source: its own, and of each other one as much, if it has so much."""
        found = self.sources.get(source)
        before_ms = own_ms + (found.waiting_ms if found else 0.0)
        return sum(min(other.waiting_ms, before_ms) for other in self.sources.values())

    def pick(self) -> tuple[list[Entry[T]], list[float]]:
        """The works of the next batch, and what the first 1, 2, ... of them take in milliseconds.

        The first is the one whose turn it is.
        """
        source = min(self.sources.values(), key=lambda each: each.start_ms)
        if source.start_ms > self._clock_ms:
            self._clock_ms = source.start_ms
            self._starts_ms = {number: ms for number, ms in self._starts_ms.items() if ms > self._clock_ms}
        first = self.entries[next(iter(source.waiting))]
        tokens = longest = total = first.work.tokens
        position = bisect.bisect_left(self.by_length, (tokens, first.work.request_id))
        chosen = [first]
        predicted_ms = self.costs.ms(1, tokens)
        prefix_ms = [predicted_ms]
        worth_ms = self.costs.item_ms(tokens)  # of a text: what it takes in a full batch of its like
        best_rate, best_size = worth_ms / predicted_ms, 1
        cap = self.costs.cap(tokens)
        shorter, longer = position - 1, position + 1
        while (size := len(chosen) + 1) <= cap:
            # The neighbour that is nearer in length; of two equally near ones the shorter.
            down = self.by_length[shorter] if shorter >= 0 else None
            up = self.by_length[longer] if longer < len(self.by_length) else None
            if down is None and up is None:
                break
            go_down = up is None or (down is not None and tokens - down[0] <= up[0] - tokens)
            nearest = down if go_down else up
            assert nearest is not None
            length, request_id = nearest
            shorter, longer = (shorter - 1, longer) if go_down else (shorter, longer + 1)
            joined_ms = self.costs.ms(size, self.costs.priced_tokens(size, max(longest, length), total + length))
            own_cap = self.costs.cap(length)
            if size > own_cap or joined_ms - predicted_ms > self.costs.ms(1, length) * (1 + ROUNDING):
                # Joining costs more than running alone, and the next ones on this side are further away still.
                shorter, longer = (-1, longer) if go_down else (shorter, len(self.by_length))
                continue
            chosen.append(self.entries[request_id])
            prefix_ms.append(joined_ms)
            longest, total, cap, predicted_ms = max(longest, length), total + length, min(cap, own_cap), joined_ms
            worth_ms += self.costs.item_ms(length)
            if worth_ms / predicted_ms > best_rate:
                best_rate, best_size = worth_ms / predicted_ms, size
        return chosen[:best_size], prefix_ms[:best_size]


class Scheduler(Generic[T]):
    """The queue of one stage. Not thread-safe: its owner holds the lock."""

    def __init__(self, lanes: Sequence[LaneSettings], costs: dict[Lane, CostTable], after_ms: float = 0.0) -> None:
        """`after_ms`: what the next stage takes of the time of a work that goes on to it (`k` above 0)."""
        self._queues = {lane.name: _Queue[T](lane, costs[lane.name]) for lane in lanes}
        self._after_s = after_ms / 1e3
        self._busy_until_s = 0.0
        self._pace = Pace()
        self._dues: list[tuple[float, int]] = []  # a heap of (due, request_id); may name work long gone

    def __len__(self) -> int:
        return sum(len(queue.entries) for queue in self._queues.values())

    def room_for(self, works: Sequence[Work]) -> bool:
        """Whether the lane of `works` (of one lane) can hold them too."""
        return self._queues[works[0].lane].room_for(works)

    def own_ms(self, works: Sequence[Work]) -> float:
        """What `works` (of one lane) themselves take: full batches, or the one that they make together."""
        costs = self._queues[works[0].lane].costs
        if len(works) == 1:  # the usual call
            return costs.ms(1, works[0].tokens)
        longest = max(work.tokens for work in works)
        together_ms = costs.ms(min(len(works), costs.cap(longest)), longest)
        return max(together_ms, sum(costs.item_ms(work.tokens) for work in works))

    def predicted_wait_ms(self, lane: Lane, now_s: float, source: int = 0, own_ms: float = 0.0) -> float:
        """How long new work waits before it runs: for the running batch, the lanes before its own, and its turn there.

        The turn is that of a source's work that takes `own_ms`.
        """
        waiting_ms = 0.0
        for name, queue in self._queues.items():
            if name == lane:
                waiting_ms += queue.waiting_before_ms(source, own_ms)
                break
            waiting_ms += queue.waiting_ms
        return max(0.0, (self._busy_until_s - now_s) * 1e3) + waiting_ms * self._pace.slowdown

    def _due_s(self, work: Work) -> float:
        """When this stage must be done with a work."""
        return work.deadline_s - self._after_s if work.k > 0 else work.deadline_s

    def add(self, entry: Entry[T]) -> None:
        """Queues admitted work."""
        self._queues[entry.work.lane].add(entry)
        heapq.heappush(self._dues, (self._due_s(entry.work), entry.work.request_id))
        if len(self._dues) > 2 * len(self) + DEAD_DUES:  # under load the queue may never be empty
            waiting = (item.work for queue in self._queues.values() for item in queue.entries.values())
            self._dues = [(self._due_s(work), work.request_id) for work in waiting]
            heapq.heapify(self._dues)

    def cancel(self, request_id: int) -> Entry[T] | None:
        """Takes work out of the queue; None if it is not there (any more)."""
        for queue in self._queues.values():
            entry = queue.remove(request_id)
            if entry is not None:
                return entry
        return None

    def next_batch(self, now_s: float) -> tuple[Batch[T] | None, list[Entry[T]]]:
        """Closes the next batch, None when nothing waits; and returns what left the queue for being too late.

        Call it when the stage is free to run a batch.
        """
        self._pace.free(now_s)
        dropped = self._drop_expired(now_s)
        overrun = self._pace.overrun
        while waiting := [queue for queue in self._queues.values() if queue.entries]:
            queue = _next_lane(waiting)
            picked, prefix_ms = queue.pick()
            ready_s = [now_s + ms * overrun / 1e3 for ms in prefix_ms]
            late = [entry for entry in picked if self._due_s(entry.work) <= ready_s[-1]]
            size = self._first_in_time(queue, picked, ready_s) if late else len(picked)
            if size > 0:
                self._busy_until_s = ready_s[size - 1]
                batch = Batch(queue.settings.name, tuple(picked[:size]), prefix_ms[size - 1])
                self._take(batch, queue, waiting, now_s)
                return batch, dropped
            for entry in late:
                queue.remove(entry.work.request_id)
            dropped += late
        self._dues.clear()
        if dropped:  # perhaps for having learned from a bad moment, and what is not run teaches nothing
            self._pace.forget()
        return None, dropped

    def _drop_expired(self, now_s: float) -> list[Entry[T]]:
        dropped = []
        while self._dues and self._dues[0][0] <= now_s:
            entry = self.cancel(heapq.heappop(self._dues)[1])
            if entry is not None:
                dropped.append(entry)
        return dropped

    def _first_in_time(self, queue: _Queue[T], picked: Sequence[Entry[T]], ready_s: Sequence[float]) -> int:
        """How many of a batch, from its first on, are in time by themselves; 0 if what else waits cannot wait so long.

        `ready_s` is when the first 1, 2, ... of them would be ready.
        """
        dues_s = itertools.accumulate((self._due_s(entry.work) for entry in picked), min)
        in_time = itertools.takewhile(lambda times: times[0] > times[1], zip(dues_s, ready_s, strict=True))
        size = len(list(in_time))
        first = {entry.work.request_id for entry in picked[:size]}
        others = (entry.work for request_id, entry in queue.entries.items() if request_id not in first)
        all_done_s = ready_s[size - 1] + queue.waiting_ms * self._pace.slowdown / 1e3
        return size if min(map(self._due_s, others), default=math.inf) > all_done_s else 0

    def _take(self, batch: Batch[T], queue: _Queue[T], waiting: Sequence[_Queue[T]], now_s: float) -> None:
        """Takes a batch out of its queue, one of those where something waits, and counts it."""
        for entry in batch.entries:
            queue.remove(entry.work.request_id, served=True)
        if len(waiting) > 1:
            queue.served_ms += batch.predicted_ms
            if sum(lane.served_ms for lane in waiting) > SHARE_WINDOW_MS:
                for lane in waiting:
                    lane.served_ms /= 2
        if len(self):
            worth_ms = sum(queue.costs.item_ms(entry.work.tokens) for entry in batch.entries)
            self._pace.began(now_s, worth_ms, batch.predicted_ms)

    def finished(self, now_s: float) -> None:
        """The running batch is done."""
        self._busy_until_s = now_s


def admit(stages: Sequence[Scheduler[T]], works: Sequence[Work], now_s: float) -> Refused | None:
    """Whether all of `works` (of one lane) may enter, given the stages on their way: None if so.

    Nothing is queued by asking. Refused is what finds a queue full, or whose predicted wait passes its deadline.
    """
    lane = works[0].lane
    takes_ms = [stage.own_ms(works) for stage in stages]
    waits = zip(stages, takes_ms, strict=True)
    wait_ms = sum(stage.predicted_wait_ms(lane, now_s, works[0].source, each_ms) for stage, each_ms in waits)
    own_ms = sum(takes_ms)
    left_ms = (min(work.deadline_s for work in works) - now_s) * 1e3
    if own_ms > left_ms:
        message = f"this call takes {own_ms:.0f} ms by itself, and its deadline leaves {max(left_ms, 0):.0f} ms"
        return Refused("expired", message)
    if not all(stage.room_for(works) for stage in stages):
        return Refused("overloaded", f"too many {lane} are waiting already", max(1, round(wait_ms)))
    if wait_ms + own_ms > left_ms:
        message = f"the predicted wait is {wait_ms + own_ms:.0f} ms, and the deadline leaves {left_ms:.0f} ms"
        return Refused("overloaded", message, max(1, round(wait_ms)))
    return None


def _next_lane(waiting: Sequence[_Queue[T]]) -> _Queue[T]:
    total_ms = sum(queue.served_ms for queue in waiting)
    for queue in waiting[1:]:
        if queue.served_ms < queue.settings.min_share * total_ms:
            return queue
    return waiting[0]
