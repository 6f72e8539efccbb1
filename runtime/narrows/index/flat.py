"""Exact search over all vectors, the same whoever else is asking.

FAISS finds the candidates; its float32 scores move by 2-3e-5 with the size of the batch and may swap ranks. So more
candidates than asked for are re-scored in float64, in one fixed order of summation, and rounded to float32. The
result counts only if no passage left out could still belong to it, by the bound on a float32 inner product of any
order of summation: |error| <= gamma_d |q| |v| (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
Otherwise more candidates are fetched.
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
UNIT_ROUNDOFF = 2.0**-24


def write(vectors: faiss.IndexFlatIP, file: Path) -> None:
    """Writes a flat FAISS index."""
    faiss.write_index(vectors, str(file))


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
        self._vectors = faiss.rev_swig_ptr(self._index.get_xb(), self.count * self.dim).reshape(self.count, self.dim)
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
            approximate, candidates = self._index.search(np.ascontiguousarray(queries[open_queries]), fetch)
            left = []
            for number, query in enumerate(open_queries):
                exact = self._exact_scores(queries[query], candidates[number])
                order = np.lexsort((self._id_rank[candidates[number]], -exact))[:k]
                highest_left_out = float(approximate[number, -1]) + self._error_bound(queries[query])
                if fetch < self.count and np.float32(highest_left_out) >= exact[order[-1]]:
                    left.append(query)
                else:
                    scores[query], rows[query] = exact[order], candidates[number][order]
            open_queries = np.array(left, dtype=np.int64)
            fetch = min(self.count, fetch * GROWTH)
        return SearchHits(scores, rows)

    def _exact_scores(self, query: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Inner products in float64, where each product is exact, rounded once to float32."""
        products = self._vectors[rows].astype(np.float64) * query.astype(np.float64)
        scores: npt.NDArray[np.float32] = products.sum(axis=1).astype(np.float32)
        return scores

    def _error_bound(self, query: npt.NDArray[np.float32]) -> float:
        gamma = self.dim * UNIT_ROUNDOFF / (1 - self.dim * UNIT_ROUNDOFF)
        norm = float(np.linalg.norm(query.astype(np.float64)))
        return 1.001 * gamma * norm * self.max_norm  # 1.001: the roundings of this very line
