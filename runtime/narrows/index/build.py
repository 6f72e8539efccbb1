"""`narrows index build`: a file of passages -> a sealed generation of a flat index.

Two passes. The first checks the whole file and stores the passages, so that a bad row is found before hours of
encoding. The second reads them back, tokenizes, encodes and writes, all at a time (narrows.offline). A build that is
stopped at any moment goes on where it was when it is started again (narrows.index.unfinished), on a CPU to the same
bytes.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import tokenizers

import narrows
from narrows import durable, integrity, offline, passage_files
from narrows.bundle import Bundle
from narrows.device import CPU, Device
from narrows.errors import IndexFileError, PassageFileError
from narrows.index import chunks, store, unfinished
from narrows.index.store import GENERATION, TRUNCATED, VECTORS, IndexedFile, IndexManifest, SkippedRows
from narrows.index.unfinished import BUILD, Appender, Inputs, Journal
from narrows.passage_files import BadRow
from narrows.passages import Passages, PassageWriter
from narrows.towers import Tower, load_towers

NAMED_SKIPS = 5  # bad rows named for each reason


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build.

    `replace` makes a new generation of an index that exists; `restart` throws an unfinished build away; `skip_bad`
    leaves bad rows out.
    """

    passages: Path
    out: Path
    name: str
    variant: str
    threads: int
    replace: bool = False
    restart: bool = False
    skip_bad: bool = False
    device: Device = CPU


class Progress:
    """Told how the build goes; this one says nothing."""

    def reading(self, passages: int) -> None:
        """So many passages were read and checked."""

    def resuming(self, encoded: int, passages: int) -> None:
        """So many of the passages were encoded by a build that was stopped; this one goes on from there."""

    def estimated(self, passages: int, seconds: float) -> None:
        """Encoding of so many passages begins; it should take so long."""

    def encoded(self, passages: int) -> None:
        """So many more passages were encoded."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built, and how fast the encoding went. `resumed_at` passages were encoded before this run."""

    index: str
    generation: str
    count: int
    dim: int
    truncated_count: int
    token_count: int
    cut_token_count: int
    skipped: dict[str, SkippedRows]
    size_bytes: int
    resumed_at: int
    encode_s: float
    passages_per_s: float


def build_index(bundle: Bundle, request: BuildRequest, progress: Progress) -> BuildReport:
    """Builds an index, or goes on with a build of the same inputs that was stopped.

    Raises:
        PassageFileError: the file breaks its format, or holds no passage.
        IndexFileError: the output exists and `replace` is not set, or is something else than an index; another process
            is building there; or it holds an unfinished build of other inputs and `restart` is not set.
        BundleError: the context encoder cannot be loaded.
        DeviceError: nor on this device.
    """
    path = request.out
    _check_output(request)
    towers = load_towers(bundle, request.variant, 1, ["context_encoder"], device=request.device)
    tower = towers["context_encoder"]
    with store.building(path):
        _check_output(request)  # again: another build may have ended meanwhile
        inputs = _inputs(tower, request)
        if done := _killed_at_its_end(request, inputs):
            return done
        if request.restart:
            unfinished.clear(path)
        journal = unfinished.find(path, inputs)
        if journal:
            progress.resuming(journal.encoded.rows, journal.count)
        else:
            journal = _store(request, inputs, tower.manifest.dim, progress)
        resumed_at = journal.encoded.rows
        journal, encode_s = _encode(path / BUILD, journal, tower, request.threads, progress)
        manifest = describe(bundle, request, journal, path / BUILD)
        generation = store.publish(path, path / BUILD, manifest)
        unfinished.finish(path, generation)
    return _report(request, generation, manifest, resumed_at, encode_s)


def _check_output(request: BuildRequest) -> None:
    out = request.out
    current = store.current_generation(out)
    if current is not None:
        if not request.replace and unfinished.read_journal(out / current) is None:
            raise _exists(out)
    elif out.exists() and (not out.is_dir() or any(not _of_killed_build(entry) for entry in out.iterdir())):
        raise IndexFileError(f"{out} exists and is not an index: choose another --out")


def _exists(out: Path) -> IndexFileError:
    return IndexFileError(f"{out} holds an index already: give --replace to build its next generation")


def _of_killed_build(entry: Path) -> bool:
    """Whether a build that was killed before CURRENT existed may have left this; hidden files do not count."""
    return entry.name.startswith(".") or GENERATION.fullmatch(entry.name) is not None


def _inputs(tower: Tower, request: BuildRequest) -> Inputs:
    if request.passages.is_fifo():
        raise PassageFileError(f"{request.passages}:1: it is a pipe, and is read twice; write the passages to a file")
    try:
        source_sha256 = durable.sha256_file(request.passages)
    except OSError as error:
        raise PassageFileError(f"{request.passages}:1: cannot be read: {error.strerror or error}") from None
    return Inputs(
        program=f"narrows {narrows.__version__}, onnxruntime {onnxruntime.__version__}, "
        f"tokenizers {tokenizers.__version__}" + (", on a GPU" if request.device.is_gpu else ""),
        tower_id=tower.manifest.tower_id,
        variant=request.variant,
        model_sha256=tower.manifest.variants[request.variant].sha256,
        source_sha256=source_sha256,
        skip_bad=request.skip_bad,
    )


