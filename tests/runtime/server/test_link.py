"""A front's way to its engine: frames out, outcomes in, and an end for every work when the engine is gone."""

import asyncio
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from narrows import wire
from narrows.server.link import EngineLink
from narrows.work import Outcome, Timings, Work

FAR = 1e12
RETRY_MS = 700
MAX_OUTSTANDING = 5


@dataclass
class Inbox:
    """What the link resolved."""

    outcomes: list[Outcome] = field(default_factory=list)
    lost: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def resolve(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes
        self.changed.set()

    def gone(self) -> None:
        self.lost += 1
        self.changed.set()

    async def wait(self, count: int) -> dict[int, Outcome]:
        while len(self.outcomes) < count:
            self.changed.clear()
            await self.changed.wait()
        return {outcome.request_id: outcome for outcome in self.outcomes}


def run(test: Callable[[EngineLink, socket.socket, Inbox], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        ours, engine = socket.socketpair()
        engine.setblocking(False)
        inbox = Inbox()
        link = EngineLink(inbox.resolve, RETRY_MS, inbox.gone, MAX_OUTSTANDING)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        async with asyncio.timeout(30.0):
            await test(link, engine, inbox)
        transport.close()
        engine.close()
        await asyncio.sleep(0)

    asyncio.run(main())


async def received(engine: socket.socket) -> list[wire.ToEngine]:
    """The frames that have come, at least one."""
    data = await asyncio.get_running_loop().sock_recv(engine, 1 << 20)
    return [wire.read_requests(payload) for payload in wire.Frames().feed(data)]


def work(number: int) -> Work:
    return Work(number, "questions", FAR, token_ids=np.array([number, 2]))


def test_what_one_turn_submits_leaves_in_one_frame_in_order() -> None:
    async def test(link: EngineLink, engine: socket.socket, inbox: Inbox) -> None:
        for number in range(5):
            link.submit([work(number)])
        link.cancel([3])
        (frame,) = await received(engine)
        *submitted, cancelled = frame
        assert [message.request_ids for message in submitted] == [[0], [1], [2], [3], [4]]
        assert cancelled == wire.Cancel([3])

    run(test)


def test_what_an_engine_that_stands_still_cannot_take_is_refused_but_for_canaries() -> None:
    async def test(link: EngineLink, engine: socket.socket, inbox: Inbox) -> None:
        link.submit([work(number) for number in range(4)])
        link.submit([work(10), work(11)])
        assert {number: found.refusal for number, found in (await inbox.wait(2)).items()} == {
            10: "overloaded",
            11: "overloaded",
        }
        link.submit([work(12)])
        link.submit([replace(work(13), lane="canary")])
        frames = await received(engine)
        assert [message.request_ids for frame in frames for message in frame] == [[0, 1, 2, 3], [12], [13]]

    run(test)


def test_outcomes_are_resolved_and_tell_when_a_call_would_begin() -> None:
    async def test(link: EngineLink, engine: socket.socket, inbox: Inbox) -> None:
        link.submit([work(1)])
        assert link.begins_s("questions") == 0.0
        answer = Outcome(1, embedding=np.ones(3, np.float32), timings=Timings(batch_size=2))
        await asyncio.get_running_loop().sock_sendall(
            engine, wire.frame(wire.answered([answer], 0, {"questions": 9.5}))
        )
        found = (await inbox.wait(1))[1]
        assert found.timings.batch_size == 2
        assert link.begins_s("questions") == 9.5

    run(test)


def test_when_the_engine_is_gone_every_work_ends_once_and_those_that_come_too() -> None:
    async def test(link: EngineLink, engine: socket.socket, inbox: Inbox) -> None:
        link.submit([work(1), work(2)])
        answer = Outcome(1, embedding=np.ones(3, np.float32))
        await asyncio.get_running_loop().sock_sendall(engine, wire.frame(wire.answered([answer], 0, {})))
        await inbox.wait(1)
        engine.close()
        found = await inbox.wait(2)
        assert (found[1].refusal, found[2].refusal, found[2].retry_after_ms) == (None, "down", RETRY_MS)
        link.submit([work(3)])
        link.cancel([3])
        assert (await inbox.wait(3))[3].refusal == "down"
        assert inbox.lost == 1

    run(test)


def test_an_engine_that_sends_nonsense_is_taken_for_gone() -> None:
    async def test(link: EngineLink, engine: socket.socket, inbox: Inbox) -> None:
        link.submit([work(1)])
        await asyncio.get_running_loop().sock_sendall(engine, b"\x01\x00\x00\x00\xff")
        assert (await inbox.wait(1))[1].refusal == "down"

    run(test)
