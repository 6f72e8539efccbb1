"""An index opened for searching: the files of its current generation, checked, with vectors and passages mapped."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrows.bundle import Bundle
from narrows.errors import IndexFileError
from narrows.index.approximate import ApproximateIndex
from narrows.index.corpus import Corpus
from narrows.index.flat import FlatIndex
from narrows.index.presets import Plan
from narrows.index.store import (
    STORED,
    STRUCTURE,
    IndexManifest,
    check_towers,
    current_generation,
    damages,
    read_sealed_manifest,
)
from narrows.integrity import Verify
from narrows.passages import Passages


@dataclass(frozen=True, slots=True)
class OpenIndex:
    """An opened generation."""

    manifest: IndexManifest
    generation: str
    vectors: FlatIndex | ApproximateIndex
    passages: Passages

    @property
    def corpus(self) -> Corpus:
        """What a front needs of it."""
        return Corpus(self.manifest, self.generation, self.passages)


def open_index(path: Path, bundle: Bundle, threads: int, verify: Verify = "full") -> OpenIndex:
    """Opens the current generation and checks that its files are unchanged and the bundle's context encoder filled it.

    When a build replaces the generation meanwhile, the new one is opened.

    Raises:
        IndexFileError: anything missing, changed or unreadable.
        MismatchError: another tower filled the index.
    """
    while True:
        generation, manifest, manifest_sha256 = read_sealed_manifest(path)
        check_towers(path, manifest, bundle)
        try:
            for message in damages(path, generation, manifest, manifest_sha256, verify):
                raise IndexFileError(f"{message}; build the index again")
            return open_generation(path / generation, generation, manifest, threads)
        except (IndexFileError, FileNotFoundError):
            if current_generation(path) == generation:
                raise


def open_generation(directory: Path, generation: str, manifest: IndexManifest, threads: int) -> OpenIndex:
    """Opens a generation whose files were found unchanged.

    Raises:
        IndexFileError: the vectors cannot be read, or contradict the manifest.
    """
    passages = Passages(directory)
    vectors = open_vectors(directory, manifest.plan, manifest.dim, manifest.max_norm, passages.id_rank, threads)
    if vectors.dim != manifest.dim or vectors.count != manifest.count:
        raise IndexFileError(f"{directory} does not hold {manifest.count} x {manifest.dim}: build it again")
    return OpenIndex(manifest, generation, vectors, passages)


def open_vectors(
    directory: Path, plan: Plan, dim: int, max_norm: float, id_rank: npt.NDArray[np.uint32], threads: int
) -> FlatIndex | ApproximateIndex:
    """Opens the files of a plan for searching; `id_rank[row]` is the place of a row's id among all ids in byte order.

    Raises:
        IndexFileError: they cannot be read, or hold another number of vectors.
    """
    stored = None
    if plan.store != "none":
        [name] = STORED[plan.store]
        stored = FlatIndex(directory / name, id_rank, max_norm, threads, plan.store)
    if plan.is_exact and stored:
        return stored
    return ApproximateIndex(directory / STRUCTURE, dim, stored, id_rank, max_norm, plan.search, threads)
