"""What is decided by rule, fixed before a run: a peer's best setting, the rates, the rounds that do not count."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows_tools.bench.results import Row

MIN_COSINE = 0.9999
NEAR_BEST = 0.97
SHARES = (0.5, 0.8)  # of the saturation of the best peer with the bundle's graph
REFERENCE, LAG, OTHERS = "reference_per_s", "send_lag_p99_ms", "others_cpu_share"


@dataclass(frozen=True, slots=True)
class Saturation:
    """What a closed loop found for one setting."""

    throughput_per_s: float
    p99_ms: float


def best_setting(found: Sequence[Saturation | None]) -> int | None:
    """The setting with the lowest p99 among those within 3 % of the highest throughput; None where none worked."""
    worked = [(number, saturation) for number, saturation in enumerate(found) if saturation is not None]
    if not worked:
        return None
    bar = NEAR_BEST * max(saturation.throughput_per_s for _, saturation in worked)
    near = [(number, saturation) for number, saturation in worked if saturation.throughput_per_s >= bar]
    return min(near, key=lambda one: one[1].p99_ms)[0]


def rates(saturations: Mapping[str, float]) -> tuple[float, ...]:
    """Rates in requests/s that every system is offered: shares of the best peer's saturation, whole numbers."""
    return tuple(max(1.0, float(round(share * max(saturations.values())))) for share in SHARES)


@dataclass(frozen=True, slots=True)
class DiscardRule:
    """A round does not count if the machine or the generator was disturbed in any part of it.

    `reference_per_s` is the encoder's speed alone, in process, on the server's cores, right before a system is
    measured; `send_lag_p99_ms` is by how much the generator sent late; `others_cpu_share` what of the server's cores
    went to anything but the server.
    """

    max_deviation: float  # from the median of all, as a share
    max_lag_ms: float
    max_others_share: float

    def discarded(self, rows: Iterable[Row]) -> dict[int, str]:
        """The rounds that do not count, and why."""
        rows = list(rows)
        if not rows:
            return {}
        median = statistics.median(row.metrics[REFERENCE] for row in rows)
        reasons: dict[int, str] = {}
        for row in rows:
            deviation = row.metrics[REFERENCE] / median - 1
            lag_ms, others = row.metrics.get(LAG, 0.0), row.metrics.get(OTHERS, 0.0)
            if abs(deviation) > self.max_deviation:
                reasons.setdefault(row.round, f"the machine's speed was off by {deviation:+.0%} before {row.system}")
            elif lag_ms > self.max_lag_ms:
                reasons.setdefault(row.round, f"the generator lagged by {lag_ms:.1f} ms at {row.system}")
            elif others > self.max_others_share:
                reasons.setdefault(row.round, f"{others:.0%} of the server's cores went elsewhere at {row.system}")
        return reasons


def min_cosine(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    """The lowest cosine of two sets of embeddings, row by row; -1 where they do not fit or are not finite."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return -1.0
    a, b = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.min(np.divide((a * b).sum(axis=1), norms, out=np.full(len(a), -1.0), where=norms > 0)))
