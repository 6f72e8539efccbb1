"""A peer's processes: started as a group on given cores, ended with all that they left behind."""

import asyncio
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.peers.description import Start
from narrows.errors import BenchmarkError
from narrows_tools.bench.pinned import Cores, on_cores
from narrows_tools.bench.servers import Server
from narrows_tools.bench.targets import TargetSpec

MARK = "NARROWS_BENCH_MARK"  # in the environment of all that a peer starts, whatever session it moves to
START_TIMEOUT_S = 120.0
POLL_S = 0.1
GRACE_S = 4.0  # LitServe never ends by itself
KILLED_S = 10.0  # for a killed process to be gone
LOG_TAIL = 800  # characters


@contextmanager
def started(start: Start, cores: Cores, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs a command in a session of its own, output to `log`; at the end nothing that it started is left.

    Raises:
        BenchmarkError: the command is not there.
    """
    mark = secrets.token_hex(8)
    inherited = {
        name: value for name, value in os.environ.items() if name != "PYTHONPATH" and not name.startswith("NARROWS_")
    }
    with log.open("wb") as output, on_cores(cores):
        try:
            process = subprocess.Popen(  # noqa: S603  (of our own description)
                start.command,
                cwd=start.directory,
                env=inherited | dict(start.variables) | {MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BenchmarkError(f"{start.command[0]} cannot be started: {error.strerror}") from None
    try:
        yield process
    finally:
        _end(process, mark)


@contextmanager
def serving(start: Start, target: TargetSpec, port: int, cores: Cores, log: Path) -> Iterator[Server]:
    """Runs a server and waits until it embeds a text.

    Raises:
        BenchmarkError: it ends, or does not answer in time; says what it wrote last. Or its port stays open afterwards.
    """
    started_s = time.monotonic()
    with started(start, cores, log) as process:
        while not asyncio.run(_answers(target)):
            if process.poll() is not None:
                raise BenchmarkError(f"it ended with status {process.returncode}; it wrote: {tail(log)}")
            if time.monotonic() - started_s > START_TIMEOUT_S:
                raise BenchmarkError(f"no answer in {START_TIMEOUT_S:.0f} s; it wrote: {tail(log)}")
            time.sleep(POLL_S)
        yield Server(f"127.0.0.1:{port}", process.pid, time.monotonic() - started_s, cores)
    if _listens(port):
        raise BenchmarkError(f"something still listens on port {port}")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def tail(log: Path) -> str:
    """The end of what a process wrote, on one line."""
    return " ".join(log.read_text("utf-8", "replace").split())[-LOG_TAIL:] or "nothing"


def marked(mark: str = "") -> list[psutil.Process]:
    """All processes that carry a mark, whichever one if "" is given."""
    found = []
    for process in psutil.process_iter():
        try:
            carried = process.environ().get(MARK, "")
            if carried and carried.startswith(mark) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it is gone, or another user's
    return found


def _end(process: "subprocess.Popen[bytes]", mark: str) -> None:
    """SIGTERM to the first process, for it to end the others; SIGKILL to whatever is still there after a while."""
    left = set(marked(mark))
    process.terminate()
    _wait(process, left, GRACE_S)
    process.kill()
    while found := set(marked(mark)):
        left |= found
        for member in found:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        _wait(process, left, KILLED_S)
    _wait(
        process, left, KILLED_S
    )  # a dying process has no environment left to be found by, but may hold its port for a moment
    process.wait()


def _wait(process: "subprocess.Popen[bytes]", members: set[psutil.Process], seconds: float) -> None:
    """Until all have ended, whether or not somebody has asked for their status; at most for so long."""
    until_s = time.monotonic() + seconds
    while any(map(_runs, members)) and time.monotonic() < until_s:
        process.poll()
        time.sleep(POLL_S / 2)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def _answers(spec: TargetSpec) -> bool:
    target = spec.make()
    try:
        await target.open()
    except BenchmarkError:
        return False
    finally:
        await target.close()
    return True


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
