"""The engine in a process of its own: works come in and outcomes go out over a socket for each front.

One thread reads all sockets and submits; the engine's own threads send the outcomes of a batch straight away. A front
that dies takes its works along: nothing is computed for it any more. What a front does not read in time waits here; it
is bounded by what that front has outstanding.
"""

import logging
import os
import selectors
import socket
import threading
import time
from collections.abc import Mapping, Sequence

import msgspec

from narrows import control, quarantine, wire
from narrows.control import Attach, Cleared, Control, Drain, Failed, Ready, Setup
from narrows.engine import Engine
from narrows.errors import NarrowsError
from narrows.loading import open_files, start_engine
from narrows.process import freeze_loaded, prepare_threads
from narrows.quarantine import Guard, Journal
from narrows.work import Lane, Outcome, Work

log = logging.getLogger(__name__)

CONNECTION_SHIFT = 40  # request ids of one front lie below; the connection's number is above
POISONOUS = "the engine has died twice while it worked on this; it is refused for some minutes"
RECEIVE_BYTES = 1 << 18


class Connection:
    """The socket of one front."""

    def __init__(self, number: int, front: socket.socket) -> None:
        front.setblocking(False)
        self.socket = front
        self.number = number
        self.first_id = number << CONNECTION_SHIFT
        self.frames = wire.Frames()
        self.outstanding: set[int] = set()
        self._lock = threading.Lock()
        self._unsent = bytearray()

    def send(self, data: bytes) -> bool:
        """Sends, or keeps what the socket does not take; returns whether something is kept."""
        with self._lock:
            self._unsent += data
            return self._flush()

    def flush(self) -> bool:
        """Sends more of what was kept; returns whether some is left."""
        with self._lock:
            return self._flush()

    def _flush(self) -> bool:
        try:
            while self._unsent:
                del self._unsent[: self.socket.send(self._unsent, socket.MSG_NOSIGNAL)]
        except BlockingIOError:
            return True
        except OSError:  # the front is gone; the reader notices as well
            self._unsent.clear()
        return False


class Fronts:
    """All connections, by number. `deliver` is called by the engine's threads, everything else by the reader's."""

    def __init__(self, refused: Mapping[int, float]) -> None:
        """`refused`: digests of works that are not run, and until when."""
        self._refused = refused
        self._engine: Engine | None = None  # once it serves
        self._connections: dict[int, Connection] = {}
        self._next_number = 1
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._blocked: list[Connection] = []  # that the reader must watch for room to write
        self._wake = os.eventfd(0, os.EFD_NONBLOCK)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Sends each front its outcomes, in one frame."""
        mine: dict[int, list[Outcome]] = {}
        for outcome in outcomes:
            mine.setdefault(outcome.request_id >> CONNECTION_SHIFT, []).append(outcome)
        begins_s = self._begins_s(self._engine) if self._engine else {}
        for number, some in mine.items():
            connection = self._connections.get(number)
            if connection is None:
                continue  # it died
            connection.outstanding.difference_update(outcome.request_id for outcome in some)
            if connection.send(wire.frame(wire.answered(some, connection.first_id, begins_s))):
                with self._lock:
                    self._blocked.append(connection)
                os.eventfd_write(self._wake, 1)

    def _begins_s(self, engine: Engine) -> dict[Lane, float]:
        return {lane: engine.begins_s(lane) for lane in engine.lanes if lane != "canary"}  # which clients ask in

    def attach(self, front: socket.socket) -> None:
        """Takes a new connection."""
        number, self._next_number = self._next_number, self._next_number + 1
        connection = self._connections[number] = Connection(number, front)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def serve(self, engine: Engine, supervisor: Control) -> None:
        """Reads from all of them until the supervisor says that nothing more comes, or is gone."""
        self._engine = engine
        self._selector.register(supervisor.wire, selectors.EVENT_READ, supervisor)
        while True:
            for key, events in self._selector.select():
                if key.data is None:
                    self._watch_blocked()
                elif isinstance(key.data, Control):
                    received = key.data.receive()
                    if received is None:
                        os._exit(1)  # the supervisor was killed
                    match received:
                        case Attach(), [descriptor]:
                            self.attach(socket.socket(fileno=descriptor))
                        case Drain(), _:
                            return
                        case _:  # an Attach whose socket was lost for want of a descriptor
                            log.error("no descriptor is left for a front's socket")
                            os._exit(1)
                else:
                    if events & selectors.EVENT_WRITE and not key.data.flush():
                        self._selector.modify(key.data.socket, selectors.EVENT_READ, key.data)
                    if events & selectors.EVENT_READ:
                        self._read(key.data, engine)

    def close(self) -> None:
        """Hangs up on all of them."""
        for connection in self._connections.values():
            connection.socket.close()
        self._selector.close()
        os.close(self._wake)

    def _watch_blocked(self) -> None:
        os.eventfd_read(self._wake)
        with self._lock:
            blocked, self._blocked = self._blocked, []
        for connection in blocked:
            if connection.number in self._connections:
                self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _read(self, connection: Connection, engine: Engine) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
            payloads = list(connection.frames.feed(data))
            messages = [message for payload in payloads for message in wire.read_requests(payload)]
        except BlockingIOError:
            return
        except (OSError, msgspec.MsgspecError):
            data = b""
        if not data:
            self._detach(connection, engine)
            return
        calls: list[list[Work]] = []
        cancelled: list[int] = []
        for message in messages:
            if isinstance(message, wire.Cancel):
                cancelled += [connection.first_id + number for number in message.request_ids]
                continue
            works = wire.works(message, connection.first_id)
            connection.outstanding.update([work.request_id for work in works])
            if quarantine.refuses(self._refused, works, time.monotonic()):
                self.deliver([Outcome(work.request_id, "poisonous", POISONOUS) for work in works])
            else:
                calls.append(works)
        engine.submit(*calls)
        if cancelled:
            engine.cancel(cancelled)

    def _detach(self, connection: Connection, engine: Engine) -> None:
        self._selector.unregister(connection.socket)
        del self._connections[connection.number]
        engine.cancel(list(connection.outstanding))
        connection.socket.close()


def run(supervisor: Control, setup: Setup, journal: Journal) -> None:
    """Loads everything, and serves the fronts until the supervisor has it stop.

    Raises:
        BundleError, IndexFileError, MismatchError: what is to be served cannot be.
    """

    def cleared(digest: int) -> None:
        supervisor.tell(Cleared(digest))

    settings = setup.settings
    fronts = Fronts(setup.refused)
    bundle, index = open_files(settings)
    guard = Guard(journal, setup.suspects, cleared)
    engine, served = start_engine(settings, bundle, index, fronts.deliver, guard)
    freeze_loaded()
    supervisor.tell(Ready(served))
    fronts.serve(engine, supervisor)
    engine.close()


def _end_process(failure: threading.ExceptHookArgs) -> None:
    """An engine that has lost a thread would stand still for ever; the supervisor starts another."""
    log.critical("a thread has failed", exc_info=failure.exc_value)
    os._exit(1)


def main() -> int:
    """Runs an engine for the supervisor that started this process."""
    prepare_threads()
    threading.excepthook = _end_process
    supervisor, setup, (journal,) = control.begin_child()
    with supervisor.wire:
        try:
            run(supervisor, setup, Journal(journal))
        except NarrowsError as error:
            supervisor.tell(Failed(type(error).__name__, str(error)))
            return 1
    return 0
