"""The front's side of the seam: a call's texts become Works, and their Outcomes become its answer or its error."""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from narrows.errors import (
    DeadlineExceededError,
    EngineDownError,
    NarrowsError,
    OverloadedError,
    PoisonousError,
    ServerError,
    UnavailableError,
)
from narrows.server.application import EngineHandle
from narrows.tokenizer import TokenIds
from narrows.work import Lane, Outcome, Work


@dataclass(slots=True)
class _Call:
    """One call's outstanding works."""

    future: "asyncio.Future[None]"
    missing: int
    outcomes: dict[int, Outcome] = field(default_factory=dict)


class Dispatcher:
    """Submits to the engine and wakes the calls that wait for it. Lives on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}  # by request id
        self.answered = 0  # works, ever

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Takes one batch's outcomes from an engine thread: one wake-up of the event loop for all of them."""
        self._loop.call_soon_threadsafe(self.resolve, outcomes)

    async def embed(
        self,
        engine: EngineHandle,
        lane: Lane,
        token_ids: Sequence[TokenIds],
        deadline_s: float,
        k: int = 0,
        source: int = 0,
    ) -> list[Outcome]:
        """Embeds texts, and searches when k is above 0. All or nothing.

        Raises:
            OverloadedError, DeadlineExceededError, UnavailableError, ServerError: the first work that failed.
        """
        return await self._run(
            engine, [Work(next(self._ids), lane, deadline_s, token_ids=ids, k=k, source=source) for ids in token_ids]
        )

    async def search(
        self, engine: EngineHandle, vectors: npt.NDArray[np.float32], deadline_s: float, k: int, source: int = 0
    ) -> list[Outcome]:
        """Searches with ready vectors, float32 (vectors, dim). All or nothing; raises as `embed` does."""
        return await self._run(
            engine, [Work(next(self._ids), "questions", deadline_s, vector=v, k=k, source=source) for v in vectors]
        )

    async def _run(self, engine: EngineHandle, works: list[Work]) -> list[Outcome]:
        call = _Call(self._loop.create_future(), len(works))
        self._calls.update((work.request_id, call) for work in works)
        try:
            engine.submit(works)
            await call.future
        finally:
            waiting = [work.request_id for work in works if work.request_id not in call.outcomes]
            for request_id in waiting:
                del self._calls[request_id]
            if waiting:  # the client is gone, or a sibling failed
                engine.cancel(waiting)
        return [call.outcomes[work.request_id] for work in works]

    def resolve(self, outcomes: Sequence[Outcome]) -> None:
        """Takes outcomes on the event loop."""
        self.answered += sum(outcome.refusal is None for outcome in outcomes)
        for outcome in outcomes:
            call = self._calls.pop(outcome.request_id, None)
            if call is None:
                continue  # cancelled meanwhile
            call.outcomes[outcome.request_id] = outcome
            call.missing -= 1
            if call.future.done():
                continue
            if outcome.refusal is not None:
                call.future.set_exception(_error(outcome))
            elif call.missing == 0:
                call.future.set_result(None)


def _error(outcome: Outcome) -> NarrowsError:
    match outcome.refusal:
        case "overloaded":
            return OverloadedError(outcome.message, outcome.retry_after_ms)
        case "expired":
            return DeadlineExceededError(outcome.message)
        case "draining":
            return UnavailableError(outcome.message)
        case "down":
            return EngineDownError(outcome.message, outcome.retry_after_ms)
        case "poisonous":
            return PoisonousError(outcome.message)
        case _:
            return ServerError(outcome.message or "the engine dropped the request")
