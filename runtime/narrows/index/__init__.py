"""Embeddings -> the passages with the largest inner product."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

Precision = Literal["fp32", "fp16"]
Fidelity = Literal["fp32", "fp16", "coded"]


@dataclass(frozen=True, slots=True)
class SearchHits:
    """Best passages of each query: `scores` float32 and `rows` int64, both (queries, k), by score desc, id asc."""

    scores: npt.NDArray[np.float32]
    rows: npt.NDArray[np.int64]


class Index(Protocol):
    """What the engine asks of an index."""

    count: int
    dim: int
    max_norm: float

    @property
    def affinity(self) -> Literal["own", "device"]:
        """Where it wants to run: on a thread of its own, or on that of the device which it shares with the encoder."""
        ...

    def search(self, queries: npt.NDArray[np.float32], k: int) -> SearchHits:
        """Finds the k best passages of each query, float32 (queries, dim); min(k, count) of them."""
        ...

    @property
    def fidelity(self) -> Fidelity:
        """How faithful the vectors are that it scores with: as encoded, rounded to half precision, or coded."""
        ...

    def decode(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """The vectors of some rows as they are held, float32 (rows, dim)."""
        ...

    def sample(self, count: int) -> npt.NDArray[np.float32]:
        """Up to so many of its vectors, (count, dim), evenly spread."""
        ...
