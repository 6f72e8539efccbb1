"""Where an exact search gets its candidates: approximate scores of all vectors, and a bound on how far off they are."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import faiss
import numpy as np
import numpy.typing as npt

Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
Storage = Literal["fp32", "fp16"]

SMALLEST_NORMAL = 2.0**-126  # products below it may be flushed to zero
UNIT_ROUNDOFF = 2.0**-24
TENSOR_ROUNDOFF = 2.0**-22  # of a sum in tensor cores, which cut off instead of rounding
HALF_ROUNDOFF = 2.0**-11  # relative, of a half-precision number that is not tiny
HALF_TINY = 2.0**-25  # absolute, of one that is


class Candidates(Protocol):
    """Finds candidates; driven by one thread."""

    @property
    def affinity(self) -> Literal["own", "device"]:
        """See narrows.index.Index."""
        ...

    @property
    def storage(self) -> Storage:
        """Precision of the vectors, and of the queries that they are multiplied with."""
        ...

    @property
    def max_fetch(self) -> int:
        """The most candidates of one query."""
        ...

    def search(self, queries: npt.NDArray[np.float32], fetch: int) -> Found:
        """The `fetch` best rows of each query, float32 (queries, dim), by scores within `error_bound`; best first."""
        ...


@dataclass(frozen=True, slots=True)
class CpuCandidates:
    """FAISS's scan of the mapped vectors."""

    index: faiss.Index
    threads: int
    max_fetch: int
    affinity: Literal["own", "device"] = "own"
    storage: Storage = "fp32"

    def search(self, queries: npt.NDArray[np.float32], fetch: int) -> Found:
        """See Candidates."""
        faiss.omp_set_num_threads(self.threads)  # a setting of the calling thread
        found: Found = self.index.search(np.ascontiguousarray(queries), fetch)
        return found


def _half_error(norm: float, dim: int) -> float:
    """How far a vector of that norm may be moved by rounding to half precision."""
    return HALF_ROUNDOFF * norm + HALF_TINY * math.sqrt(dim)


def rounded_norm(norm: float, dim: int) -> float:
    """The norm that a vector may have after rounding to half precision, at most."""
    return norm + _half_error(norm, dim)


def error_bound(storage: Storage, dim: int, query_norm: float, max_norm: float) -> float:
    """How far an approximate score may be from the inner product, at most.

    float32 sums, in any order of summation, of exact products: |error| <= gamma_d |q| |v| (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1); not so where NVIDIA_TF32_OVERRIDE forces TF32 on. Where query and
    vectors were rounded to half precision first, with errors e(x) <= 2^-11 |x| + 2^-25 sqrt(d):
    |q'v' - qv| <= e(q) (|v| + e(v)) + |q| e(v).
    """
    rounding, roundoff = 0.0, UNIT_ROUNDOFF
    if storage == "fp16":
        query_error, vector_error = _half_error(query_norm, dim), _half_error(max_norm, dim)
        rounding = query_error * (max_norm + vector_error) + query_norm * vector_error
        query_norm, max_norm = query_norm + query_error, max_norm + vector_error
        roundoff = TENSOR_ROUNDOFF
    gamma = dim * roundoff / (1 - dim * roundoff)
    # 1.001 for the roundings of this very line.
    return 1.001 * (gamma * query_norm * max_norm + rounding) + dim * SMALLEST_NORMAL
