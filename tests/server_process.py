"""A real `narrows serve` in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

NARROWS = [sys.executable, "-W", "error", "-c", "import sys; from narrows_tools.cli.main import main; sys.exit(main())"]
START_TIMEOUT_S = 120.0
PATIENCE_S = 60.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that has said that it is ready."""

    process: "subprocess.Popen[str]"
    address: str

    def children(self) -> list[int]:
        """The process ids of what it has started."""
        main_thread = Path(f"/proc/{self.process.pid}/task/{self.process.pid}")
        return [int(number) for number in (main_thread / "children").read_text("ascii").split()]

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 30.0) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout_s)


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NARROWS_")}
    return clean | extra


@contextmanager
def server(bundle: Path, index: Path | None, *flags: str, **settings: str) -> Iterator[ServerProcess]:
    """Starts a server on a free port; `settings` go in as NARROWS_* variables. Killed at the end if still there."""
    command = [*NARROWS, "serve", "--bundle", str(bundle), "--listen", "127.0.0.1:0", *flags]
    if index is not None:
        command += ["--index", str(index)]
    variables = {f"NARROWS_{name.upper()}": value for name, value in settings.items()}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(**variables)) as process:
        watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            watchdog.cancel()
            assert line.startswith("narrows: serving on "), f"the server did not start: {line!r}"
            yield ServerProcess(process, line.split()[-1])
        finally:
            watchdog.cancel()
            if process.poll() is None:
                process.kill()


def run_narrows(*arguments: str, timeout_s: float = 120.0, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Runs one command to its end."""
    return subprocess.run(
        [*NARROWS, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment(**variables),
        check=False,
    )


def until(reached: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
    """Waits for something that other processes bring about."""
    end_s = time.monotonic() + patience_s
    while not reached():
        assert time.monotonic() < end_s, "it does not come about"
        time.sleep(0.02)
