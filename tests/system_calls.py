"""What a command asks of the kernel, in which order: its writes, syncs, renames and deletions, by strace."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

CALL = re.compile(
    r"(?P<of>write|fsync)\(\d+<(?P<opened>[^>]*)>|(?P<on>rename|unlink)\w*\((?:AT_FDCWD\S*, )?\"(?P<named>[^\"]*)\""
)
TRACED = "trace=write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat"


def traced(command: Sequence[str], base: Path, log: Path) -> list[tuple[str, str]]:
    """Runs a command: (call, path below `base`) of each call there, and ("write", "stdout").

    Temporary names lose their process number. A file is written in several calls: of equal ones in a row, one stays.
    Skips the test where strace is missing or may not trace.
    """
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    done = subprocess.run(
        [strace, "-f", "-y", "-o", str(log), "-e", TRACED, *command], capture_output=True, text=True, check=False
    )
    if done.returncode and "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    calls: list[tuple[str, str]] = []
    for line in log.read_text("utf-8").splitlines():
        match = CALL.search(line)
        if match is None or " = -1 ENOENT" in line:  # unlink of a temporary name that was renamed
            continue
        assert " = -1 " not in line
        path = Path(match["opened"] or match["named"])
        if path == base or base in path.parents:
            name = re.sub(r"\.\d+\.", ".PID.", path.relative_to(base).as_posix())
        elif "write(1<" in line:
            name = "stdout"
        else:
            continue
        call = (match["of"] or match["on"], name)
        if not calls or calls[-1] != call:
            calls.append(call)
    return calls
