"""What is compared: Narrows' presets, FAISS called directly on the same files, hnswlib and usearch."""

import importlib.util
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.search.data import BLOCK_ROWS, Data
from narrows.index import filling, presets, structures
from narrows.index.opened import open_vectors
from narrows.index.presets import EXACT, Plan, SearchSettings, Wanted
from narrows.index.progress import Progress
from narrows.index.store import STORED, STRUCTURE, VECTORS

LINKS, EF_CONSTRUCTION = presets.LINKS, structures.EF_CONSTRUCTION
EFFORTS_OF_A_GRAPH = (128, 256, 512, 1024)
EFFORTS_OF_LISTS = (8, 16, 32, 64, 128, 256)

Queries = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


class System(Protocol):
    """Something that searches."""

    name: str
    build_s: float
    size_bytes: int  # of all its files

    def efforts(self) -> Sequence[int]:
        """What to try; a single 0 where there is no choice."""
        ...

    def use(self, effort: int) -> None:
        """Searches so hard from now on."""
        ...

    def search(self, queries: Queries, k: int) -> Rows:
        """The rows of the k best, (queries, k)."""
        ...


class Narrows:
    """A preset, as it is served."""

    def __init__(self, preset: str, data: Data, directory: Path, threads: int) -> None:
        """Makes its files in `directory`."""
        self.name, self.directory = f"narrows {preset}", directory
        self.plan = presets.plan(Wanted(preset), data.file.count, data.file.dim)
        self.build_s = _built_once(
            directory,
            data,
            lambda: filling.fill(directory, data.file, self.plan, data.max_norm, threads, _Filled(self.name)),
        )
        if self.plan.store == "fp32":
            (directory / VECTORS).unlink(missing_ok=True)
            (directory / VECTORS).hardlink_to(data.file.path)
        self.size_bytes = sum(
            (directory / name).stat().st_size
            for name in (*STORED[self.plan.store], *(() if self.plan.is_exact else (STRUCTURE,)))
        )
        # One thread: questions one at a time are what is measured.
        self._index: Any = open_vectors(directory, self.plan, data.file.dim, data.max_norm, data.id_rank, 1)

    def efforts(self) -> Sequence[int]:
        """See System."""
        return efforts(self.plan)

    def use(self, effort: int) -> None:
        """See System."""
        if effort:
            self._index.use(SearchSettings(self.plan.effort(effort), self.plan.search.refine))

    def search(self, queries: Queries, k: int) -> Rows:
        """See System."""
        rows: Rows = self._index.search(queries, k).rows
        return rows


class Faiss:
    """FAISS on the file that Narrows has made: its own scores, and no vectors beside it."""

    def __init__(self, made: Narrows) -> None:
        """Opens the same file."""
        self.name = made.name.replace("narrows", "faiss")
        self.build_s, self._plan = made.build_s, made.plan
        [file] = STORED[made.plan.store] if made.plan.is_exact else (STRUCTURE,)
        self.size_bytes = (made.directory / file).stat().st_size
        self._index = faiss.read_index(str(made.directory / file), faiss.IO_FLAG_MMAP_IFC)

    def efforts(self) -> Sequence[int]:
        """See System."""
        return efforts(self._plan)

    def use(self, effort: int) -> None:
        """See System."""
        if effort:
            structures.set_parameters(self._index, self._plan.effort(effort))

    def search(self, queries: Queries, k: int) -> Rows:
        """See System."""
        faiss.omp_set_num_threads(1)
        if self._plan.augmented:
            queries = np.hstack([queries, np.zeros((len(queries), 1), dtype=np.float32)])
        rows: Rows = self._index.search(queries, k)[1]
        return rows


