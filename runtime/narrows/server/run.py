"""`narrows serve`: load, listen, serve until SIGTERM, drain, exit 0."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from narrows import bundle as bundles
from narrows.errors import SettingsError
from narrows.index.opened import open_index
from narrows.loading import start_engine
from narrows.messages import max_request_bytes
from narrows.server.answers import Answers
from narrows.server.application import Application, Backend, load_application
from narrows.server.dispatch import Dispatcher
from narrows.server.retrieval import RetrievalServicer
from narrows.settings import ServerSettings
from narrows.towers import available_cores
from narrows.v1 import retrieval_pb2, retrieval_pb2_grpc

log = logging.getLogger(__name__)

SERVICE = retrieval_pb2.DESCRIPTOR.services_by_name["RetrievalService"].full_name
SWITCH_INTERVAL_S = 0.0005  # the engine's threads hand the GIL to the event loop 10 times sooner than by default
# Garbage is looked for after so many new objects, not 700: a request makes hundreds, and its cycles are few and small.
GARBAGE_THRESHOLD = 50_000
MESSAGE_OVERHEAD_BYTES = 65_536
FLUSH_S = 0.5
KEEPALIVE_MS = 60_000
PING_TIMEOUT_MS = 20_000
MIN_PING_INTERVAL_MS = 10_000


def serve(settings: ServerSettings, ready: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT. `ready` is told the address once calls are answered.

    Raises:
        BundleError, IndexFileError, MismatchError: what is to be served cannot be.
        SettingsError: the address cannot be listened on.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread: the other cores are the encoder's
    with asyncio.Runner() as runner:
        # Loaded before the loop runs, so that a signal ends the process at once while there is nothing to drain.
        dispatcher = Dispatcher(runner.get_loop())
        bundle = bundles.open_bundle(settings.bundle, settings.verify)
        threads = settings.search_threads or available_cores()
        index = open_index(settings.index, bundle, threads, settings.verify) if settings.index else None
        app = load_application(settings, bundle)
        engine, served = start_engine(settings, bundle, index, dispatcher.deliver)
        backend = Backend(engine, served, index.corpus if index else None)
        gc.collect()
        gc.freeze()  # what has been loaded stays, and need not be looked at again
        gc.set_threshold(GARBAGE_THRESHOLD)
        try:
            runner.run(_serve(app, backend, dispatcher, ready))
        finally:
            engine.close()
    log.info("stopped")


async def _serve(app: Application, backend: Backend, dispatcher: Dispatcher, ready: Callable[[str], None]) -> None:
    settings = app.settings
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = grpc.aio.server(options=_options(settings, app.bundle.manifest.dim))
    retrieval = RetrievalServicer(Answers(app, lambda: backend, dispatcher), settings)
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(retrieval, server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    address = _bind(server, settings.listen)
    await server.start()
    for name in ("", SERVICE):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    log.info("serving on %s", address)
    ready(address)
    await stop.wait()
    log.info("draining for at most %.1f s", settings.drain_ms / 1e3)
    await health.enter_graceful_shutdown()
    draining = asyncio.create_task(server.stop(settings.drain_ms / 1e3))  # takes no new calls from here on
    idle = asyncio.create_task(retrieval.activity.drain())
    await asyncio.wait([draining, idle], return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    await server.stop(FLUSH_S)  # the last replies leave; a watch of the health service would go on for ever


def _options(settings: ServerSettings, dim: int) -> list[tuple[str, int]]:
    largest = max_request_bytes(settings.max_items, settings.max_text_bytes, settings.max_ids, dim)
    return [
        ("grpc.max_receive_message_length", min(largest + MESSAGE_OVERHEAD_BYTES, 2**31 - 1)),
        ("grpc.max_send_message_length", settings.max_reply_bytes + MESSAGE_OVERHEAD_BYTES),
        # Pings find the clients that have vanished, and theirs are welcome: gRPC would end a connection with more than
        # one in five minutes. A ping for another purpose may be on its way already, and then has to do for this one.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.so_reuseport", 0),  # a second server on the same port is a mistake, not a load balancer
    ]


def _bind(server: grpc.aio.Server, listen: str) -> str:
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise SettingsError(f"cannot listen on {listen}: is the port in use, or the host name wrong?")
    return f"{listen.rpartition(':')[0]}:{bound}"
