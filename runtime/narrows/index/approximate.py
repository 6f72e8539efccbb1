"""Approximate search: FAISS's structures, with candidates scored again where vectors are stored beside them.

An answer does not depend on who else is asking: FAISS compares many queries at once with the centroids of its lists by
a matrix product, whose last bits, and so the lists it picks, move with their number. So each query is searched alone,
and threads share the queries; that costs nothing (decision 053). Scores are FAISS's, of float32 sums.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, cast

import faiss
import numpy as np
import numpy.typing as npt

from narrows.errors import IndexFileError
from narrows.index import Fidelity, SearchHits, structures
from narrows.index.flat import FlatIndex
from narrows.index.presets import SearchSettings
from narrows.index.rescoring import Best, Rows, inner_products, ranked
from narrows.index.vector_file import read_mapped

MARGIN = 16  # candidates fetched beyond k: of equal scores at the cut, the lowest ids are wanted


class ApproximateIndex:
    """A FAISS structure, mapped from its file where FAISS can. `search` may be called from one thread at a time."""

    affinity: Literal["own", "device"] = "own"

    def __init__(
        self,
        file: Path,
        dim: int,
        stored: FlatIndex | None,
        id_rank: npt.NDArray[np.uint32],
        max_norm: float,
        settings: SearchSettings,
        threads: int,
    ) -> None:
        """Opens `file`; `stored` holds the vectors that candidates are scored with, if any.

        Raises:
            IndexFileError: FAISS cannot read the file, or it does not hold that many vectors of `dim`.
        """
        self.count, self.dim, self.max_norm = len(id_rank), dim, max_norm
        self._index = read_mapped(file, 0)
        self._is_graph = structures.kind(self._index) == "graph"
        self._is_augmented = self._index.metric_type == faiss.METRIC_L2
        if self._index.ntotal != self.count or self._index.d != dim + self._is_augmented:
            raise IndexFileError(f"{file} does not hold {self.count} vectors of {dim}; build the index again")
        self.stored = stored
        self._refining: Any = None
        self.fidelity: Fidelity = "coded"
        if stored is not None:
            self.fidelity = stored.fidelity
            if not self._is_augmented:
                self._refining = faiss.IndexRefine(self._index, stored.faiss_index)
        elif self._is_graph and isinstance(faiss.downcast_index(self._index.storage), faiss.IndexFlat):
            self.fidelity = "fp32"
        self._id_rank = id_rank
        self._pool = ThreadPoolExecutor(threads, "narrows-search", _search_with_one_thread)
        self.use(settings)

    def use(self, settings: SearchSettings) -> None:
        """Searches so hard from now on.

        Raises:
            IndexFileError: the structure has no such parameters.
        """
        structures.set_parameters(self._index, settings.parameters)
        if self._refining is not None:
            self._refining.k_factor = settings.refine
        self.settings = settings

    def sample(self, count: int) -> npt.NDArray[np.float32]:
        """Up to so many vectors like its own, float32 (count, dim): it need not hold any as they were."""
        found = np.random.default_rng(0).standard_normal((min(count, self.count), self.dim)).astype(np.float32)
        found *= self.max_norm / np.linalg.norm(found, axis=1, keepdims=True)
        return found

    def search(self, queries: npt.NDArray[np.float32], k: int) -> SearchHits:
        """Finds about the k best passages of each query; always min(k, count) of them.

        Args:
            queries: float32 (queries, dim), finite.
            k: passages wanted.
        """
        k = min(k, self.count)
        found: Iterable[Best]
        if len(queries) == 1:  # handing it to another thread takes longer than some searches
            _search_with_one_thread()
            found = [self._search_one(queries[0], k)]
        else:
            found = self._pool.map(lambda query: self._search_one(query, k), queries)
        scores, rows = zip(*found, strict=True) if len(queries) else ((), ())
        return SearchHits(
            np.array(scores, dtype=np.float32).reshape(-1, k), np.array(rows, dtype=np.int64).reshape(-1, k)
        )

    def _search_one(self, query: npt.NDArray[np.float32], k: int) -> Best:
        asked = np.append(query, np.float32(0)) if self._is_augmented else query
        for scores, rows in self._attempts(np.ascontiguousarray(asked, dtype=np.float32)[None], k):
            found = rows[0] >= 0
            if found.sum() >= k:
                own, rows = scores[0][found], rows[0][found]  # of one query alone: the same whoever else is asking
                best = inner_products(self.decode, query, rows) if self._is_augmented else own
                return ranked(best, rows, self._id_rank, k)
        # Codes that are scanned fast do not tell vectors apart for some queries, such as zeros; others overflow.
        every = np.arange(self.count)
        return ranked(inner_products(self.decode, query, every), every, self._id_rank, k)

    def _attempts(self, asked: npt.NDArray[np.float32], k: int) -> Iterator[tuple[npt.NDArray[np.float32], Rows]]:
        """Scores and rows by the settings; and where these find fewer than k, by ever more lists, or past the graph."""
        fetch = min(self.count, k + MARGIN)
        if self._refining is not None:  # FAISS picks the best of refine times as many by the vectors stored beside it
            yield self._refining.search(asked, fetch)
            factor, make = self.settings.refine, cast(Any, faiss)
            for probing in structures.probing(self._index):
                parameters = make.IndexRefineSearchParameters(k_factor=factor, base_index_params=probing)
                yield self._refining.search(asked, fetch, params=parameters)
            return
        fetch = min(self.count, max(fetch, int(k * self.settings.refine)))
        yield self._index.search(asked, fetch)
        if self._is_graph:  # a part of it that no link leads out of
            yield faiss.downcast_index(self._index.storage).search(asked, fetch)
        for probing in structures.probing(self._index):
            yield self._index.search(asked, fetch, params=probing)

    def decode(self, rows: Rows) -> npt.NDArray[np.float32]:
        """The vectors of some rows as they are held, float32 (rows, dim): those stored beside it, if any."""
        if self.stored is not None:
            return self.stored.decode(rows)
        return structures.decode(self._index, rows)[:, : self.dim]


def _search_with_one_thread() -> None:
    faiss.omp_set_num_threads(1)  # a setting of the calling thread
