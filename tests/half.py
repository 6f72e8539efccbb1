"""A stand-in for vectors on a GPU: what FAISS computes there, computed here."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrows.index.candidates import Found, Storage

Vectors = npt.NDArray[np.float32]


@dataclass
class Half:
    """Candidates by vectors and queries in half precision, products summed in float32; keeps what it was asked for."""

    vectors: Vectors
    max_fetch: int = 2048
    affinity: Literal["own", "device"] = "device"
    storage: Storage = "fp16"
    asked: list[tuple[int, int]] = field(default_factory=list)

    def search(self, queries: Vectors, fetch: int) -> Found:
        self.asked.append((len(queries), fetch))
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = (values.astype(np.float16).astype(np.float32) for values in (queries, self.vectors))
            scores = np.matmul(*(values if number == 0 else values.T for number, values in enumerate(rounded)))
        ordered = np.where(np.isnan(scores), -np.inf, scores)
        rows = np.argsort(-ordered, axis=1, kind="stable")[:, :fetch]
        found = np.take_along_axis(ordered, rows, axis=1)
        rows[np.isinf(found)] = -1  # as FAISS marks what it has not found
        return found.astype(np.float32), rows
