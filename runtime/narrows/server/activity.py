"""What is going on in the front, and how it comes to its end."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Activity:
    """Counts what is being answered, and tells streams when to stop reading. Lives on one event loop."""

    def __init__(self) -> None:
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._stops: set[Callable[[], object]] = set()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts a call as active."""
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if self._active == 0:
                self._idle.set()

    @contextmanager
    def until_draining(self, stop: Callable[[], object]) -> Iterator[None]:
        """Calls `stop` when draining begins, or at once if it has begun."""
        if self._draining:
            stop()
        self._stops.add(stop)
        try:
            yield
        finally:
            self._stops.discard(stop)

    async def drain(self) -> None:
        """Stops what would otherwise go on, and returns when nothing is being answered any more."""
        self._draining = True
        for stop in tuple(self._stops):
            stop()
        await self._idle.wait()
