"""Works in, outcomes out: the threads that run the stages.

The engine is the far side of the seam. `submit` takes plain Works and returns at once; each Work's Outcome reaches
`deliver` later, one call per finished batch, from one of the engine's threads. A batch flows from encode to search;
each stage has a scheduler and a cost table of its own, and stages of the same affinity share a thread.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from narrows.costs import CostTable
from narrows.encoder import Embeddings
from narrows.index import SearchHits
from narrows.quarantine import ENCODING, SEARCHING, Guard
from narrows.scheduler import Batch, Entry, LaneSettings, Scheduler, admit
from narrows.tokenizer import TokenIds
from narrows.work import Lane, Outcome, Timings, Work

log = logging.getLogger(__name__)

NO_TIMINGS = Timings()
TOO_LATE = "it waited too long to be ready by its deadline"

R = TypeVar("R")
Deliver = Callable[[Sequence[Outcome]], None]
Encode = Callable[[Sequence[TokenIds]], Embeddings | Sequence[npt.NDArray[np.float32]]]
Search = Callable[[Embeddings, int], SearchHits]


@dataclass(frozen=True, slots=True)
class EncodeStage:
    """The towers: which one embeds a lane's texts, and what its batches cost."""

    towers: dict[Lane, Encode]
    costs: dict[Lane, CostTable]


@dataclass(frozen=True, slots=True)
class SearchStage:
    """The index. With `own_thread` it does not hold up the encoder; a GPU index shares the encoder's thread."""

    search: Search
    costs: CostTable
    own_thread: bool


@dataclass(frozen=True, slots=True)
class _Progress:
    """What a work has gathered on its way."""

    embedding: npt.NDArray[np.float32] | None
    timings: Timings


@dataclass(frozen=True, slots=True)
class _Stage:
    """A queue, and what runs its batches; returns the outcomes of the works that end there."""

    scheduler: Scheduler[_Progress]
    run: Callable[[Batch[_Progress]], list[Outcome]]


@dataclass(frozen=True, slots=True)
class _Job:
    """What a thread does next."""

    expired: list[Entry[_Progress]]
    batch: Batch[_Progress] | None
    run: Callable[[Batch[_Progress]], list[Outcome]]