class Hnswlib:
    """hnswlib on inner products, with the parameters of the preset hnsw."""

    name = "hnswlib"

    def __init__(self, data: Data, directory: Path, threads: int) -> None:
        """Builds it in `directory`, and loads it."""
        import hnswlib

        file = directory / "hnswlib.bin"

        def build() -> None:
            index = hnswlib.Index(space="ip", dim=data.file.dim)
            index.init_index(data.file.count, ef_construction=EF_CONSTRUCTION, M=LINKS, random_seed=100)
            for start, block in _blocks(data, self.name):
                index.add_items(block, np.arange(start, start + len(block)), num_threads=threads)
            index.save_index(str(file))

        self.build_s = _built_once(directory, data, build)
        self.size_bytes = file.stat().st_size
        self._index = hnswlib.Index(space="ip", dim=data.file.dim)
        self._index.load_index(str(file))
        self._index.set_num_threads(1)

    def efforts(self) -> Sequence[int]:
        """See System."""
        return EFFORTS_OF_A_GRAPH

    def use(self, effort: int) -> None:
        """See System."""
        self._index.set_ef(effort)

    def search(self, queries: Queries, k: int) -> Rows:
        """See System."""
        rows: Rows = self._index.knn_query(queries, k)[0].astype(np.int64)
        return rows


class Usearch:
    """usearch on inner products, with the parameters of hnsw, and vectors of `dtype` (its default is bf16)."""

    def __init__(self, dtype: str, data: Data, directory: Path, threads: int) -> None:
        """Builds it in `directory`, and loads it."""
        self.name = f"usearch {dtype}"
        from usearch.index import Index

        file = directory / "usearch.bin"

        def build() -> None:
            index = Index(
                ndim=data.file.dim, metric="ip", dtype=dtype, connectivity=LINKS, expansion_add=EF_CONSTRUCTION
            )
            for start, block in _blocks(data, self.name):
                index.add(np.arange(start, start + len(block)), block, threads=threads)
            index.save(str(file))

        self.build_s = _built_once(directory, data, build)
        self.size_bytes = file.stat().st_size
        self._index = Index.restore(str(file))

    def efforts(self) -> Sequence[int]:
        """See System."""
        return EFFORTS_OF_A_GRAPH

    def use(self, effort: int) -> None:
        """See System."""
        self._index.expansion_search = effort

    def search(self, queries: Queries, k: int) -> Rows:
        """See System."""
        found: Rows = self._index.search(queries, k, threads=1).keys.astype(np.int64)
        return found.reshape(len(queries), -1)


@dataclass(frozen=True, slots=True)
class Peer:
    """A library that may be missing."""

    module: str
    system: Callable[[Data, Path, int], Hnswlib | Usearch]


PEERS = {
    "hnswlib": Peer("hnswlib", Hnswlib),
    "usearch-f32": Peer("usearch", partial(Usearch, "f32")),
    "usearch-bf16": Peer("usearch", partial(Usearch, "bf16")),
}


def installed(name: str) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(PEERS[name].module) is not None


def efforts(plan: Plan) -> Sequence[int]:
    """What to try with a plan."""
    if plan.factory in EXACT or not plan.most_effort:
        return (0,)
    if plan.is_graph:
        return EFFORTS_OF_A_GRAPH
    return [effort for effort in EFFORTS_OF_LISTS if effort <= plan.lists]


class _Filled(Progress):
    """A bar of what is filled."""

    def __init__(self, name: str) -> None:
        self._bar = tqdm(desc=name, unit=" vectors", leave=False, file=sys.stderr)

    def filling(self, rows: int, count: int) -> None:
        self._bar.total = count
        self._bar.update(rows - self._bar.n)


def _built_once(directory: Path, data: Data, build: Callable[[], None]) -> float:
    """Builds in an empty `directory`, and writes down for how long; what is there of the same vectors is kept."""
    record, vectors = directory / "built.json", [data.file.count, data.file.dim, data.max_norm]
    if record.exists() and (built := json.loads(record.read_text()))["vectors"] == vectors:
        build_s: float = built["build_s"]
        return build_s
    # What an interrupted build left is thrown away: a build that went on from there would not be timed whole.
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    started_s = time.perf_counter()
    build()
    build_s = time.perf_counter() - started_s
    record.write_text(json.dumps({"vectors": vectors, "build_s": build_s}))
    return build_s


def _blocks(data: Data, name: str) -> Iterator[tuple[int, Queries]]:
    progress = _Filled(name)
    for start in range(0, data.file.count, BLOCK_ROWS):
        yield start, data.file.read(start, start + BLOCK_ROWS)
        progress.filling(min(start + BLOCK_ROWS, data.file.count), data.file.count)
