"""The front's way to an engine in another process: what a turn of the event loop submits leaves in one frame."""

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from narrows import wire
from narrows.work import Lane, Outcome, Work

TOO_MANY = "too many texts are with the engine already"
DOWN = "the engine has died and is being started again"


class EngineLink(asyncio.Protocol):
    """One connection to one engine process; an EngineHandle. Lives on one event loop.

    When the engine is gone, every work that it had, and every one that comes, ends as `down`.
    """

    def __init__(
        self,
        resolve: Callable[[Sequence[Outcome]], None],
        retry_after_ms: int,
        lost: Callable[[], None],
        max_outstanding: int,
    ) -> None:
        """`resolve` takes outcomes, `lost` is told that the engine is gone; another comes `retry_after_ms` later.

        More than `max_outstanding` works are not sent: an engine that stands still must not fill this process.
        """
        self._resolve = resolve
        self._lost = lost
        self._retry_after_ms = max(1, retry_after_ms)
        self._max_outstanding = max_outstanding
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None  # None before there is an engine, and once it is gone
        self._frames = wire.Frames()
        self._unsent: wire.ToEngine = []
        self._outstanding: set[int] = set()
        self._begins_s: dict[Lane, float] = {}

    def submit(self, works: Sequence[Work]) -> None:
        """Sends the works of one call to the engine."""
        ids = [work.request_id for work in works]
        if self._transport is None:
            self._end(ids)
            return
        if len(self._outstanding) + len(ids) > self._max_outstanding and works[0].lane != "canary":
            self._resolve([Outcome(number, "overloaded", TOO_MANY, self._retry_after_ms) for number in ids])
            return
        self._outstanding.update(ids)
        self._send(wire.submit(works))

    def cancel(self, request_ids: Sequence[int]) -> None:
        """Tells the engine that nobody waits for these."""
        if self._transport is not None:
            self._send(wire.Cancel(list(request_ids)))

    def begins_s(self, lane: Lane) -> float:
        """As the engine said last: later than what came since will run."""
        return self._begins_s.get(lane, 0.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ready."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Outcomes have come."""
        try:
            for payload in self._frames.feed(data):
                outcomes, self._begins_s = wire.read_outcomes(payload)
                self._outstanding.difference_update([outcome.request_id for outcome in outcomes])
                self._resolve(outcomes)
        except msgspec.MsgspecError:
            assert self._transport is not None
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The engine is gone."""
        self._transport = None
        self._lost()
        ids, self._outstanding = list(self._outstanding), set()
        self._end(ids)

    def _end(self, request_ids: Sequence[int]) -> None:
        self._resolve([Outcome(number, "down", DOWN, retry_after_ms=self._retry_after_ms) for number in request_ids])

    def _send(self, message: wire.Submit | wire.Cancel) -> None:
        if not self._unsent:
            self._loop.call_soon(self._flush)
        self._unsent.append(message)

    def _flush(self) -> None:
        messages, self._unsent = self._unsent, []
        if self._transport is not None:
            self._transport.write(wire.frame(messages))
