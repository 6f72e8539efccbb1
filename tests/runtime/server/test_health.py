"""Readiness follows what comes back from the engine: of calls, or of a canary."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

from grpc_health.v1 import health_pb2

from narrows.server.health import LIVENESS, READY_NAMES, Health

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
PERIOD_S = 0.005
PATIENCE_S = 5.0


class Engine:
    """Answers canaries as it is told to, and counts them."""

    def __init__(self) -> None:
        self.canaries = 0
        self.progress = 0
        self.works = True
        self.asked = asyncio.Event()

    async def canary(self, deadline_s: float) -> None:
        self.canaries += 1
        self.asked.set()
        if not self.works:
            raise RuntimeError("nobody is there")
        self.progress += 1


def run(test: Callable[[Engine, Health, asyncio.Event], Coroutine[Any, Any, None]], patience_s: float = 60.0) -> None:
    async def main() -> None:
        engine, changed = Engine(), asyncio.Event()
        health = Health(engine.canary, lambda: engine.progress, changed, patience_s, PERIOD_S)
        async with asyncio.timeout(60.0):
            await test(engine, health, changed)

    asyncio.run(main())


async def status(health: Health, name: str) -> int:
    reply = await health.servicer.Check(health_pb2.HealthCheckRequest(service=name), None)
    return int(reply.status)


async def becomes(health: Health, wanted: int) -> None:
    while {await status(health, name) for name in READY_NAMES} != {wanted}:
        await asyncio.sleep(0)


def test_it_is_ready_once_a_canary_was_answered_and_alive_anyway() -> None:
    async def test(engine: Engine, health: Health, changed: asyncio.Event) -> None:
        engine.works = False
        await health.begin()
        assert await status(health, LIVENESS) == SERVING
        await becomes(health, NOT_SERVING)
        engine.works = True
        watching = asyncio.create_task(health.watch())
        await becomes(health, SERVING)
        watching.cancel()

    run(test)


def test_a_change_is_looked_into_at_once() -> None:
    async def test(engine: Engine, health: Health, changed: asyncio.Event) -> None:
        await health.begin()
        slow = Health(engine.canary, lambda: engine.progress, changed, PATIENCE_S, 1e6)
        await slow.begin()
        watching = asyncio.create_task(slow.watch())
        engine.works = False
        changed.set()
        await becomes(slow, NOT_SERVING)
        assert await status(slow, LIVENESS) == SERVING
        engine.works = True
        changed.set()
        await becomes(slow, SERVING)
        watching.cancel()

    run(test)


def test_while_calls_are_answered_no_canary_is_asked() -> None:
    async def test(engine: Engine, health: Health, changed: asyncio.Event) -> None:
        counts = itertools.count()
        enough = asyncio.Event()

        def progress() -> int:
            number = next(counts)
            if number > 10:
                enough.set()
            return number

        busy = Health(engine.canary, progress, changed, PATIENCE_S, PERIOD_S)
        await busy.begin()
        engine.works = False
        watching = asyncio.create_task(busy.watch())
        await enough.wait()
        assert engine.canaries == 1
        assert await status(busy, "") == SERVING
        watching.cancel()

    run(test)


def test_a_canary_that_hangs_is_none_that_was_answered() -> None:
    async def test(engine: Engine, health: Health, changed: asyncio.Event) -> None:
        never = asyncio.Event()

        async def hangs(deadline_s: float) -> None:
            await never.wait()

        hung = Health(hangs, lambda: engine.progress, changed, PERIOD_S, PERIOD_S)
        await hung.begin()
        assert await status(hung, "") == NOT_SERVING

    run(test)


def test_progress_besides_a_failed_canary_is_ready() -> None:
    async def test(engine: Engine, health: Health, changed: asyncio.Event) -> None:
        async def fails(deadline_s: float) -> None:
            engine.progress += 1  # a call's
            raise RuntimeError("the canary alone")

        other = Health(fails, lambda: engine.progress, changed, PATIENCE_S, PERIOD_S)
        await other.begin()
        assert await status(other, "") == SERVING

    run(test)


def test_after_the_end_nothing_changes_any_more() -> None:
    async def test(engine: Engine, health: Health, changed: asyncio.Event) -> None:
        await health.begin()
        watching = asyncio.create_task(health.watch())
        await health.end()
        engine.asked.clear()
        await engine.asked.wait()
        assert await status(health, "") == NOT_SERVING
        watching.cancel()

    run(test)
