"""When the requests of an open loop are sent: fixed before it starts, whatever the server does."""

import numpy as np
import numpy.typing as npt

Schedule = npt.NDArray[np.float64]


def poisson(rate_per_s: float, count: int, seed: int) -> Schedule:
    """Send times of a Poisson process, in seconds from its start, ascending: float64 (count,).

    It is the process given that `count` requests come in the time that the rate has for them, which makes their times
    uniform (Ross, Introduction to Probability Models, 5.3): no seed has a higher rate than another. Schedules of one
    seed and several rates differ by a factor only.
    """
    times = np.sort(np.random.default_rng(seed).uniform(size=count))
    return np.asarray(times * (count / rate_per_s))
