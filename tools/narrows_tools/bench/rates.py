"""The highest rate at which a server still keeps a promise."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def highest_rate(
    measure: Callable[[float], T], keeps: Callable[[T], bool], low: float, high: float, resolution: float
) -> tuple[float, T]:
    """Bisects between two rates, to within `resolution` (a share of the rate).

    Args:
        measure: loads the server at a rate.
        keeps: whether what was measured is good enough.
        low: the lowest rate tried; if even that is too high, the rate returned is 0.
        high: the highest rate tried; if that is kept, it is the answer.
        resolution: such as 0.03.

    Returns:
        The highest rate that was measured and kept, and what was measured there (at `low` where the rate is 0).
    """
    found = measure(low)
    if not keeps(found):
        return 0.0, found
    at_high = measure(high)
    if keeps(at_high):
        return high, at_high
    while high > low * (1 + resolution):
        middle = (low * high) ** 0.5
        measured = measure(middle)
        if keeps(measured):
            low, found = middle, measured
        else:
            high = middle
    return low, found
