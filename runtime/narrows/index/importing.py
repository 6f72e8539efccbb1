"""`narrows index import`: embeddings that others have made -> an index, if the bundle's context encoder agrees.

Passages are stored as in a build; each vector goes to the row of its id; a sample of the passages is encoded again.
Only when that agrees is the index the tower's (contract 4). The rest is as in every build (narrows.index.sealing).
An import that was stopped goes on once all vectors are in, and the sample is encoded again; before, it begins anew.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

import narrows
from narrows.bundle import REFERENCE_VARIANT, Bundle
from narrows.errors import EmbeddingFileError, MismatchError
from narrows.index import chunks, embedding_files, sealing, unfinished
from narrows.index.agreement import Agreement, compare
from narrows.index.embedding_files import EmbeddingFiles
from narrows.index.progress import Progress
from narrows.index.sealing import Origin
from narrows.index.store import TRUNCATED, VECTORS
from narrows.index.storing import fingerprint, store_passages
from narrows.index.target import BuildReport, Target, check, held, report
from narrows.index.unfinished import BUILD, Encoded, Inputs, Journal
from narrows.index.vector_file import VectorFile, header
from narrows.offline import embed
from narrows.passages import Passages
from narrows.towers import Tower, load_towers

NAMED = 3  # ids named in an error
NO_ROW = -1


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What to import.

    `embeddings` are files or directories (narrows.index.embedding_files), `id_prefix` is what their ids have before
    those of `passages`; `sample` passages, chosen by `seed`, are encoded again.
    """

    embeddings: Sequence[Path]
    passages: Path
    id_prefix: str = ""
    skip_bad: bool = False
    sample: int = 200
    seed: int = 0


def import_index(
    bundle: Bundle, request: ImportRequest, target: Target, progress: Progress
) -> tuple[BuildReport, Agreement | None]:
    """Makes an index of them; the agreement is None where all that was left to do was to clean up.

    Raises:
        EmbeddingFileError: the embeddings cannot be read, are not of the tower's dimension, have an id twice, or one
            of no passage; or a passage has none.
        PassageFileError: the passages break their format.
        MismatchError: the sample does not agree: they are another encoder's, or of other texts.
        IndexFileError: as when building.
    """
    check(target)
    found = embedding_files.find(request.embeddings)
    tower = load_towers(bundle, REFERENCE_VARIANT, 1, ["context_encoder"])["context_encoder"]
    passages_sha256 = fingerprint(request.passages)
    inputs = _inputs(tower, request, found, passages_sha256)
    with held(target, inputs) as begun:
        if begun.done:
            return report(target, *begun.done, begun.done[1].count, 0.0), None
        journal = begun.journal
        if journal:
            progress.resuming(journal.encoded.rows, journal.count)
        else:
            journal = _store(tower.manifest.dim, request, found, inputs, target, progress)
        progress.step("encoding a sample again")
        try:
            agreement = _agreement(tower, target.out / BUILD, journal, request, target.threads)
        except MismatchError:
            unfinished.clear(target.out)  # going on with it would find the same
            raise
        source = f"{request.passages.name}, vectors of {found.files[0].name}" + ", ..." * (len(found.files) > 1)
        origin = Origin(bundle.manifest.name, source, passages_sha256, agreement=agreement)
        generation, manifest = sealing.seal(bundle, journal, origin, target, progress)
    return report(target, generation, manifest, journal.count, 0.0), agreement


def _inputs(tower: Tower, request: ImportRequest, found: EmbeddingFiles, passages_sha256: str) -> Inputs:
    """Embeddings are known by name, size and time: reading them all to hash them would take as long as the import."""
    states = [(file.name, (state := file.stat()).st_size, state.st_mtime_ns) for file in found.files]
    source = repr((states, passages_sha256, request.id_prefix))
    return Inputs(
        program=f"narrows {narrows.__version__}, importing",
        tower_id=tower.manifest.tower_id,
        variant=REFERENCE_VARIANT,
        model_sha256="",
        source_sha256=hashlib.sha256(source.encode()).hexdigest(),
        skip_bad=request.skip_bad,
    )


def _store(
    dim: int, request: ImportRequest, found: EmbeddingFiles, inputs: Inputs, target: Target, progress: Progress
) -> Journal:
    """Fills INDEX/.build with passages and vectors, and begins its journal; leaves nothing on failure."""
    unfinished.clear(target.out)
    directory = target.out / BUILD
    directory.mkdir()
    try:
        count, skipped = store_passages(request.passages, directory, request.skip_bad, None, progress)
        sealing.check_plan(target, count, dim, progress)
        left_out = sum(rows.count for rows in skipped.values())
        max_norm = _write_vectors(directory / VECTORS, Passages(directory), dim, found, request, left_out, progress)
        (directory / TRUNCATED).write_bytes(b"")  # the encoder that cut the texts was another program
        return unfinished.adopt(target.out, inputs, dim, Encoded(rows=count, max_norm=max_norm), skipped)
    except BaseException:
        unfinished.clear(target.out)
        raise


