"""Front and engine in one process: right where one core is enough for the front."""

import asyncio
from collections.abc import Callable

from narrows.loading import open_files, start_engine
from narrows.process import freeze_loaded, prepare_threads
from narrows.server.application import Backend, load_application
from narrows.server.dispatch import Dispatcher
from narrows.server.front import Listen, serve_front
from narrows.server.signals import stop_on_signals
from narrows.settings import ServerSettings


def serve_in_process(settings: ServerSettings, ready: Callable[[str], None]) -> None:
    """Serves until a signal; see narrows.server.run."""
    prepare_threads()
    with asyncio.Runner() as runner:
        # Loaded before the loop runs, so that a signal ends the process at once while there is nothing to drain.
        dispatcher = Dispatcher(runner.get_loop())
        bundle, index = open_files(settings)
        app = load_application(settings, bundle)
        engine, served = start_engine(settings, bundle, index, dispatcher.deliver)
        backend = Backend(engine, served, index.corpus if index else None)
        freeze_loaded()

        async def run() -> None:
            stop, changed = stop_on_signals(), asyncio.Event()
            await serve_front(app, lambda: backend, dispatcher, Listen(settings.listen), stop, changed, ready)

        try:
            runner.run(run())
        finally:
            engine.close()
