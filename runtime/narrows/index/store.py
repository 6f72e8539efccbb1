"""The index on disk: sealed generations, and a pointer to the current one.

    INDEX/CURRENT            the name of a generation and its manifest's SHA-256, swapped atomically
    INDEX/g000001/           manifest.json  passages.blob  passages.ends.npy  id_order.npy  id_rank.npy
                             truncated.jsonl (a line for each passage that was cut: id, tokens, kept)
                             index.faiss, index.fp16.faiss (all vectors), structure.faiss (narrows.index.presets)
    INDEX/.g000001.verified  the stamp of narrows.integrity
    INDEX/.build/            the next generation while it is built (narrows.index.unfinished)

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

from narrows import durable, integrity, manifests
from narrows.bundle import Bundle
from narrows.errors import IndexFileError, MismatchError
from narrows.index.agreement import Agreement
from narrows.index.presets import FLAT_PLAN, Plan, Store
from narrows.index.shard import Shard
from narrows.integrity import Sealed, Verify
from narrows.passages import FILES

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
READ_VERSIONS = (2, SCHEMA_VERSION)  # 2 knew flat indexes only: the defaults of what it lacks
MANIFEST, CURRENT, TRUNCATED = "manifest.json", "CURRENT", "truncated.jsonl"
VECTORS, HALVES, STRUCTURE = "index.faiss", "index.fp16.faiss", "structure.faiss"
STORED: dict[Store, tuple[str, ...]] = {"none": (), "fp16": (HALVES,), "fp32": (VECTORS,)}
GENERATION = re.compile(r"g\d{6}")
CURRENT_LINE = re.compile(rf"({GENERATION.pattern}) ([0-9a-f]{{64}})\n")
LEFTOVER = re.compile(  # what builds and servers that were killed may leave; .partial: of builds before schema 2
    r"g\d{6}|\.g\d{6}\.verified|\.g\d{6}\.\d+\.partial|\.(CURRENT|\.g\d{6}\.verified)\.\d+\.tmp"
)


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """Size of one file, and the SHA-256 of each of its chunks (narrows.integrity)."""

    size_bytes: int
    sha256: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """Rows of the passage file that were left out for one reason; the first few as `LINE: what is wrong`."""

    count: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Recall:
    """What was measured on questions before the index was sealed.

    `recall` is the share of the exact k best that was found; a passage with the score of the k-th best counts as one of
    them (as ann-benchmarks counts). `target` is 0 where none was set. The questions took no part in the tuning. Times
    are of one question at a time, without its encoding, with one thread on `cpu`.
    """

    k: int
    recall: float
    target: float
    questions: int
    tuned_on: int
    p50_ms: float
    p99_ms: float
    cpu: str


@dataclass(frozen=True, slots=True)
class IndexManifest:
    """What a generation holds, and which tower filled it.

    `plan` says how the vectors are held and searched; `recall` how well, if that was measured; `least_cosine` how near
    coded vectors of a sample are to what they code, at least; `vector_bytes` what one takes in all files that hold them
    (0: made before this was written down). `model_sha256` is of the variant's file that encoded them ("": unknown, or
    several); `agreement` is there where another program did; `shard` where these are a part of the passages of
    `source`.
    `token_count` is of all passages before any was cut; `cut_token_count` of these were cut off, from
    `truncated_count` passages. `max_norm` is that of the longest vector. `skipped` is by reason
    (narrows.passage_files.Reason). All files but the manifest are listed, hashed in chunks of `chunk_bytes`.
    """

    schema_version: int
    name: str
    created_by: str
    tower_id: str
    variant: str
    bundle: str
    metric: str
    dim: int
    count: int
    truncated_count: int
    token_count: int
    cut_token_count: int
    max_norm: float
    source: str
    source_sha256: str
    skipped: dict[str, SkippedRows]
    chunk_bytes: int
    files: dict[str, IndexedFile]
    plan: Plan = FLAT_PLAN
    recall: Recall | None = None
    least_cosine: float = 1.0
    vector_bytes: float = 0.0
    model_sha256: str = ""
    shard: Shard | None = None
    agreement: Agreement | None = None


def vector_files(plan: Plan) -> tuple[str, ...]:
    """The files that hold the vectors, in whatever form."""
    return STORED[plan.store] + (() if plan.is_exact else (STRUCTURE,))


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
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise IndexFileError(f"{path / CURRENT} cannot be read: {error}") from None
    match = CURRENT_LINE.fullmatch(line)
    if match is None:
        raise IndexFileError(f"{path / CURRENT} does not name a generation and its hash: {line!r}")
    return match[1], match[2]


@contextmanager
def building(path: Path) -> Iterator[None]:
    """Keeps other builds out of an index; on a file system without locks it cannot. Makes the directory if need be.

    Raises:
        IndexFileError: another process is building there.
    """
    is_new = not path.exists()
    durable.make_directory(path)
    with ExitStack() as held:
        try:
            held.enter_context(durable.locked(path))
        except BlockingIOError:
            raise IndexFileError(f"another process is building an index in {path}; wait for it") from None
        except OSError:
            log.warning("%s is on a file system without locks: let only one build at a time write there", path)
        try:
            yield
        except BaseException:
            if is_new:
                with suppress(OSError):  # something worth keeping is in it
                    path.rmdir()
            raise


def next_generation(path: Path) -> str:
    """The name of the generation after the current one."""
    previous = current_generation(path)
    return f"g{int(previous[1:]) + 1 if previous else 1:06d}"


def publish(path: Path, directory: Path, manifest: IndexManifest) -> str:
    """Makes a filled directory inside the index its current generation, and returns the generation's name.

    A server that has an older one open keeps its mapped files until it closes them.
    """
    data = manifests.encode(manifest)
    (directory / MANIFEST).write_bytes(data)
    name = next_generation(path)
    durable.publish_directory(directory, path / name)
    durable.write_file(path / CURRENT, f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
    return name


def remove_leftovers(path: Path) -> None:
    """Deletes older generations, and what killed builds left of others; the current generation stays."""
    current = current_generation(path)
    for entry in path.iterdir():
        if LEFTOVER.fullmatch(entry.name) and entry.name not in (current, f".{current}.verified"):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def identity(manifest: IndexManifest) -> str:
    """Stands for every byte of a generation, as the manifest has the hashes of its files."""
    return hashlib.sha256(manifests.encode(manifest)).hexdigest()


def read_manifest(path: Path) -> tuple[str, IndexManifest]:
    """Returns the current generation's name and manifest.

    Raises:
        IndexFileError: no index there, or its manifest is changed, unreadable or of another schema version.
    """
    generation, manifest, _ = read_sealed_manifest(path)
    return generation, manifest


def read_sealed_manifest(path: Path) -> tuple[str, IndexManifest, str]:
    """As read_manifest, and the SHA-256 of the manifest's bytes."""
    current = _read_current(path)
    if current is None:
        raise IndexFileError(f"{path} is not an index (it has no {CURRENT}); make one with `narrows index build`")
    generation, sha256 = current
    file = path / generation / MANIFEST
    try:
        data = file.read_bytes()
    except OSError as error:
        if _read_current(path) != current:  # a build replaced the generation meanwhile
            return read_sealed_manifest(path)
        raise IndexFileError(f"{file} cannot be read: {error}; build the index again") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise IndexFileError(f"{file} does not match {CURRENT}: it was changed or damaged; build the index again")
    return generation, manifests.decode(data, IndexManifest, READ_VERSIONS, file, IndexFileError), sha256


def damages(path: Path, generation: str, manifest: IndexManifest, manifest_sha256: str, verify: Verify) -> list[str]:
    """What is wrong with the files of a generation, one line each."""
    names = (*vector_files(manifest.plan), TRUNCATED, *FILES)
    files = {name: manifest.files[name].sha256 if name in manifest.files else () for name in names}
    stamp = path / f".{generation}.verified"
    sealed = Sealed(path / generation, files, manifest.chunk_bytes, manifest_sha256, stamp)
    said = {"missing": "is missing", "changed": "does not match the manifest: it was changed or damaged"}
    return [f"{fault.file} {said[fault.what]}" for fault in integrity.faults(sealed, verify)]


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
