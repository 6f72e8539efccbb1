"""Vectors on disk -> a FAISS structure: trained on a sample, filled in one pass, and kept at every stage.

The vectors are read, not mapped, block by block, so memory holds the structure and a block. The structure is written to
its file when it is trained, and every so often while it is filled; a build that was stopped goes on from there.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

from narrows import durable, manifests
from narrows.errors import IndexFileError
from narrows.index import structures
from narrows.index.presets import EXHAUSTIVE, Plan
from narrows.index.progress import Progress
from narrows.index.store import HALVES, STRUCTURE
from narrows.index.vector_file import DTYPE, LARGEST_HALF, VectorFile, header

FILLING = "filling.json"
FILLING_VERSION = 1
BLOCK_ROWS = 4096
TRAINING_ROWS_A_LIST = 64
TRAINING_ROWS = 65_536  # at least: what FAISS takes for product quantizers
SEED = 0
SAVED_EVERY_S = 900.0

Block = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Filling:
    """What a half-filled structure is of."""

    schema_version: int
    plan: Plan
    count: int
    dim: int
    max_norm: float


def fill(directory: Path, vectors: VectorFile, plan: Plan, max_norm: float, threads: int, progress: Progress) -> None:
    """Makes the plan's files in `directory`, or goes on making them; does nothing where they are complete.

    Args:
        directory: where the build is.
        vectors: float32; `max_norm` is that of the longest.
        plan: what to make.
        max_norm: see above.
        threads: for training and filling. A graph depends on their timing; everything else is the same for any number.
        progress: told how far it is.

    Raises:
        IndexFileError: FAISS does not know the factory string or cannot train it, or the vectors do not fit into half
            precision.
    """
    if plan.store == "fp16":
        _write_halves(directory / HALVES, vectors, max_norm)
    if not plan.is_exact:
        _fill_structure(directory, vectors, plan, max_norm, threads, progress)


def _write_halves(file: Path, vectors: VectorFile, max_norm: float) -> None:
    if max_norm > LARGEST_HALF:
        raise IndexFileError(
            f"the longest vector has the norm {max_norm:g}, beyond half precision's {LARGEST_HALF:g}: choose a preset "
            "that holds none in half precision (flat, sq8, hnsw, ivf-sq8)"
        )
    if file.exists():
        return
    with durable.new_file(file) as out:
        out.write(header(vectors.dim, vectors.count, "fp16"))
        for start in range(0, vectors.count, BLOCK_ROWS):
            out.write(vectors.read(start, start + BLOCK_ROWS).astype(DTYPE["fp16"]).tobytes())


def _fill_structure(
    directory: Path, vectors: VectorFile, plan: Plan, max_norm: float, threads: int, progress: Progress
) -> None:
    faiss.omp_set_num_threads(threads)
    file = directory / STRUCTURE
    wanted = Filling(FILLING_VERSION, replace(plan, search=EXHAUSTIVE), vectors.count, vectors.dim, max_norm)
    if _read(directory / FILLING) != wanted:
        structures.make(plan, vectors.dim)  # a wrong factory string takes nothing away
        file.unlink(missing_ok=True)
        durable.write_file(directory / FILLING, manifests.encode(wanted))
    index = _begun(file)
    if index is None:
        index = structures.make(plan, vectors.dim)
        _train(index, vectors, plan, max_norm, progress)
        _save(index, file)
    saved_s, saved = time.monotonic(), index.ntotal
    prepared = _preparation(plan, max_norm)
    progress.filling(index.ntotal, vectors.count)
    for start in range(index.ntotal, vectors.count, BLOCK_ROWS):
        index.add(prepared(vectors.read(start, start + BLOCK_ROWS)))
        progress.filling(index.ntotal, vectors.count)
        if time.monotonic() - saved_s > SAVED_EVERY_S:
            _save(index, file)
            saved_s, saved = time.monotonic(), index.ntotal
    if saved < index.ntotal:
        _save(index, file)


def _begun(file: Path) -> faiss.Index | None:
    """What was saved before; None where there is nothing, or it cannot be read."""
    try:
        return faiss.read_index(str(file)) if file.exists() else None
    except RuntimeError:
        return None


def _preparation(plan: Plan, max_norm: float) -> Callable[[Block], Block]:
    if plan.augmented:
        return lambda block: structures.augmented(block, max_norm)
    return lambda block: block


def _train(index: faiss.Index, vectors: VectorFile, plan: Plan, max_norm: float, progress: Progress) -> None:
    if index.is_trained:
        return
    sample = vectors.sample(max(TRAINING_ROWS, TRAINING_ROWS_A_LIST * plan.lists), SEED)
    progress.training(len(sample))
    try:
        index.train(_preparation(plan, max_norm)(sample))
    except (RuntimeError, MemoryError) as error:
        reason = structures.reason(error)
        raise IndexFileError(
            f"FAISS cannot train {plan.factory} on {len(sample)} vectors ({reason}): choose another preset; flat needs "
            "no training"
        ) from None


def _save(index: faiss.Index, file: Path) -> None:
    with durable.new_file(file) as out:
        faiss.write_index(index, faiss.PyCallbackIOWriter(out.write))  # type: ignore[attr-defined]  # not in its stubs


def _read(file: Path) -> Filling | None:
    try:
        return manifests.decode(file.read_bytes(), Filling, FILLING_VERSION, file, IndexFileError)
    except (FileNotFoundError, IndexFileError):
        return None
