"""Whether files are still what their manifest says (contract 5): hashes, and a stamp that spares the next open them.

A large file is hashed in chunks, so that all cores share it; hashlib lets go of the GIL. After every hash was right,
a stamp remembers each file's size, mtime, ctime and inode, and the manifest's hash. While all of these are the same,
`verify="stamp"` takes the files for unchanged; any difference, or a stamp that is absent or damaged, means hashing all.

What a stamp cannot see: bytes that changed beneath the file system (bit rot, a failing disk, writes to the block
device), because they move no time; a write within the same tick of the kernel's clock as the one before it (some
milliseconds; up to two seconds on old file systems); and a forged stamp, which takes the same rights as a forged
manifest. `verify="full"` reads everything each time.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from narrows import durable

log = logging.getLogger(__name__)

Verify = Literal["full", "stamp"]

CHUNK_BYTES = 64 * 2**20
WHOLE_FILE = 2**62  # as a size of chunks: one chunk a file
READ_BYTES = 2**20
MAX_THREADS = 16


@dataclass(frozen=True, slots=True)
class Sealed:
    """Files that a manifest vouches for: path below `directory` -> SHA-256 of each of its chunks."""

    directory: Path
    files: Mapping[str, Sequence[str]]
    chunk_bytes: int
    manifest_sha256: str
    stamp: Path


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that is not what the manifest says."""

    file: Path
    what: Literal["missing", "changed"]


@dataclass(frozen=True, slots=True)
class _State:
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


@dataclass(frozen=True, slots=True)
class _Stamp:
    manifest_sha256: str
    files: dict[str, _State]


def hash_files(files: Iterable[Path], chunk_bytes: int = CHUNK_BYTES) -> dict[Path, tuple[str, ...]]:
    """Returns the SHA-256 of each chunk of each file; a file of at most one chunk, even an empty one, has one hash."""
    chunks = [(file, start) for file in files for start in range(0, max(file.stat().st_size, 1), chunk_bytes)]
    hashes: dict[Path, tuple[str, ...]] = {}
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), MAX_THREADS), "narrows-hash") as pool:
        digests = pool.map(lambda chunk: _chunk_sha256(chunk[0], chunk[1], chunk_bytes), chunks)
        for (file, _), digest in zip(chunks, digests, strict=True):
            hashes[file] = (*hashes.get(file, ()), digest)
    return hashes


def faults(sealed: Sealed, verify: Verify) -> list[Fault]:
    """Checks the files. With `stamp`, a stamp that fits spares the hashing, and a check in full leaves one.

    Returns:
        The missing files, if any is missing; else those whose bytes differ.

    Raises:
        OSError: a file cannot be read.
    """
    paths = {name: sealed.directory / name for name in sealed.files}
    missing = [Fault(path, "missing") for path in paths.values() if not path.is_file()]
    if missing:
        return missing
    # Looked at before the bytes are read: what is written meanwhile differs from the stamp next time.
    stamp = _Stamp(sealed.manifest_sha256, {name: _state(path) for name, path in paths.items()})
    if verify == "stamp" and _read(sealed.stamp) == stamp:
        return []
    hashes = hash_files(paths.values(), sealed.chunk_bytes)
    changed = [Fault(path, "changed") for name, path in paths.items() if hashes[path] != tuple(sealed.files[name])]
    if changed:
        with suppress(OSError):
            sealed.stamp.unlink(missing_ok=True)
    elif verify == "stamp":
        _write(sealed.stamp, stamp)
    return changed


def _chunk_sha256(file: Path, start: int, size: int) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(READ_BYTES))
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        try:
            while size > 0 and (read := stream.readinto(buffer[: min(size, READ_BYTES)])):
                digest.update(buffer[:read])
                size -= read
        except OSError as error:  # a failing disk; the error does not name the file by itself
            error.filename = str(file)
            raise
    return digest.hexdigest()


def _state(file: Path) -> _State:
    found = file.stat()
    return _State(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _read(stamp: Path) -> _Stamp | None:
    try:
        return msgspec.json.decode(stamp.read_bytes(), type=_Stamp)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _write(file: Path, stamp: _Stamp) -> None:
    try:
        durable.write_file(file, msgspec.json.encode(stamp))
    except OSError as error:
        log.debug("no stamp at %s (%s): the next start hashes every file again", file, error)
