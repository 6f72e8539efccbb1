"""Section 7: the most memory that was in use on the card while the others ran, whoever had it."""

import subprocess
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from narrows import cuda
from narrows.errors import DeviceError

SAMPLE_S = 0.25


class Peak:
    """Samples memory in a thread of its own for as long as the block runs."""

    def __init__(self, device: str) -> None:
        self.most_bytes = 0
        self.why_none = ""
        self._used, self.source = _source(device)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._end.is_set():
            try:
                self.most_bytes = max(self.most_bytes, self._used())
            except (DeviceError, ImportError, OSError, ValueError, subprocess.SubprocessError) as error:
                self.why_none = str(error)
                return
            self._end.wait(SAMPLE_S)


def _source(device: str) -> tuple[Callable[[], int], str]:
    """What tells how many bytes are in use, and its name."""
    if device == "cpu":
        return _children_bytes, "resident, all processes"
    number = int(device.partition(":")[2] or 0)
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        _smi_bytes(number)
        return lambda: _smi_bytes(number), "nvidia-smi"

    def used() -> int:
        return next(gpu.total_bytes for gpu in cuda.gpus() if gpu.number == number) - cuda.free_bytes(number)

    return used, "the driver, its context for this process included"


def _smi_bytes(number: int) -> int:
    command = ["nvidia-smi", f"--id={number}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603  (our own)
    return int(done.stdout.strip()) * 2**20


def _children_bytes() -> int:
    import psutil  # of a CPU alone: a GPU machine need not have it

    total = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total
