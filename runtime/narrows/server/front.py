"""The gRPC side of a server, in this process: listen, answer until told to stop, drain."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from narrows.errors import SettingsError
from narrows.messages import max_request_bytes
from narrows.server.activity import Activity
from narrows.server.answers import Answers
from narrows.server.application import Application, Backend
from narrows.server.dispatch import Dispatcher
from narrows.server.health import SERVICE, Health
from narrows.server.reader import ReaderServicer
from narrows.server.reading import Reading
from narrows.server.retrieval import RetrievalServicer
from narrows.settings import ServerSettings
from narrows.v1 import retrieval_pb2, retrieval_pb2_grpc

log = logging.getLogger(__name__)

MESSAGE_OVERHEAD_BYTES = 65_536
FLUSH_S = 0.5
READER_SERVICE = retrieval_pb2.DESCRIPTOR.services_by_name["ReaderService"].full_name
KEEPALIVE_MS = 60_000
PING_TIMEOUT_MS = 20_000
MIN_PING_INTERVAL_MS = 10_000


@dataclass(frozen=True, slots=True)
class Listen:
    """HOST:PORT. `shared`: other fronts of this server listen there too."""

    address: str
    shared: bool = False


async def serve_front(
    app: Application,
    backend: Callable[[], Backend],
    dispatcher: Dispatcher,
    listen: Listen,
    stop: asyncio.Event,
    changed: asyncio.Event,
    ready: Callable[[str], None],
) -> None:
    """Answers calls until `stop` is set, then finishes those that have begun. `ready` is told the address.

    `changed` is to be set when `backend` returns another engine, or its engine is gone.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    settings = app.settings
    server = grpc.aio.server(options=_options(settings, app.bundle.manifest.dim, listen.shared))
    answers = Answers(app, backend, dispatcher)
    activity = Activity()
    retrieval = RetrievalServicer(answers, settings, activity)
    reader = ReaderServicer(Reading(app, backend, dispatcher, answers), settings, activity)
    health = Health(answers.canary, lambda: dispatcher.answered, changed, settings.canary_deadline_ms / 1e3)
    retrieval_pb2_grpc.add_RetrievalServiceServicer_to_server(retrieval, server)
    retrieval_pb2_grpc.add_ReaderServiceServicer_to_server(reader, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    health_service = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    names = (SERVICE, READER_SERVICE, health_service, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    address = _bind(server, listen.address)
    await server.start()
    await health.begin()
    log.info("serving on %s", address)
    ready(address)
    watching = asyncio.create_task(health.watch())
    await stop.wait()
    watching.cancel()
    log.info("draining for at most %.1f s", settings.drain_ms / 1e3)
    await health.end()
    draining = asyncio.create_task(server.stop(settings.drain_ms / 1e3))  # takes no new calls from here on
    idle = asyncio.create_task(activity.drain())
    await asyncio.wait([draining, idle], return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    await server.stop(FLUSH_S)  # the last replies leave; a watch of the health service would go on for ever


def _options(settings: ServerSettings, dim: int, shared: bool) -> list[tuple[str, int]]:
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
        ("grpc.so_reuseport", int(shared)),  # a second server on the same port is a mistake, not a load balancer
    ]


def _bind(server: grpc.aio.Server, listen: str) -> str:
    try:
        bound = server.add_insecure_port(listen)
    except RuntimeError:
        bound = 0
    if bound == 0:
        raise SettingsError(f"cannot listen on {listen}: is the port in use, or the host name wrong?")
    return f"{listen.rpartition(':')[0]}:{bound}"
