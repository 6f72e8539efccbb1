"""A program: kills an index build at its n-th write point, for every n, and starts it again after each kill.

    python kills.py BUNDLE PASSAGES INDEX TORN FIRST STEP

INDEX may exist: then its next generation is built. A write point is a call that others rely on: fsync, rename,
unlink, rmdir, mkdir, where the process is killed in place of the call; and opening a file to write, where it is killed
when the file is open, and empty if it is a new one. With TORN (1), what had not been synced by then is cut, as a power
loss may do. Nothing in the product knows of this: the functions of `os` and `io` are replaced. One line of JSON is
printed for each kill.

The parent has loaded all modules and has no other thread, so that a fork is safe and costs no import.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from narrows.bundle import Bundle, open_bundle
from narrows.errors import IndexFileError
from narrows.index import chunks
from narrows.index.build import BuildRequest, build_index
from narrows.index.opened import open_index
from narrows.index.progress import Progress
from narrows.index.store import current_generation
from narrows.index.target import Target

POINTS = ("fsync", "rename", "unlink", "rmdir", "mkdir")


class Points:
    """Counts the write points of this process, and kills it in place of one of them."""

    def __init__(self, index: Path, kill_at: int, torn: bool) -> None:
        self.count, self._index, self._kill_at, self._torn = 0, index, kill_at, torn
        # inode -> bytes that a power loss leaves
        self._safe = {file.stat().st_ino: file.stat().st_size for file in index.rglob("*") if file.is_file()}
        for name in POINTS:
            setattr(os, name, self._counted(name, getattr(os, name)))
        self._open = io.open
        io.open = self._opened  # type: ignore[assignment]

    def _opened(self, file: Any, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        opened = self._open(file, mode, *arguments, **more)
        if set(mode) & set("wax+"):
            self._point()
        return opened

    def _point(self) -> None:
        self.count += 1
        if self.count == self._kill_at:
            if self._torn:
                self._tear()
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            self._point()
            result = call(*arguments, **more)
            if name == "fsync":
                found = os.fstat(arguments[0])
                self._safe[found.st_ino] = found.st_size
            return result

        return counted

    def _tear(self) -> None:
        for file in self._index.rglob("*"):
            if file.is_file():
                found = file.stat()
                safe = min(found.st_size, self._safe.get(found.st_ino, 0))
                os.truncate(file, safe + (found.st_size - safe) // 2)


def forked(work: Callable[[], Any]) -> Any:
    """Runs `work` in a forked process: its result, or None if the process was killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return None
    if status:
        raise SystemExit(f"a build or a check failed (status {status}); see above")
    return json.loads(data)


def tree(path: Path) -> dict[str, str]:
    """The files below `path`, with the hash of their bytes."""
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows_in_journal(index: Path) -> int:
    """What an unfinished build has encoded."""
    rows = [json.loads(file.read_bytes())["encoded"]["rows"] for file in index.rglob("journal.json")]
    return max(rows, default=0)


def opened(index: Path, bundle: Bundle) -> str:
    """The generation that opens and answers; empty if there is none."""
    if current_generation(index) is None:
        return ""
    found = open_index(index, bundle, 1)
    count = found.manifest.count
    hits = found.vectors.search(found.vectors.vectors[:1], count)
    assert sorted(hits.rows[0].tolist()) == list(range(count))
    assert all(found.passages.find(passage.id) == row for row, passage in enumerate(found.passages.get(range(count))))
    return found.generation


def main() -> None:
    bundle_path, passages, index = map(Path, sys.argv[1:4])
    torn, first, step = map(int, sys.argv[4:])
    chunks.CHUNK_PASSAGES = 4
    bundle = open_bundle(bundle_path)
    before = index.with_name("before")
    if index.exists():
        shutil.copytree(index, before)
    old = current_generation(index) or ""
    request, target = BuildRequest(passages, "fp32"), Target(index, "x", 1, replace=bool(old))

    def start(kill_at: int) -> Any:
        def work() -> dict[str, Any]:
            points = Points(index, kill_at, bool(torn))
            try:
                report = build_index(bundle, request, target, Progress())
            except IndexFileError as error:
                return {"refused": str(error), "points": points.count}
            return {"resumed_at": report.resumed_at, "generation": report.generation, "points": points.count}

        return forked(work)

    whole = start(0)
    expected = tree(index)
    for kill_at in range(first, whole["points"] + 1, step):
        shutil.rmtree(index)
        if old:
            shutil.copytree(before, index)
        assert start(kill_at) is None
        encoded = rows_in_journal(index)
        serving = forked(lambda: opened(index, bundle))
        again = start(0)
        done = "refused" not in again
        print(
            json.dumps(
                {
                    "kill_at": kill_at,
                    "of": whole["points"],
                    "old": old,
                    "serving": serving,
                    "encoded": encoded,
                    **again,
                    "same": tree(index) == expected,
                    "done": done,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
