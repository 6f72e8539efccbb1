"""What the kernel's files say, as text."""

import pytest

from narrows_tools.doctor import machine
from narrows_tools.doctor.machine import Cpu, Limits, control_group_limits, parse_cpuinfo, parse_meminfo

X86 = """processor\t: 0
model name\t: Example CPU @ 2.00GHz
flags\t\t: fpu sse2 avx avx2 fma f16c avx512f avx512_vnni hypervisor

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimdhp asimddp i8mm\nCPU architecture: 8\n"


def test_cpuinfo() -> None:
    assert parse_cpuinfo(X86) == Cpu("Example CPU @ 2.00GHz", ("avx", "avx2", "fma", "f16c", "avx512f", "avx512_vnni"))
    assert parse_cpuinfo(ARM) == Cpu("unknown", ("asimd", "asimdhp", "asimddp", "i8mm"))
    assert parse_cpuinfo("") == Cpu("unknown", ())


def test_meminfo() -> None:
    assert parse_meminfo("MemTotal:       1000 kB\nMemFree:  1 kB\nMemAvailable:    400 kB\n") == (1_024_000, 409_600)
    assert parse_meminfo("nonsense") == (0, 0)


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        ({}, Limits()),
        (  # version 2: the tightest of the group and its parents
            {
                "/proc/self/cgroup": "0::/a/b\n",
                "/sys/fs/cgroup/a/b/memory.max": "max\n",
                "/sys/fs/cgroup/a/memory.max": "2000\n",
                "/sys/fs/cgroup/memory.max": "3000\n",
                "/sys/fs/cgroup/a/b/cpu.max": "150000 100000\n",
                "/sys/fs/cgroup/a/cpu.max": "max 100000\n",
            },
            Limits(2000, 1.5),
        ),
        (  # a container: the path of its group is not there, the root is its own
            {"/proc/self/cgroup": "0::/../x\n", "/sys/fs/cgroup/memory.max": "5\n", "/sys/fs/cgroup/cpu.max": "50 100"},
            Limits(5, 0.5),
        ),
        (  # version 1, beside an empty version 2
            {
                "/proc/self/cgroup": "12:cpu,cpuacct:/j\n4:memory:/j\n1:name=systemd:/\n0::/\n",
                "/sys/fs/cgroup/memory/j/memory.limit_in_bytes": "9223372036854771712\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "7000\n",
                "/sys/fs/cgroup/cpu/j/cpu.cfs_quota_us": "200000\n",
                "/sys/fs/cgroup/cpu/j/cpu.cfs_period_us": "100000\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            Limits(7000, 2.0),
        ),
        (  # version 1 says "no limit" by a number
            {
                "/proc/self/cgroup": "4:memory:/\n",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            Limits(),
        ),
        ({"/proc/self/cgroup": "garbage\n::\n", "/sys/fs/cgroup/memory.max": "much"}, Limits()),
    ],
)
def test_control_groups(files: dict[str, str], limits: Limits) -> None:
    assert control_group_limits(files.get) == limits


def test_this_machine() -> None:
    here = machine.examine()
    assert here.cores >= 1
    assert 0 < here.usable_bytes <= here.available_bytes <= here.memory_bytes
    assert here.cpu.model
