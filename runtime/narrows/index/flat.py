"""Exact search over all vectors, the same whoever else is asking.

FAISS finds the candidates; its float32 scores move by 2-3e-5 with the size of the batch and may swap ranks. So more
candidates than asked for are re-scored in float64, in one fixed order of summation, and rounded to float32. The
result counts only if no passage left out could still belong to it, by the bound on a float32 inner product of any
order of summation: |error| <= gamma_d |q| |v| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
Otherwise more candidates are fetched; a query with thousands of near-ties is scored against all vectors instead.
"""

from pathlib import Path
from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt

from narrows.errors import IndexFileError
from narrows.index import SearchHits

MARGIN = 16  # candidates fetched beyond k at first
GROWTH = 4
MAX_CANDIDATES = 4096  # beyond so many, one pass over all vectors is cheaper
BLOCK_ROWS = 8192  # scored at once in float64: bounds the memory of a pass
SMALLEST_NORMAL = 2.0**-126  # products below it may be flushed to zero
UNIT_ROUNDOFF = 2.0**-24

Best = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def header(dim: int, count: int) -> bytes:
    """What comes before the vectors, float32 (count, dim), in the file of a flat inner-product index.

    So a file can grow vector by vector on the disk. FAISS writes the header itself, of an empty index that is told its
    size; only the last field, the number of floats, is set here (FAISS, impl/index_write.cpp, code `IxFI`).
    """
    index = faiss.IndexFlatIP(dim)
    index.ntotal = count
    written: bytes = faiss.serialize_index(index).tobytes()
    return written[:-8] + (count * dim).to_bytes(8, "little")


class FlatIndex:
    """A flat FAISS index, mapped from its file. `search` may be called from any one thread at a time."""

    affinity: Literal["own", "device"] = "own"

    def __init__(self, file: Path, id_rank: npt.NDArray[np.uint32], max_norm: float, threads: int) -> None:
        """Opens `file`; `id_rank[row]` is the place of a row's id among all ids in byte order.

        Raises:
            IndexFileError: FAISS cannot read the file, or it is not a flat inner-product index of that many rows.
        """
        try:
            if file.stat().st_size < 4 * len(id_rank):  # FAISS itself crashes on some files that are cut short
                raise OSError("too short")
            self._index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
        except (OSError, RuntimeError) as error:
            raise IndexFileError(f"{file} cannot be read by FAISS ({error}); build the index again") from None
        if not isinstance(self._index, faiss.IndexFlatIP) or self._index.ntotal != len(id_rank):
            raise IndexFileError(f"{file} is not a flat inner-product index of {len(id_rank)} vectors; build it again")
        self.count: int = self._index.ntotal
        self.dim: int = self._index.d
        self.max_norm = max_norm
        self.vectors: npt.NDArray[np.float32] = faiss.rev_swig_ptr(self._index.get_xb(), self.count * self.dim).reshape(
            self.count, self.dim
        )
        self._id_rank = id_rank
        self._threads = threads

    def search(self, queries: npt.NDArray[np.float32], k: int) -> SearchHits:
        """Finds the k best passages of each query, exactly.

        Args:
            queries: float32 (queries, dim), finite.
            k: passages wanted; min(k, count) are returned.
        """
        faiss.omp_set_num_threads(self._threads)  # a setting of the calling thread
        k = min(k, self.count)
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        open_queries = np.arange(len(queries))
        fetch = min(self.count, k + MARGIN)
        while len(open_queries):
            if fetch > max(MAX_CANDIDATES, k + MARGIN):
                for query in open_queries:
                    scores[query], rows[query] = self._scan(queries[query], k)
                break
            approximate, candidates = self._index.search(np.ascontiguousarray(queries[open_queries]), fetch)
            left = []
            for number, query in enumerate(open_queries):
                best_scores, best_rows = self._best(queries[query], candidates[number], k)
                highest_left_out = float(approximate[number, -1]) + self._error_bound(queries[query])
                if fetch < self.count and np.float32(highest_left_out) >= best_scores[-1]:
                    left.append(query)
                else:
                    scores[query], rows[query] = best_scores, best_rows
            open_queries = np.array(left, dtype=np.int64)
            fetch = min(self.count, fetch * GROWTH)
        return SearchHits(scores, rows)

    def _best(self, query: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], k: int) -> Best:
        """The k best of some rows: their inner products in float64, rounded once to float32; and the rows."""
        exact = np.empty(len(rows), dtype=np.float32)
        wide_query = query.astype(np.float64)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = self.vectors[rows[start : start + BLOCK_ROWS]].astype(np.float64)
            block *= wide_query  # each product is exact: 24 + 24 bits fit into 53
            exact[start : start + BLOCK_ROWS] = block.sum(axis=1)
        order = np.lexsort((self._id_rank[rows], -exact))[:k]
        return exact[order], rows[order]

    def _scan(self, query: npt.NDArray[np.float32], k: int) -> Best:
        """The k best of all rows, in blocks."""
        rows = np.empty(0, dtype=np.int64)
        step = max(BLOCK_ROWS, k)
        for start in range(0, self.count, step):
            block = np.arange(start, min(start + step, self.count))
            rows = self._best(query, np.concatenate([rows, block]), k)[1]
        return self._best(query, rows, k)

    def _error_bound(self, query: npt.NDArray[np.float32]) -> float:
        gamma = self.dim * UNIT_ROUNDOFF / (1 - self.dim * UNIT_ROUNDOFF)
        norm = float(np.linalg.norm(query.astype(np.float64)))
        # 1.001 for the roundings of this very line.
        return 1.001 * gamma * norm * self.max_norm + self.dim * SMALLEST_NORMAL