class Engine:
    """Runs the stages until closed. `submit`, `cancel` and `close` may be called from any thread."""

    def __init__(
        self,
        encode: EncodeStage,
        search: SearchStage | None,
        lanes: Sequence[LaneSettings],
        deliver: Deliver,
        clock: Callable[[], float] = time.monotonic,
        guard: Guard | None = None,
    ) -> None:
        """`guard` is told what runs, where a process that dies is to be started again."""
        self._encode = encode
        self._search = search
        self._deliver = deliver
        self._clock = clock
        self._guard = guard
        self.lanes: tuple[Lane, ...] = tuple(lane.name for lane in lanes)
        self._lock = threading.Lock()
        self._closing = False
        self._encoding = Scheduler[_Progress](lanes, encode.costs, search.costs.ms(1, 1) if search else 0.0)
        search_costs: dict[Lane, CostTable] = {lane.name: search.costs for lane in lanes} if search else {}
        self._searching = Scheduler[_Progress](lanes, search_costs) if search else None
        self._running: set[int] = set()  # request ids in a batch now, or between two stages
        self._cancelled: set[int] = set()  # those of them that nobody wants any more
        groups = [[_Stage(self._encoding, self._run_encode)]]
        if search is not None and self._searching is not None:
            search_stage = _Stage(self._searching, self._run_search)
            if search.own_thread:
                groups.append([search_stage])
            else:
                groups[0].insert(0, search_stage)  # what is nearly done is finished before more is begun
        # Each thread sleeps on a condition of its own: a wake-up in vain costs as much as tokenizing a question.
        wakes = [threading.Condition(self._lock) for _ in groups]
        self._wakes = {id(stage.scheduler): wake for group, wake in zip(groups, wakes, strict=True) for stage in group}
        self._threads = [
            threading.Thread(target=self._work, args=(group, wake), name=f"narrows-engine-{number}", daemon=True)
            for number, (group, wake) in enumerate(zip(groups, wakes, strict=True))
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, *calls: Sequence[Work]) -> None:
        """Queues the works of each call (one lane, all texts or all vectors), all or none.

        Refusals are delivered too, before this returns.
        """
        now_s = self._clock()
        refusals: list[Outcome] = []
        with self._lock:
            for works in calls:
                refusals += self._enter(works, now_s)
            for stage in self._schedulers():
                if stage:
                    self._wakes[id(stage)].notify()
        self._deliver_safely(refusals)

    def _enter(self, works: Sequence[Work], now_s: float) -> list[Outcome]:
        """Queues the works of one call, or returns why not."""
        stages = [self._encoding] if works[0].vector is None else []
        if self._searching is not None and works[0].k > 0:
            stages.append(self._searching)
        assert stages, "a vector was submitted to an engine without an index"
        if self._closing:
            return [Outcome(work.request_id, "draining", "the server is shutting down") for work in works]
        if refused := admit(stages, works, now_s):
            return [Outcome(work.request_id, refused.reason, refused.message, refused.retry_after_ms) for work in works]
        for work in works:
            stages[0].add(Entry(work, _Progress(work.vector, NO_TIMINGS), now_s))
        return []

    def cancel(self, request_ids: Sequence[int]) -> None:
        """Drops works that nobody waits for: they are not computed any further, and end as `cancelled`."""
        outcomes = []
        with self._lock:
            for request_id in request_ids:
                if any(queue.cancel(request_id) for queue in self._schedulers()):
                    outcomes.append(Outcome(request_id, "cancelled"))
                elif request_id in self._running:
                    self._cancelled.add(request_id)
        self._deliver_safely(outcomes)

    def begins_s(self, lane: Lane) -> float:
        """When a call that came now would begin to run, on the engine's clock."""
        now_s = self._clock()
        with self._lock:
            return now_s + self._encoding.predicted_wait_ms(lane, now_s) / 1e3

    def close(self) -> None:
        """Refuses new work, finishes what is queued, and ends the threads."""
        with self._lock:
            self._closing = True
            self._wake_all()
        for thread in self._threads:
            thread.join()

    def _schedulers(self) -> list[Scheduler[_Progress]]:
        return [self._encoding] if self._searching is None else [self._encoding, self._searching]

    def _wake_all(self) -> None:
        for wake in self._wakes.values():
            wake.notify()

    def _work(self, stages: Sequence[_Stage], wake: threading.Condition) -> None:
        while True:
            with self._lock:
                job = self._next_job(stages)
                while job is None:
                    if self._closing and not self._running and not any(map(len, self._schedulers())):
                        self._wake_all()
                        return
                    wake.wait()
                    job = self._next_job(stages)
            self._deliver_safely([Outcome(entry.work.request_id, "expired", TOO_LATE) for entry in job.expired])
            outcomes = job.run(job.batch) if job.batch is not None else []
            self._deliver_safely(outcomes)
            with self._lock:
                self._running.difference_update(outcome.request_id for outcome in outcomes)
                self._cancelled.intersection_update(self._running)

    def _deliver_safely(self, outcomes: Sequence[Outcome]) -> None:
        try:
            if outcomes:
                self._deliver(outcomes)
        except Exception:
            log.exception("%d outcomes could not be delivered", len(outcomes))

    def _next_job(self, stages: Sequence[_Stage]) -> _Job | None:
        """The next batch of the first stage that has one, and what is too late by now; None when there is neither."""
        now_s = self._clock()
        for stage in stages:
            batch, expired = stage.scheduler.next_batch(now_s)
            if batch is not None:
                self._running.update(entry.work.request_id for entry in batch.entries)
            if expired or batch is not None:
                return _Job(expired, batch, stage.run)
        return None

    def _run_encode(self, batch: Batch[_Progress]) -> list[Outcome]:
        """Embeds a batch. Returns the outcomes of the works that end here; the others go on to the search."""
        started_s = self._clock()
        tower = self._encode.towers[batch.lane]

        def run(entries: Sequence[Entry[_Progress]]) -> list[_Progress]:
            embeddings = tower([entry.work.token_ids for entry in entries if entry.work.token_ids is not None])
            encode_ms = (self._clock() - started_s) * 1e3
            batch_tokens = max(entry.work.tokens for entry in entries)
            return [
                _Progress(
                    embedding,
                    Timings(
                        queue_ms=(started_s - entry.queued_s) * 1e3,
                        encode_ms=encode_ms,
                        batch_size=len(entries),
                        batch_tokens=batch_tokens,
                    ),
                )
                for entry, embedding in zip(entries, embeddings, strict=True)
            ]

        done, failed = self._run_safely(ENCODING, batch, run)
        outcomes = failed
        now_s = self._clock()
        with self._lock:
            self._encoding.finished(now_s)
            for entry, progress in done:
                work = entry.work
                if work.request_id in self._cancelled:
                    outcomes.append(Outcome(work.request_id, "cancelled"))
                elif work.k > 0 and self._searching is not None:
                    self._searching.add(Entry(work, progress, now_s))
                    self._running.discard(work.request_id)
                else:
                    outcomes.append(Outcome(work.request_id, embedding=progress.embedding, timings=progress.timings))
            if self._searching:  # holds something
                self._wakes[id(self._searching)].notify()
        return outcomes

    def _run_search(self, batch: Batch[_Progress]) -> list[Outcome]:
        """Searches for a batch, and ends its works."""
        assert self._search is not None
        assert self._searching is not None
        started_s = self._clock()
        search = self._search.search

        def run(entries: Sequence[Entry[_Progress]]) -> list[Outcome]:
            queries = np.stack([entry.cargo.embedding for entry in entries if entry.cargo.embedding is not None])
            hits = search(queries, max(entry.work.k for entry in entries))
            search_ms = (self._clock() - started_s) * 1e3
            return [
                Outcome(
                    entry.work.request_id,
                    embedding=entry.cargo.embedding,
                    rows=hits.rows[number, : entry.work.k],
                    scores=hits.scores[number, : entry.work.k],
                    timings=replace(
                        entry.cargo.timings,
                        queue_ms=entry.cargo.timings.queue_ms + (started_s - entry.queued_s) * 1e3,
                        search_ms=search_ms,
                    ),
                )
                for number, entry in enumerate(entries)
            ]

        done, outcomes = self._run_safely(SEARCHING, batch, run)
        with self._lock:
            self._searching.finished(self._clock())
        return outcomes + [outcome for _, outcome in done]

    def _run_safely(
        self, stage: int, batch: Batch[_Progress], run: Callable[[Sequence[Entry[_Progress]]], list[R]]
    ) -> tuple[list[tuple[Entry[_Progress], R]], list[Outcome]]:
        """Runs a batch; when it fails, each work alone that is still wanted, so that a bad one fails only itself."""
        done: list[tuple[Entry[_Progress], R]] = []
        failed: list[Outcome] = []
        alone: list[Entry[_Progress]] = []
        guard = self._guard
        for group in guard.groups(batch.entries, lambda entry: entry.work) if guard else [batch.entries]:
            try:
                done += zip(group, self._run_noted(stage, group, run), strict=True)
            except Exception:
                log.exception("a batch of %d %s failed", len(group), batch.lane)
                alone += group
        for entry in alone:
            if ended := self._ended(entry.work):
                failed.append(ended)
                continue
            try:
                done += zip([entry], self._run_noted(stage, [entry], run), strict=True)
            except Exception as error:
                log.exception("request %d failed alone as well", entry.work.request_id)
                failed.append(Outcome(entry.work.request_id, "failed", f"{type(error).__name__} in the engine"))
        return done, failed

    def _run_noted(
        self, stage: int, entries: Sequence[Entry[_Progress]], run: Callable[[Sequence[Entry[_Progress]]], list[R]]
    ) -> list[R]:
        if self._guard is None:
            return run(entries)
        with self._guard.running(stage, [entry.work for entry in entries]):
            return run(entries)

    def _ended(self, work: Work) -> Outcome | None:
        """The outcome of a work that was cancelled, or whose deadline passed, while its batch ran."""
        with self._lock:
            if work.request_id in self._cancelled:
                return Outcome(work.request_id, "cancelled")
        return Outcome(work.request_id, "expired", TOO_LATE) if work.deadline_s <= self._clock() else None
