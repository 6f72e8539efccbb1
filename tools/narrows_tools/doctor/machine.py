"""CPU, cores and memory of this machine, as far as this process may use them.

Plain functions over the text of the kernel's files; `examine` reads them.
"""

import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

Read = Callable[[str], str | None]  # a file's text by its path; None where there is none

# Instructions that the inference and search libraries choose their code by (x86-64, then ARM).
CPU_FLAGS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimd", "asimdhp", "asimddp", "sve", "i8mm", "bf16"),
)
_UNLIMITED_BYTES = 2**60  # version 1 control groups say "no limit" by a number near 2**63


@dataclass(frozen=True, slots=True)
class Cpu:
    """The model's name, and which of CPU_FLAGS it has."""

    model: str
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What the control groups allow; None where they set no limit."""

    memory_bytes: int | None = None
    cores: float | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process sees it. 0 bytes: the kernel does not say."""

    system: str
    cpu: Cpu
    cores: int  # that the process may run on
    memory_bytes: int
    available_bytes: int
    limits: Limits

    @property
    def usable_bytes(self) -> int:
        """Memory that a new process could fill."""
        limit = self.limits.memory_bytes
        return self.available_bytes if limit is None else min(self.available_bytes, limit)


def examine() -> Machine:
    """Looks at this machine."""
    memory_bytes, available_bytes = parse_meminfo(read_text("/proc/meminfo") or "")
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        cpu=parse_cpuinfo(read_text("/proc/cpuinfo") or ""),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_bytes,
        available_bytes=available_bytes,
        limits=control_group_limits(read_text),
    )


def read_text(path: str) -> str | None:
    """A file's text; None where it cannot be read."""
    try:
        return Path(path).read_text("utf-8", "replace")
    except OSError:
        return None


def parse_cpuinfo(text: str) -> Cpu:
    """Reads /proc/cpuinfo: the first processor stands for all."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    present = set((fields.get("flags") or fields.get("features") or "").split())
    model = fields.get("model name") or fields.get("cpu model") or "unknown"
    return Cpu(model, tuple(flag for flag in CPU_FLAGS if flag in present))


def parse_meminfo(text: str) -> tuple[int, int]:
    """Reads /proc/meminfo: (total, available) bytes, 0 where it does not say."""
    kib = {match[1]: int(match[2]) for match in re.finditer(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return kib.get("MemTotal", 0) * 1024, kib.get("MemAvailable", 0) * 1024


def control_group_limits(read: Read) -> Limits:
    """The tightest limits of this process's control groups and their parents, versions 1 and 2."""
    memory: list[int] = []
    cores: list[float] = []
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            for directory in _upwards("/sys/fs/cgroup", path):
                memory += _numbers(read(f"{directory}/memory.max"))
                cores += _share(*(read(f"{directory}/cpu.max") or "").split()[:2])
        elif "memory" in controllers.split(","):
            for directory in _upwards("/sys/fs/cgroup/memory", path):
                memory += _numbers(read(f"{directory}/memory.limit_in_bytes"))
        elif "cpu" in controllers.split(","):
            for directory in _upwards("/sys/fs/cgroup/cpu", path):
                quota, period = (read(f"{directory}/cpu.cfs_{name}_us") for name in ("quota", "period"))
                cores += _share(quota or "", period or "")
    limited = [number for number in memory if number < _UNLIMITED_BYTES]
    return Limits(min(limited, default=None), min(cores, default=None))


def _upwards(root: str, path: str) -> Iterator[str]:
    """The directories of a control group and its parents; inside a container the path may not be there."""
    for directory in (PurePosixPath(path), *PurePosixPath(path).parents):
        yield f"{root}{directory}".rstrip("/")


def _numbers(text: str | None) -> list[int]:
    return [int(text)] if text and text.strip().isdecimal() else []


def _share(quota: str = "", period: str = "") -> list[float]:
    """[cores]; [] where there is no quota (`max`, or -1)."""
    numbers = _numbers(quota) + _numbers(period)
    return [numbers[0] / numbers[1]] if len(numbers) == 2 and numbers[1] else []
