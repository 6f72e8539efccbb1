"""A front in a process of its own: gRPC and tokenizers; the supervisor hands it a socket to the engine."""

import asyncio
import logging
import os
import socket
from collections.abc import Callable

from narrows import bundle as bundles
from narrows import control
from narrows.control import Attach, Control, Drain, Failed, Listening, Lost, Setup
from narrows.errors import BundleError, NarrowsError
from narrows.index.corpus import Corpus, open_corpus
from narrows.process import freeze_loaded, prepare_threads
from narrows.server.application import Application, Backend, load_application
from narrows.server.dispatch import Dispatcher
from narrows.server.front import Listen, serve_front
from narrows.server.link import EngineLink

log = logging.getLogger(__name__)


class Backends:
    """The backend of the moment: each engine that the supervisor attaches replaces the one before it."""

    def __init__(self, app: Application, dispatcher: Dispatcher, lost: Callable[[], None]) -> None:
        """`lost` is told of each engine that is gone."""
        self._tell = lost
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
            BundleError, IndexFileError, MismatchError: the engine has other files open than this process, or than are
                there now.
        """
        if attach.served.tower_ids != self._app.bundle.tower_ids:
            raise BundleError(f"{self._app.bundle.path} was replaced since the engine or this front opened it")
        corpus = self._corpus(attach.served.index_id)
        settings = self._app.settings
        # All that may wait in the engine, and twice as much for what runs and what has been cancelled.
        most = 2 * (settings.max_queued_questions + settings.max_queued_readings + settings.max_queued_passages)
        link = EngineLink(self._dispatcher.resolve, attach.restart_ms, self._lost, most)
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=socket.socket(fileno=descriptor))
        self._current = Backend(link, attach.served, corpus)
        self.changed.set()

    def _corpus(self, index_id: str) -> Corpus | None:
        """The passages of the engine's index; a build may have replaced them while the engine was down."""
        index = self._app.settings.index
        if index is None:
            return None
        held = self._current
        if held is not None and held.served.index_id == index_id:
            return held.corpus
        return open_corpus(index, self._app.bundle, index_id)

    def _lost(self) -> None:
        log.error("the engine is gone; calls are refused until it is back")
        self.changed.set()
        self._tell()


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

    def lost() -> None:
        supervisor.tell(Lost())

    backends = Backends(app, dispatcher, lost)
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
            case _:  # an Attach whose socket was lost for want of a descriptor
                log.error("no descriptor is left for the engine's socket")
                os._exit(1)

    async def take_up_engines() -> None:
        while True:
            await backends.attach(*await orders.get())

    def listening(_address: str) -> None:
        supervisor.tell(Listening())

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
            supervisor.tell(Failed(type(error).__name__, str(error)))
            return 1
    return 0
