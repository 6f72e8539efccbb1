"""Vectors and questions to search with: real ones of an index, or synthetic ones, for their speed only."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrows.bundle import open_bundle
from narrows.index import store
from narrows.index.flat import FlatIndex
from narrows.index.store import VECTORS
from narrows.index.tuning import Exam
from narrows.index.vector_file import VectorFile, header
from narrows.offline import embed
from narrows.towers import load_towers
from narrows_tools.evaluation.questions import read, sample

BLOCK_ROWS = 16_384
RANK = 64  # of the synthetic vectors' main part: embeddings vary in few directions much more than in the others
NOISE = 0.5  # of each component, where the main part has 1
SEED = 0


@dataclass(frozen=True, slots=True)
class Data:
    """Vectors in a file, and the questions with the exact scores of their k-th best."""

    name: str
    file: VectorFile
    max_norm: float
    exam: Exam

    @property
    def id_rank(self) -> npt.NDArray[np.uint32]:
        """Ids ascend with the rows."""
        return np.arange(self.file.count, dtype=np.uint32)


def real(index: Path, bundle_path: Path, questions: Path, count: int, k: int, threads: int) -> Data:
    """The vectors of a flat index, and questions encoded by its bundle."""
    generation, manifest = store.read_manifest(index)
    file = VectorFile(index / generation / VECTORS, manifest.dim, manifest.count)
    bundle = open_bundle(bundle_path)
    tower = load_towers(bundle, "fp32", 1, ["question_encoder"])["question_encoder"]
    texts = [question.text for question in sample(read(questions), count, SEED)]
    queries = embed(tower, tower.tokenizer.questions(texts), threads)
    return _data(f"{manifest.count:,} real vectors of {manifest.dim}", file, manifest.max_norm, queries, k, threads)


def synthetic(directory: Path, count: int, dim: int, questions: int, k: int, threads: int) -> Data:
    """X = z W / 8 + NOISE e, with z of RANK and W, z, e standard normal; questions are drawn the same way.

    They lie in no clusters, so recall on them says little about real ones: they are for speed.
    """
    weights = np.random.default_rng(SEED).standard_normal((RANK, dim), dtype=np.float32)

    def drawn(rows: int, seed: int) -> npt.NDArray[np.float32]:
        random = np.random.default_rng([SEED, seed])
        main = random.standard_normal((rows, RANK), dtype=np.float32) @ weights / np.float32(RANK**0.5)
        return main + NOISE * random.standard_normal((rows, dim), dtype=np.float32)

    path = directory / f"synthetic-{count}-{dim}.faiss"
    max_norm = 0.0
    with path.open("wb") as out:
        out.write(header(dim, count))
        for number, start in enumerate(range(0, count, BLOCK_ROWS), start=1):
            block = drawn(min(BLOCK_ROWS, count - start), number)
            max_norm = max(max_norm, float(np.linalg.norm(block.astype(np.float64), axis=1).max()))
            out.write(block.tobytes())
    file = VectorFile(path, dim, count)
    return _data(f"{count:,} synthetic vectors of {dim}", file, max_norm, drawn(questions, 0), k, threads)


def _data(name: str, file: VectorFile, max_norm: float, queries: npt.NDArray[np.float32], k: int, threads: int) -> Data:
    exact = FlatIndex(file.path, np.arange(file.count, dtype=np.uint32), max_norm, threads)
    return Data(name, file, max_norm, Exam.of(exact, queries, k))
