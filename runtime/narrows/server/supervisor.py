"""Keeps an engine process and N front processes running, brings them together, and stops them in order.

It does nothing that could crash: no gRPC, no model, no index. A front that dies loses its own calls and comes back; an
engine that dies comes back in the time it takes to load, and the fronts, which keep their connections, get a new one.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from narrows import control
from narrows.control import Attach, Cleared, Control, Drain, Failed, Listening, Lost, Message, Ready, Setup
from narrows.errors import ServerError, SettingsError
from narrows.quarantine import Journal, Quarantine
from narrows.server.signals import stop_on_signals
from narrows.settings import ServerSettings
from narrows.work import Served

log = logging.getLogger(__name__)

ENGINE, FRONT = "narrows.engine_process", "narrows.server.front_process"
LONG_LIFE_S = 10.0  # who lived so long is started again at once; who did not waits, twice as long each time
FIRST_PAUSE_S, MAX_PAUSE_S = 0.1, 5.0
FIRST_STARTS = 3  # without success, and the server gives up
STOP_S = 5.0  # beyond the time for draining, before a child is killed


@dataclass(eq=False, slots=True)
class Child:
    """A running child process."""

    module: str
    process: asyncio.subprocess.Process
    control: Control
    messages: "asyncio.Queue[Message | None]"  # None: it has closed its end

    def send(self, message: Message, *descriptors: int) -> None:
        """Sends, unless it is gone, which is noticed elsewhere; one that does not read any more is killed."""
        try:
            self.control.send(message, descriptors)
        except ConnectionError:
            pass
        except OSError as error:
            log.error("process %d cannot be told anything: %s; it is killed", self.process.pid, error)
            self.kill()

    def kill(self) -> None:
        """Ends it at once."""
        with suppress(ProcessLookupError):
            self.process.kill()

    async def ended(self, within_s: float) -> None:
        """Waits for its end, and kills it after so long."""
        try:
            async with asyncio.timeout(within_s):
                await self.process.wait()
        except TimeoutError:
            log.error("process %d does not stop; it is killed", self.process.pid)
            self.kill()
            await self.process.wait()


@dataclass(frozen=True, slots=True)
class _Engine:
    """An engine that is ready."""

    child: Child
    served: Served
    load_ms: int


class Supervisor:
    """The processes of one server. Lives on one event loop."""

    def __init__(self, settings: ServerSettings, listen: str, fronts: int) -> None:
        self._settings = settings
        self._listen = listen
        self._journal = Journal.create()
        self._quarantine = Quarantine()
        self._count = fronts
        self._engine: _Engine | None = None
        self._children: set[Child] = set()
        self._listening: set[Child] = set()
        self.all_listening = asyncio.Event()

    def _fronts(self) -> list[Child]:
        return [child for child in self._children if child.module == FRONT]

    async def run(self) -> None:
        """Keeps all processes running until cancelled.

        Raises:
            NarrowsError: one of them failed for a reason to be expected before all had begun to serve.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep(ENGINE, self._start_engine, self._run_engine))
            for _ in range(self._count):
                group.create_task(self._keep(FRONT, self._start_front, self._run_front))

    async def stop(self) -> None:
        """Stops the fronts once they have finished what they began, then the engine."""
        limit_s = self._settings.drain_ms / 1e3 + STOP_S
        fronts = self._fronts()
        for child in fronts:
            child.send(Drain())
        await asyncio.gather(*(child.ended(limit_s) for child in fronts))
        for child in self._children.difference(fronts):
            if self._engine is not None and child is self._engine.child:
                child.send(Drain())
            else:  # it is still loading
                child.kill()
            await child.ended(STOP_S)

    def kill(self) -> None:
        """Ends all processes at once."""
        for child in self._children:
            child.kill()

    async def close(self) -> None:
        """Ends what still runs, and gives back what it holds."""
        self.kill()
        for child in self._children:
            await child.process.wait()  # a loop that ends before a child that it watches complains of it
            child.control.wire.close()

    async def _keep(
        self,
        module: str,
        start: Callable[[], Coroutine[Any, Any, Child]],
        run: Callable[[Child], Coroutine[Any, Any, None]],
    ) -> None:
        pause_s, failed_starts = 0.0, 0
        while True:
            started_s = time.monotonic()
            try:
                child = await start()
            except OSError as error:
                how = f"cannot be started: {error}"
            else:
                await run(child)
                how = f"(process {child.process.pid}) ended with {await child.process.wait()}"
                self._children.discard(child)
                asyncio.get_running_loop().remove_reader(child.control.wire)
                child.control.wire.close()
            if not self.all_listening.is_set():
                failed_starts += 1
                if failed_starts == FIRST_STARTS:
                    raise ServerError(f"{module} {how}; it did not come up {FIRST_STARTS} times")
            lived_s = time.monotonic() - started_s
            pause_s = 0.0 if lived_s > LONG_LIFE_S else min(max(2 * pause_s, FIRST_PAUSE_S), MAX_PAUSE_S)
            log.error("%s %s; it is started again", module, how)
            await asyncio.sleep(pause_s)

    async def _start_engine(self) -> Child:
        now_s = time.monotonic()
        suspects, refused = self._quarantine.suspects(now_s), self._quarantine.refused(now_s)
        setup = Setup(self._settings, os.getpid(), suspects=suspects, refused=refused)
        return await self._start(ENGINE, setup, self._journal.descriptor)

    async def _start_front(self) -> Child:
        return await self._start(FRONT, Setup(self._settings, os.getpid(), self._listen))

    async def _start(self, module: str, setup: Setup, *descriptors: int) -> Child:
        ours, theirs = control.pair()
        ours.setblocking(False)  # a child that does not read must not hold up the others
        flags = [f"-W{option}" for option in sys.warnoptions]
        program = f"from {module} import main; raise SystemExit(main())"
        with theirs, ExitStack() as on_failure:
            on_failure.callback(ours.close)
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", *flags, "-c", program, str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True,
            )  # fmt: skip
            on_failure.pop_all()
        child = Child(module, process, Control(ours), asyncio.Queue())
        loop = asyncio.get_running_loop()

        def receive() -> None:
            try:
                received = child.control.receive()
            except BlockingIOError:
                return
            if received is None:
                loop.remove_reader(ours)
            child.messages.put_nowait(received[0] if received else None)

        loop.add_reader(ours, receive)
        self._children.add(child)
        child.send(setup, *descriptors)
        return child

    async def _run_engine(self, child: Child) -> None:
        started_s = time.monotonic()
        match await child.messages.get():
            case Ready(served):
                self._engine = _Engine(child, served, round((time.monotonic() - started_s) * 1e3))
                for front in self._fronts():
                    self._attach(front)
                while (message := await child.messages.get()) is not None:
                    if isinstance(message, Cleared):
                        self._quarantine.cleared(message.digest)
                self._engine = None
                await child.process.wait()
                for convicted in self._quarantine.died(self._journal.take(), time.monotonic()):
                    log.error("the engine has died of work %016x again: it is refused from now on", convicted)
            case Failed() as failed:
                self._failed(failed)

    async def _run_front(self, child: Child) -> None:
        self._attach(child)
        try:
            while (message := await child.messages.get()) is not None:
                match message:
                    case Lost():
                        self._attach(child)  # if only the connection has ended
                    case Listening():
                        self._listening.add(child)
                        if len(self._listening) == self._count:
                            self.all_listening.set()
                    case Failed() as failed:
                        self._failed(failed)
                        if self._engine is not None and child not in self._listening:
                            # It has just opened what is there now, and the engine has something else.
                            log.error("the engine is started again, with the files that are there now")
                            self._engine.child.kill()
        finally:
            self._listening.discard(child)

    def _failed(self, failed: Failed) -> None:
        """At the start, what fails one process ends the server; later it may be over the next time."""
        if not self.all_listening.is_set():
            raise control.error_of(failed)
        log.error("%s: %s", failed.kind, failed.message)

    def _attach(self, front: Child) -> None:
        """Gives a front and the engine, if there is one, the two ends of a new connection."""
        if self._engine is None:
            return
        message = Attach(self._engine.served, self._engine.load_ms)
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        except OSError as error:
            log.error("no connection between front and engine can be made: %s", error)
            front.kill()
            return
        with ours, theirs:
            self._engine.child.send(message, ours.fileno())
            front.send(message, theirs.fileno())