def _killed_at_its_end(request: BuildRequest, inputs: Inputs) -> BuildReport | None:
    """Does the last step of a build that was killed after CURRENT named it; its report, if it is the one asked for."""
    current = store.current_generation(request.out)
    journal = unfinished.read_journal(request.out / current) if current else None
    if current is None or journal is None:
        return None
    unfinished.finish(request.out, current)
    if journal.inputs == inputs and not request.restart:
        manifest = store.read_manifest(request.out)[1]
        if manifest.name == request.name:
            return _report(request, current, manifest, journal.count, 0.0)
    if not request.replace:
        raise _exists(request.out)
    return None


def _store(request: BuildRequest, inputs: Inputs, dim: int, progress: Progress) -> Journal:
    """Checks and stores the passages, and begins the journal; leaves nothing when it fails."""
    unfinished.clear(request.out)
    directory = request.out / BUILD
    directory.mkdir()
    skipped: dict[str, SkippedRows] = {}

    def skip(row: BadRow) -> None:
        found = skipped.get(row.reason, SkippedRows(0, ()))
        named = (*found.first, f"{row.line}: {row.message}")[:NAMED_SKIPS]
        skipped[row.reason] = SkippedRows(found.count + 1, named)

    try:
        count = 0
        with PassageWriter(directory) as writer:
            rows = passage_files.read(request.passages, skip if request.skip_bad else None)
            for count, row in enumerate(rows, start=1):
                writer.append(row.passage)
                if count % 1000 == 0:
                    progress.reading(count)
            if count == 0:
                all_bad = f" ({sum(bad.count for bad in skipped.values())} bad rows were skipped)" if skipped else ""
                raise PassageFileError(f"{request.passages}: it holds no passages{all_bad}")
        progress.reading(count)
        return unfinished.begin(request.out, inputs, dim, count, skipped)
    except BaseException:
        unfinished.clear(request.out)
        raise


def _encode(directory: Path, journal: Journal, tower: Tower, threads: int, progress: Progress) -> tuple[Journal, float]:
    """Encodes what the journal does not count yet; returns the last journal, and the seconds that encoding took."""
    passages = Passages(directory)
    first = journal.encoded.rows
    if first == journal.count:
        return journal, 0.0
    progress.estimated(journal.count - first, chunks.estimate_s(passages, first, tower, threads))
    started_s = time.monotonic()
    with Appender(directory, journal, passages) as appender:
        texts_of_chunks = chunks.tokenized(passages, first, tower)
        for texts, embeddings in offline.embed_chunks(tower, texts_of_chunks, threads, progress.encoded):
            appender.append(embeddings, texts)
    return appender.journal, time.monotonic() - started_s


def describe(bundle: Bundle, request: BuildRequest, journal: Journal, directory: Path) -> IndexManifest:
    """The manifest of a filled directory; hashes what was encoded, the passages were when they were stored."""
    hashes = integrity.hash_files(directory / name for name in (VECTORS, TRUNCATED))
    files = {file.name: sha256 for file, sha256 in hashes.items()} | journal.stored
    return IndexManifest(
        schema_version=store.SCHEMA_VERSION,
        name=request.name,
        created_by=f"narrows {narrows.__version__}",
        tower_id=journal.inputs.tower_id,
        variant=request.variant,
        bundle=bundle.manifest.name,
        metric="inner_product",
        factory="Flat",
        dim=journal.dim,
        count=journal.count,
        truncated_count=journal.encoded.truncated_count,
        token_count=journal.encoded.token_count,
        cut_token_count=journal.encoded.cut_token_count,
        max_norm=journal.encoded.max_norm,
        source=request.passages.name,
        source_sha256=journal.inputs.source_sha256,
        skipped=journal.skipped,
        chunk_bytes=integrity.CHUNK_BYTES,
        files={name: IndexedFile((directory / name).stat().st_size, sha256) for name, sha256 in files.items()},
    )


def _report(
    request: BuildRequest, generation: str, manifest: IndexManifest, resumed_at: int, encode_s: float
) -> BuildReport:
    return BuildReport(
        index=str(request.out),
        generation=generation,
        count=manifest.count,
        dim=manifest.dim,
        truncated_count=manifest.truncated_count,
        token_count=manifest.token_count,
        cut_token_count=manifest.cut_token_count,
        skipped=manifest.skipped,
        size_bytes=sum(file.size_bytes for file in manifest.files.values()),
        resumed_at=resumed_at,
        encode_s=encode_s,
        passages_per_s=(manifest.count - resumed_at) / max(encode_s, 1e-9),
    )
