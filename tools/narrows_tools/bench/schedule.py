"""When the requests of an open loop are sent: fixed before it starts, whatever the server does."""

import numpy as np
import numpy.typing as npt

Schedule = npt.NDArray[np.float64]


def poisson(rate_per_s: float, count: int, seed: int) -> Schedule:
    """Send times of a Poisson process, in seconds from its start, ascending: float64 (count,).

    Schedules of one seed and several rates differ by a factor only, so what they cost differs by the rate alone.
    """
    gaps = np.random.default_rng(seed).exponential(size=count)
    return np.asarray(np.cumsum(gaps) / rate_per_s)
