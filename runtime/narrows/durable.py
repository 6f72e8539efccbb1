"""Writing files so that a crash or a power loss leaves either the old state or the whole new one.

The order is always the same: write under a temporary name, fsync the file, rename, fsync the directory.
"""

import errno
import fcntl
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def fsync_path(path: Path) -> None:
    """Forces a file's bytes, or a directory's entries, to stable storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path) -> None:
    """Forces a directory and everything below it to stable storage."""
    for inner in sorted(directory.rglob("*")):
        fsync_path(inner)
    fsync_path(directory)


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Yields a file that takes the place of `path` when the block ends without an exception: whole, or not at all.

    Raises:
        FileExistsError: `path` is something like /dev/null, which a file must not replace.
        IsADirectoryError: `path` is a directory.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise FileExistsError(errno.EEXIST, "it exists and is not a file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        fsync_path(temporary)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Replaces `path` by a file holding `data`: whole, or not at all."""
    with new_file(path) as file:
        file.write(data)


def make_directory(path: Path) -> None:
    """Creates a directory and its missing parents, each entry synced; does nothing where it exists."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        fsync_path(path.parent)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a directory for this process alone; the kernel lets go of it when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it is gone, or its file system has no locks.
    """
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def publish_directory(directory: Path, path: Path) -> None:
    """Renames `directory`, beside `path`, to `path` once everything in it is on the disk.

    Raises:
        FileExistsError: `path` exists and is not an empty directory.
    """
    sync_tree(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists already")
    directory.rename(path)  # POSIX: replaces an empty directory, atomically
    fsync_path(path.parent)


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path` that becomes `path` when the block ends without an exception.

    Every file in it is synced before the rename. On an exception the temporary directory is removed; what a killed
    process left of an earlier attempt is removed by the next one.

    Raises:
        FileExistsError: `path` exists and is not an empty directory.
    """
    make_directory(path.parent)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        with ExitStack() as held:
            with suppress(OSError):  # without locks nobody removes it either
                held.enter_context(locked(temporary))
            yield temporary
            publish_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_abandoned(path: Path) -> None:
    """Removes what killed processes left beside `path`; a directory that its process still holds stays."""
    for abandoned in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        with suppress(OSError), locked(abandoned):
            shutil.rmtree(abandoned, ignore_errors=True)
