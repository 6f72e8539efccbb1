"""A front in a process of its own: gRPC and tokenizers; the supervisor hands it a socket to the engine."""

import asyncio
import logging
import os
import socket

from narrows import bundle as bundles
from narrows import control
from narrows.control import Attach, Control, Drain, Failed, Listening, Setup
from narrows.errors import NarrowsError
from narrows.index.corpus import Corpus, open_corpus
from narrows.process import freeze_loaded, prepare_threads
from narrows.server.application import Application, Backend, load_application
from narrows.server.dispatch import Dispatcher
from narrows.server.front import Listen, serve_front
from narrows.server.link import EngineLink

log = logging.getLogger(__name__)


class Backends:
    """The backend of the moment: each engine that the supervisor attaches replaces the one before it."""

    def __init__(self, app: Application, dispatcher: Dispatcher) -> None:
        self.changed = asyncio.Event()  # set at each coming and going
        self._app = app
        self._dispatcher = dispatcher
        self._current: Backend | None = None

    def current(self) -> Backend:
        """The last engine that was attached, though it may be gone."""
        assert self._current is not None, "an engine is attached before any call is answered"
        return self._current

    async def attach(self, attach: Attach, descriptor: int) -> None:
        """Takes an engine up.

        Raises:
            IndexFileError, MismatchError: the index was replaced by one that does not belong to the bundle.
        """
        corpus = self._corpus(attach.served.generation)
        settings = self._app.settings
        # All that may wait in the engine, and twice as much for what runs and what has been cancelled.
        most = 2 * (settings.max_queued_questions + settings.max_queued_passages)
        link = EngineLink(self._dispatcher.resolve, attach.restart_ms, self._lost, most)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=socket.socket(fileno=descriptor))
        self._current = Backend(link, attach.served, corpus)
        self.changed.set()

    def _corpus(self, generation: str) -> Corpus | None:
        """The passages of the engine's index; a build may have replaced them while the engine was down."""
        index = self._app.settings.index
        if index is None:
            return None
        held = self._current.corpus if self._current else None
        if held is not None and held.generation == generation:
            return held
        return open_corpus(index, self._app.bundle, generation)

    def _lost(self) -> None:
        log.error("the engine is gone; calls are refused until it is back")
        self.changed.set()


async def run(supervisor: Control, setup: Setup) -> None:
    """Serves from the first engine on until the supervisor has it stop."""
    match supervisor.receive():
        case Attach() as attach, [descriptor]:
            pass
        case _:
            return  # the supervisor stops before there was an engine
    app = load_application(setup.settings, bundles.open_bundle(setup.settings.bundle, "stamp"))
    loop = asyncio.get_running_loop()
    dispatcher, stop = Dispatcher(loop), asyncio.Event()
    backends = Backends(app, dispatcher)
    await backends.attach(attach, descriptor)
    freeze_loaded()
    orders: asyncio.Queue[tuple[Attach, int]] = asyncio.Queue()

    def receive() -> None:
        match supervisor.receive():
            case None:
                os._exit(1)  # the supervisor was killed
            case Attach() as another, [descriptor]:
                orders.put_nowait((another, descriptor))
            case Drain(), _:
                stop.set()

    async def take_up_engines() -> None:
        while True:
            await backends.attach(*await orders.get())

    def listening(_address: str) -> None:
        supervisor.send(Listening())

    loop.add_reader(supervisor.wire, receive)
    listen = Listen(setup.listen, shared=True)
    serving = asyncio.create_task(
        serve_front(app, backends.current, dispatcher, listen, stop, backends.changed, listening)
    )
    taking = asyncio.create_task(take_up_engines())
    done, _ = await asyncio.wait([serving, taking], return_when=asyncio.FIRST_COMPLETED)
    taking.cancel()
    for task in done:
        task.result()


def main() -> int:
    """Runs until the supervisor has it stop."""
    prepare_threads()
    supervisor, setup, _ = control.begin_child()
    with supervisor.wire:
        try:
            asyncio.run(run(supervisor, setup))
        except NarrowsError as error:
            supervisor.send(Failed(type(error).__name__, str(error)))
            return 1
    return 0
