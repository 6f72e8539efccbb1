"""SIGTERM and SIGINT: the first one asks a server to stop, the second one ends it."""

import asyncio
import os
import signal
from collections.abc import Callable


def stop_on_signals(at_once: Callable[[], None] = lambda: None) -> asyncio.Event:
    """An event that SIGTERM and SIGINT set; at the second of them `at_once` is called, and this process ends."""
    stop = asyncio.Event()

    def received(number: int) -> None:
        if stop.is_set():
            at_once()
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, received, number)
    return stop