def _write_vectors(
    file: Path,
    passages: Passages,
    dim: int,
    found: EmbeddingFiles,
    request: ImportRequest,
    left_out: int,
    progress: Progress,
) -> float:
    """Writes each vector at the row of its id; returns the longest's norm.

    So many rows of the passages were left out: as many vectors may be of no passage, or the second of one.
    """
    start = header(dim, len(passages))
    seen = np.zeros(len(passages), dtype=bool)
    max_norm, written, spare = 0.0, 0, 0
    with file.open("wb") as out:
        out.write(start)
        for block in embedding_files.read(found, request.id_prefix):
            if block.vectors.shape[1] != dim:
                raise EmbeddingFileError(
                    f"{found.files[0]} has vectors of {block.vectors.shape[1]} dimensions, the bundle's context "
                    f"encoder makes {dim}: give the bundle that made them"
                )
            rows = np.fromiter(_rows(block.ids, passages), dtype=np.int64, count=len(block.ids))
            wanted = _wanted(rows, seen)
            spare += len(rows) - int(wanted.sum())
            if spare > left_out:
                raise _too_many(block.ids, rows, wanted, request)
            rows, vectors = rows[wanted], block.vectors[wanted]
            seen[rows] = True
            if not len(rows):
                continue
            max_norm = max(max_norm, float(np.linalg.norm(vectors.astype(np.float64), axis=1).max()))
            for first, last in _runs(rows):
                out.seek(len(start) + int(rows[first]) * dim * 4)
                out.write(np.ascontiguousarray(vectors[first:last], dtype="<f4").data)
            written += len(rows)
            progress.importing(written, len(passages))
        out.flush()
        os.ftruncate(out.fileno(), len(start) + len(passages) * dim * 4)
    missing = np.flatnonzero(~seen)
    if len(missing):
        ids = ", ".join(repr(passage.id) for passage in passages.get(missing[:NAMED], with_text=False))
        raise EmbeddingFileError(
            f"{len(missing)} of {len(passages)} passages have no vector (the first: {ids}): give all shards, and the "
            "passages that were encoded"
        )
    return max_norm


def _rows(ids: Sequence[str], passages: Passages) -> Iterator[int]:
    """The rows of ids, each most often the one after the last; NO_ROW for an id that no passage has."""
    row = NO_ROW
    for passage_id in ids:
        guess = row + 1
        if guess < len(passages) and passages.id_bytes(guess) == passage_id.encode():
            row = guess
        else:
            found = passages.find(passage_id)
            row = NO_ROW if found is None else found
        yield row


def _wanted(rows: npt.NDArray[np.int64], seen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which of these are rows, and come for the first time."""
    wanted = np.zeros(len(rows), dtype=bool)
    wanted[np.unique(rows, return_index=True)[1]] = True
    wanted &= (rows != NO_ROW) & ~seen[rows]
    return wanted


def _too_many(
    ids: Sequence[str], rows: npt.NDArray[np.int64], wanted: npt.NDArray[np.bool_], request: ImportRequest
) -> EmbeddingFileError:
    """What is wrong with the last vector of some that have no place."""
    last = int(np.flatnonzero(~wanted)[-1])
    if rows[last] != NO_ROW:
        return EmbeddingFileError(f"the id {ids[last]!r} has two vectors: give each once")
    prefix = "" if request.id_prefix else "; where the ids have a prefix, give it: --id-prefix wiki:"
    fewer = ", nor were so many of its rows left out" if request.skip_bad else ""
    return EmbeddingFileError(
        f"there is a vector of {ids[last]!r}, and {request.passages} has no such id{fewer}{prefix}"
    )


def _runs(rows: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Where rows that follow one another begin and end."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *breaks.tolist(), len(rows)]
    yield from pairwise(edges)


def _agreement(tower: Tower, stored: Path, journal: Journal, request: ImportRequest, threads: int) -> Agreement:
    """Encodes the sample again.

    Raises:
        MismatchError: a passage of it has another vector.
    """
    passages = Passages(stored)
    vectors = VectorFile(stored / VECTORS, journal.dim, journal.count)
    rows = np.sort(np.random.default_rng(request.seed).permutation(len(passages))[: request.sample])
    again = embed(tower, chunks.tokenize(passages, tower, rows), threads)
    compared = compare(again, vectors.rows(rows))
    found, wrong = compared.agreement, np.flatnonzero(compared.wrong)
    if len(wrong):
        ids = ", ".join(repr(passage.id) for passage in passages.get(rows[wrong[:NAMED]], with_text=False))
        raise MismatchError(
            f"{len(wrong)} of {len(rows)} passages, encoded again, have another vector than the one to import (the "
            f"first: {ids}; lowest cosine {found.lowest_cosine:.4f}, lengths off by up to "
            f"{found.largest_norm_difference:.1%}): the vectors are another encoder's, or of other texts. Check "
            "--bundle and its text preset, --passages, and --id-prefix"
        )
    return found
