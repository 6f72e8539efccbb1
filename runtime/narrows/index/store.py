"""The index on disk: sealed generations, and a pointer to the current one.

    INDEX/CURRENT            the name of a generation and its manifest's SHA-256, swapped atomically
    INDEX/g000001/           manifest.json  index.faiss  passages.blob  passages.ends.npy  id_order.npy  id_rank.npy

A generation gets its name only when it is complete and synced, and CURRENT names only such, so nothing half-written
is ever opened.
"""

import hashlib
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from narrows import durable, manifests
from narrows.bundle import Bundle
from narrows.errors import IndexFileError, MismatchError
from narrows.index.flat import FlatIndex
from narrows.passages import FILES, Passages

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
MANIFEST, CURRENT, VECTORS = "manifest.json", "CURRENT", "index.faiss"
GENERATION = re.compile(r"g\d{6}")
CURRENT_LINE = re.compile(rf"({GENERATION.pattern}) ([0-9a-f]{{64}})\n")
LEFTOVER = re.compile(r"g\d{6}|\.g\d{6}\.\d+\.partial")  # an older generation, or half of one from a killed build


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """Size and SHA-256 of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What a generation holds, and which tower filled it. `max_norm` is that of the longest vector."""

    schema_version: int
    name: str
    created_by: str
    tower_id: str
    variant: str
    bundle: str
    metric: str
    factory: str
    dim: int
    count: int
    truncated_count: int
    max_norm: float
    source: str
    source_sha256: str
    files: dict[str, IndexedFile]


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """An opened generation."""

    manifest: IndexManifest
    generation: str
    vectors: FlatIndex
    passages: Passages


def describe_file(file: Path) -> IndexedFile:
    """Measures a file for the manifest."""
    return IndexedFile(file.stat().st_size, durable.sha256_file(file))


def current_generation(path: Path) -> str | None:
    """The name of the current generation; None where there is no index.

    Raises:
        IndexFileError: CURRENT is damaged.
    """
    current = _read_current(path)
    return current[0] if current else None


def _read_current(path: Path) -> tuple[str, str] | None:
    """The current generation's name, and the SHA-256 of its manifest."""
    try:
        line = (path / CURRENT).read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise IndexFileError(f"{path / CURRENT} cannot be read: {error}") from None
    match = CURRENT_LINE.fullmatch(line)
    if match is None:
        raise IndexFileError(f"{path / CURRENT} does not name a generation and its hash: {line!r}")
    return match[1], match[2]


@contextmanager
def new_generation(path: Path) -> Iterator[Path]:
    """Yields a directory to fill; when the block ends without an exception it is the current generation.

    Older generations, and what killed builds left, are deleted then. A server that has them open keeps its mapped
    files until it closes them.

    Raises:
        IndexFileError: another process is building there.
    """
    is_new = not path.exists()
    durable.make_directory(path)
    try:
        with _building(path):
            previous = current_generation(path)
            name = f"g{int(previous[1:]) + 1 if previous else 1:06d}"
            shutil.rmtree(path / name, ignore_errors=True)  # left by a crash between rename and CURRENT
            with durable.new_directory(path / name) as directory:
                yield directory
            manifest_sha256 = durable.sha256_file(path / name / MANIFEST)
            durable.write_file(path / CURRENT, f"{name} {manifest_sha256}\n".encode())
            for entry in path.iterdir():
                if entry.name != name and LEFTOVER.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)
    except BaseException:
        if is_new:
            with suppress(OSError):
                path.rmdir()
        raise


@contextmanager
def _building(path: Path) -> Iterator[None]:
    """Keeps other builds out of an index; on a file system without locks it cannot."""
    with ExitStack() as held:
        try:
            held.enter_context(durable.locked(path))
        except BlockingIOError:
            raise IndexFileError(f"another process is building an index in {path}; wait for it") from None
        except OSError:
            log.warning("%s is on a file system without locks: let only one build at a time write there", path)
        yield


def read_manifest(path: Path) -> tuple[str, IndexManifest]:
    """Returns the current generation's name and manifest.

    Raises:
        IndexFileError: no index there, or its manifest is changed, unreadable or of another schema version.
    """
    current = _read_current(path)
    if current is None:
        raise IndexFileError(f"{path} is not an index (it has no {CURRENT}); make one with `narrows index build`")
    generation, sha256 = current
    file = path / generation / MANIFEST
    try:
        data = file.read_bytes()
    except OSError as error:
        raise IndexFileError(f"{file} cannot be read: {error}; build the index again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IndexFileError(f"{file} does not match {CURRENT}: it was changed or damaged; build the index again")
    return generation, manifests.decode(data, IndexManifest, SCHEMA_VERSION, file, IndexFileError)


def open_index(path: Path, bundle: Bundle, threads: int) -> OpenIndex:
    """Opens the current generation and checks every file, and that the bundle's context encoder filled it.

    When a build replaces the generation meanwhile, the new one is opened.

    Raises:
        IndexFileError: anything missing, changed or unreadable.
        MismatchError: another tower filled the index.
    """
    while True:
        generation, manifest = read_manifest(path)
        check_towers(path, manifest, bundle)
        try:
            return _open_generation(path / generation, generation, manifest, threads)
        except (IndexFileError, FileNotFoundError):
            if current_generation(path) == generation:
                raise


def _open_generation(directory: Path, generation: str, manifest: IndexManifest, threads: int) -> OpenIndex:
    for name in (VECTORS, *FILES):
        expected, file = manifest.files.get(name), directory / name
        if not file.is_file():
            raise IndexFileError(f"{file} is missing: build the index again")
        if describe_file(file) != expected:
            raise IndexFileError(
                f"{file} does not match the manifest: it was changed or damaged; build the index again"
            )
    passages = Passages(directory)
    vectors = FlatIndex(directory / VECTORS, passages.id_rank, manifest.max_norm, threads)
    if vectors.dim != manifest.dim or vectors.count != manifest.count:
        raise IndexFileError(f"{directory / VECTORS} does not hold {manifest.count} x {manifest.dim}: build it again")
    return OpenIndex(manifest, generation, vectors, passages)


def check_towers(path: Path, manifest: IndexManifest, bundle: Bundle) -> None:
    """Contract 4: towers and index belong together.

    Raises:
        MismatchError: they do not.
    """
    tower = bundle.tower("context_encoder")
    if manifest.tower_id != tower.tower_id:
        raise MismatchError(
            f"{path} was filled by another context encoder (tower_id {manifest.tower_id}, of bundle "
            f"{manifest.bundle}) than the one in {bundle.path} ({tower.tower_id}): its ranking would be wrong. "
            "Serve it with its own bundle, or build it again with this one"
        )