def supervise(settings: ServerSettings, fronts: int, ready: Callable[[str], None]) -> None:
    """Serves with so many front processes until a signal; see narrows.server.run."""
    with reserved(settings.listen) as kept:
        port = kept.getsockname()[1]
        listen = f"{settings.listen.rpartition(':')[0]}:{port}"
        asyncio.run(_supervise(Supervisor(settings, listen, fronts), listen, ready))


async def _supervise(supervisor: Supervisor, listen: str, ready: Callable[[str], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):  # nothing is to be drained yet
        loop.add_signal_handler(number, _end_at_once, supervisor, number)
    running = asyncio.create_task(supervisor.run())
    started = asyncio.create_task(supervisor.all_listening.wait())
    try:
        await asyncio.wait([running, started], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        stop = stop_on_signals(supervisor.kill)
        ready(listen)
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        await supervisor.stop()
    except* Exception as failures:
        raise failures.exceptions[0] from None
    finally:
        running.cancel()  # or it would start again what is ended now
        await asyncio.wait([running])
        await supervisor.close()


def _end_at_once(supervisor: Supervisor, number: int) -> None:
    supervisor.kill()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # process 1 of a container cannot be ended by a signal


def reserved(listen: str) -> socket.socket:
    """A socket that keeps an address for the fronts, which share it: bound, never listening.

    Raises:
        SettingsError: somebody listens there, or it is none of this machine's.
    """
    host, _, port = listen.rpartition(":")
    problem = SettingsError(f"cannot listen on {listen}: is the port in use, or the host name wrong?")
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # Not shared at first: a second server on the same port is a mistake, not a load balancer.
        for family, kind, _, _, each in found:
            with socket.socket(family, kind) as alone:
                alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                alone.bind(each)
                if each == found[0][4]:
                    address = alone.getsockname()
        kept = socket.socket(found[0][0], found[0][1])
    except (OSError, UnicodeError):
        raise problem from None
    try:
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        kept.bind(address)
    except OSError:
        kept.close()
        raise problem from None
    return kept
