"""A real `narrows serve` on its own cores, and what a server process uses."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from narrows.errors import BenchmarkError
from narrows_tools.bench.pinned import Cores, on_cores

NARROWS = (sys.executable, "-c", "import sys; from narrows_tools.cli.main import main; sys.exit(main())")
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")  # the states of a core in /proc/stat that are no rest
START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process and its children have used at a time: CPU time so far, and memory.

    `busy_s` is what its `cores` (their number; 0: unknown) have worked so far, for whomever, or were taken away by a
    hypervisor.
    """

    cpu_s: float
    rss_bytes: int
    busy_s: float = 0.0
    at_s: float = 0.0
    cores: int = 0


def others_share(before: Usage, after: Usage) -> float | None:
    """The share of the cores' time between two usages that went to anything but the server; None: unknown."""
    if not after.cores:
        return None
    others_s = (after.busy_s - before.busy_s) - (after.cpu_s - before.cpu_s)
    return max(0.0, others_s) / max((after.at_s - before.at_s) * after.cores, 1e-9)


def usage_of(pid: int, cores: Cores) -> Usage:
    """What a process, its children, and these cores have used.

    Raises:
        BenchmarkError: it is gone.
    """
    import psutil  # for this alone: a server can be started without

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            raise psutil.ZombieProcess(pid)
        family = [process, *process.children(recursive=True)]
        times = [member.cpu_times() for member in family]
        rss_bytes = sum(member.memory_info().rss for member in family)
    except psutil.NoSuchProcess:
        raise BenchmarkError("a process ended while it was measured; if it said why, that is above") from None
    machine = psutil.cpu_times(percpu=True)
    busy_s = sum(getattr(machine[core], state) for core in cores for state in BUSY)
    cpu_s = sum(spent.user + spent.system for spent in times)
    return Usage(cpu_s, rss_bytes, busy_s, time.monotonic(), len(cores))


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers.

    `pid` is 0 where its process is not known; `ready_s` is from its start to its answer; `cores` are those that it has
    to itself, where it has.
    """

    address: str
    pid: int = 0
    ready_s: float = 0.0
    cores: Cores = ()

    def usage(self) -> Usage | None:
        """CPU time and memory of its processes; None where they are not known.

        Raises:
            BenchmarkError: it is gone.
        """
        return usage_of(self.pid, self.cores) if self.pid else None


@contextmanager
def narrows_server(bundle: Path, index: Path | None, cores: Cores, flags: Sequence[str] = ()) -> Iterator[Server]:
    """Starts `narrows serve` on these cores and a free port; ends it with SIGTERM.

    Raises:
        BenchmarkError: it does not start, or does not end well.
    """
    command = [*NARROWS, "serve", "--bundle", str(bundle), "--listen", "127.0.0.1:0", "--log-level", "warning"]
    command += ["--index", str(index)] if index else []
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NARROWS_")}
    started_s = time.monotonic()
    with on_cores(cores):
        process = subprocess.Popen(  # noqa: S603  (our own command)
            [*command, *flags], stdout=subprocess.PIPE, text=True, env=variables
        )
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    with process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            ready_s = time.monotonic() - started_s
            watchdog.cancel()
            if "serving on" not in line:
                raise BenchmarkError("the server did not start; its message is above")
            yield Server(line.split()[-1], process.pid, ready_s, cores)
        finally:
            watchdog.cancel()
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
    if process.returncode != 0:
        raise BenchmarkError(f"the server ended with status {process.returncode}")
