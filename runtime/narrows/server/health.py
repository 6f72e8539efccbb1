"""What the health service says: alive while the event loop runs, ready while questions are answered.

Readiness rests on what comes back from the engine: the outcomes of calls, or, where there were none lately, those of a
canary: a question that goes all the way in a lane of its own, so that overload never looks like a failure.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from grpc_health.v1 import health_pb2
from grpc_health.v1._async import HealthServicer

from narrows.v1 import retrieval_pb2

log = logging.getLogger(__name__)

SERVICE = retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name
LIVENESS, READINESS = "liveness", "readiness"
READY_NAMES = ("", SERVICE, READINESS)
PERIOD_S = 1.0


class Health:
    """Lives on one event loop."""

    def __init__(
        self,
        canary: Callable[[float], Awaitable[None]],
        progress: Callable[[], int],
        changed: asyncio.Event,
        patience_s: float,
        period_s: float = PERIOD_S,
    ) -> None:
        """`canary` asks one question, given its deadline on CLOCK_MONOTONIC, and raises if it is not answered.

        `progress` counts what has come back from the engine. `changed` is set when an engine has gone or come, so that
        it is asked at once. `patience_s` is what a canary has, `period_s` the time without progress before the next.
        """
        self.servicer = HealthServicer()
        self._canary = canary
        self._progress = progress
        self._changed = changed
        self._patience_s = patience_s
        self._period_s = period_s
        self._ready: bool | None = None

    async def begin(self) -> None:
        """Says how things are for the first time."""
        await self.servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._ask()

    async def watch(self) -> None:
        """Goes on saying it, until cancelled."""
        while True:
            seen = self._progress()
            try:
                async with asyncio.timeout(self._period_s):
                    await self._changed.wait()
            except TimeoutError:
                if self._progress() != seen:
                    await self._say(ready=True)
                    continue
            self._changed.clear()
            await self._ask()

    async def end(self) -> None:
        """Says that nothing more is taken, whatever happens from now on."""
        await self.servicer.enter_graceful_shutdown()

    async def _ask(self) -> None:
        seen = self._progress()
        try:
            async with asyncio.timeout(self._patience_s):
                await self._canary(time.monotonic() + self._patience_s)
        except Exception as error:
            if self._ready is not False:
                log.error("the canary question is not answered: %s", error or type(error).__name__)
            await self._say(ready=self._progress() != seen)
        else:
            await self._say(ready=True)

    async def _say(self, *, ready: bool) -> None:
        if ready != self._ready:
            self._ready = ready
            statuses = health_pb2.HealthCheckResponse
            for name in READY_NAMES:
                await self.servicer.set(name, statuses.SERVING if ready else statuses.NOT_SERVING)
