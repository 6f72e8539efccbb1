"""Whether vectors that another program made are a tower's: passages, encoded again, must agree with them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LEAST_COSINE = 0.999  # of each passage: half precision on a GPU keeps 0.9999, another text does not
MOST_NORM_DIFFERENCE = 0.01  # relative: inner products are of lengths, too

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How a sample of passages, encoded again, compares with the vectors that were imported."""

    sample: int
    lowest_cosine: float
    mean_cosine: float
    largest_norm_difference: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Of each passage, float64: the cosine of its two vectors, and by how much their lengths differ, relatively."""

    cosines: npt.NDArray[np.float64]
    norm_differences: npt.NDArray[np.float64]

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Of which passages the vectors do not agree."""
        right = (self.cosines >= LEAST_COSINE) & (self.norm_differences <= MOST_NORM_DIFFERENCE)
        return np.logical_not(right)  # so is what is not a number

    @property
    def agreement(self) -> Agreement:
        """All of them together."""
        cosines = self.cosines
        return Agreement(len(cosines), float(cosines.min()), float(cosines.mean()), float(self.norm_differences.max()))


def compare(again: Vectors, given: Vectors) -> Comparison:
    """Compares the vectors given of some passages, (rows, dim), with those that they should be."""
    one, other = again.astype(np.float64), given.astype(np.float64)
    norms, given_norms = np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(axis=1) / np.maximum(norms * given_norms, 1e-30)
    return Comparison(cosines, np.abs(given_norms / np.maximum(norms, 1e-30) - 1))


def together(agreements: Sequence[Agreement | None]) -> Agreement | None:
    """Of several indexes, the lowest of each; None where none of them was imported."""
    found = [agreement for agreement in agreements if agreement]
    if not found:
        return None
    sample = sum(agreement.sample for agreement in found)
    return Agreement(
        sample=sample,
        lowest_cosine=min(agreement.lowest_cosine for agreement in found),
        mean_cosine=sum(agreement.mean_cosine * agreement.sample for agreement in found) / sample,
        largest_norm_difference=max(agreement.largest_norm_difference for agreement in found),
    )
