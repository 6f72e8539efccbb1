"""Exact search over all vectors, the same whoever else is asking.

FAISS finds the candidates; its float32 scores move by 2-3e-5 with the size of the batch and may swap ranks, and those
of vectors in half precision are rougher still. So more candidates than asked for are re-scored in float64, in one fixed
order of summation, and rounded to float32. The result counts only if no passage left out could still belong to it, by
the bound on the error of the approximate scores (narrows.index.candidates). Otherwise more candidates are fetched; a
query with thousands of near-ties is scored against all vectors instead. Hence the answers are those of the float32
vectors in the file, to the last bit, wherever candidates come from.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrows.index import Fidelity, Precision, SearchHits
from narrows.index.candidates import Candidates, CpuCandidates, error_bound, rounded_norm
from narrows.index.rescoring import BLOCK_ROWS, Best, inner_products, ranked
from narrows.index.vector_file import open_mapped

MARGIN = 16  # candidates fetched beyond k at first
GROWTH = 4
MAX_CANDIDATES = 4096  # beyond so many, one pass over all vectors is cheaper
QUERIES_A_TASK = 32  # re-scored by one thread in about 1.5 ms: fewer are not worth handing out

Queries = npt.NDArray[np.float32]


def _next(wanted: int, most: int) -> int:
    """How many candidates to fetch where `wanted` were too few: all that a source can give, before another is asked."""
    limits = [limit for limit in sorted((most, MAX_CANDIDATES)) if wanted < limit]
    return min([wanted * GROWTH, *limits])


class FlatIndex:
    """A flat FAISS index, mapped from its file. `search` may be called from any one thread at a time."""

    def __init__(
        self,
        file: Path,
        id_rank: npt.NDArray[np.uint32],
        max_norm: float,
        threads: int,
        precision: Precision = "fp32",
    ) -> None:
        """Opens `file`; `id_rank[row]` is the place of a row's id among all ids in byte order.

        Raises:
            IndexFileError: FAISS cannot read the file, or it is not a flat inner-product index of that many rows.
        """
        self.faiss_index, self.vectors = open_mapped(file, len(id_rank), precision)
        self.count: int = self.faiss_index.ntotal
        self.dim: int = self.faiss_index.d
        self.max_norm = max_norm if precision == "fp32" else rounded_norm(max_norm, self.dim)
        self.fidelity: Fidelity = precision
        self._id_rank = id_rank
        self._sources: tuple[Candidates, ...] = (CpuCandidates(self.faiss_index, threads, self.count),)
        self._pool = ThreadPoolExecutor(threads, "narrows-rescore") if threads > 1 else None

    @property
    def affinity(self) -> Literal["own", "device"]:
        """Where most candidates come from."""
        return self._sources[0].affinity

    def ask_first(self, source: Candidates) -> None:
        """Gets candidates from `source`, which holds the same vectors, for as many as it can give."""
        self._sources = (source, *self._sources)

    def sample(self, count: int) -> Queries:
        """Up to so many of its vectors, (count, dim), evenly spread."""
        return self.vectors[:: max(1, self.count // count)][:count].astype(np.float32, copy=False)

    def decode(self, rows: npt.NDArray[np.int64]) -> Queries:
        """The vectors of some rows, float32 (rows, dim)."""
        return self.vectors[rows].astype(np.float32, copy=False)

    def scores(self, query: Queries, rows: npt.NDArray[np.int64]) -> Queries:
        """The exact scores of some rows, float32 (rows,)."""
        # Not take(): the file's header leaves the vectors unaligned, and it would copy all of them first.
        return inner_products(self.vectors.__getitem__, query, rows)

    def search(self, queries: Queries, k: int) -> SearchHits:
        """Finds the k best passages of each query, exactly.

        Args:
            queries: float32 (queries, dim), finite.
            k: passages wanted; min(k, count) are returned.
        """
        k = min(k, self.count)
        scores = np.empty((len(queries), k), dtype=np.float32)
        rows = np.empty((len(queries), k), dtype=np.int64)
        open_queries = np.arange(len(queries))
        wanted = k + MARGIN
        while len(open_queries):
            if wanted > max(MAX_CANDIDATES, k + MARGIN):
                for query in open_queries:
                    scores[query], rows[query] = self._scan(queries[query], k)
                break
            fetch = min(self.count, wanted)
            source = next(source for source in self._sources if fetch <= source.max_fetch)
            approximate, candidates = source.search(np.ascontiguousarray(queries[open_queries]), fetch)
            certain = candidates.min(axis=1) >= 0  # -1: a score that was not a number
            found = self._rescore(queries[open_queries], candidates, k)
            left = []
            for number, (query, (best_scores, best_rows)) in enumerate(zip(open_queries, found, strict=True)):
                norm = float(np.linalg.norm(queries[query].astype(np.float64)))
                error = error_bound(source.storage, self.dim, norm, self.max_norm)
                highest_left_out = np.float32(float(approximate[number, -1]) + error)
                if certain[number] and (fetch == self.count or highest_left_out < best_scores[-1]):
                    scores[query], rows[query] = best_scores, best_rows
                else:
                    left.append(query)
            open_queries = np.array(left, dtype=np.int64)
            wanted = _next(wanted, source.max_fetch)
        return SearchHits(scores, rows)

    def _rescore(self, queries: Queries, candidates: npt.NDArray[np.int64], k: int) -> Iterable[Best]:
        """The k best candidates of each query; several threads share many queries."""
        starts = range(0, len(queries), QUERIES_A_TASK)

        def some(start: int) -> Sequence[Best]:
            part = slice(start, start + QUERIES_A_TASK)
            return [self._best(query, rows, k) for query, rows in zip(queries[part], candidates[part], strict=True)]

        parts = self._pool.map(some, starts) if self._pool and len(starts) > 1 else map(some, starts)
        return [best for part in parts for best in part]

    def _best(self, query: Queries, rows: npt.NDArray[np.int64], k: int) -> Best:
        """The k best of some rows."""
        return ranked(self.scores(query, rows), rows, self._id_rank, k)

    def _scan(self, query: Queries, k: int) -> Best:
        """The k best of all rows, in blocks."""
        rows = np.empty(0, dtype=np.int64)
        step = max(BLOCK_ROWS, k)
        for start in range(0, self.count, step):
            block = np.arange(start, min(start + step, self.count))
            rows = self._best(query, np.concatenate([rows, block]), k)[1]
        return self._best(query, rows, k)
