"""How long a batch takes on this machine: measured once at warm-up, then used for every decision of the scheduler."""

import bisect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

RUNS = 5  # of each batch at most
TOLERANCE = 0.01  # a batch this close to the best rate is as good: smaller batches keep latency low


@dataclass(frozen=True)
class Bucket:
    """Measured batches of one padded length: `ms[i]` is the time of `batch_sizes[i]` texts of `tokens` tokens."""

    tokens: int
    batch_sizes: tuple[int, ...]
    ms: tuple[float, ...]

    @cached_property  # the scheduler asks several times a text
    def cap(self) -> int:
        """The smallest batch within 1 % of the best measured texts/ms."""
        rates = [size / ms for size, ms in zip(self.batch_sizes, self.ms, strict=True)]
        best = max(rates)
        return next(size for size, rate in zip(self.batch_sizes, rates, strict=True) if rate >= best * (1 - TOLERANCE))

    def at(self, batch_size: int) -> float:
        """Milliseconds for a batch: linear between the measured sizes, at the last rate beyond them."""
        if batch_size >= self.batch_sizes[-1]:
            return self.ms[-1] * batch_size / self.batch_sizes[-1]
        upper = bisect.bisect_left(self.batch_sizes, batch_size)
        if self.batch_sizes[upper] == batch_size:
            return self.ms[upper]
        (x0, x1), (y0, y1) = self.batch_sizes[upper - 1 : upper + 1], self.ms[upper - 1 : upper + 1]
        return y0 + (y1 - y0) * (batch_size - x0) / (x1 - x0)


@dataclass(frozen=True)
class CostTable:
    """Buckets by ascending length. With a single one (search) the length does not matter.

    `packed` says that padding costs nothing (but in attention, which is left out of account). `stepped` says that
    every batch is padded to the length of a bucket.
    """

    buckets: tuple[Bucket, ...]
    packed: bool = False
    stepped: bool = False

    @cached_property
    def _lengths(self) -> list[int]:
        return [bucket.tokens for bucket in self.buckets]

    @cached_property
    def _item_ms(self) -> dict[int, float]:
        """By tokens, as far as asked for: the scheduler asks several times a text."""
        return {}

    def priced_tokens(self, batch_size: int, longest: int, total: int) -> float:
        """The length at which a batch is priced: what its texts are padded to, or the mean where that is free."""
        return total / batch_size if self.packed else longest

    def ms(self, batch_size: int, tokens: float) -> float:
        """Predicted milliseconds for `batch_size` texts, all of `tokens`: linear between the bucket lengths."""
        if len(self.buckets) == 1:
            return self.buckets[0].at(batch_size)
        lengths = self._lengths
        upper = bisect.bisect_left(lengths, tokens)
        if upper == len(lengths):
            return self.buckets[-1].at(batch_size) * tokens / lengths[-1]
        if upper == 0:
            return self.buckets[0].at(batch_size)
        low, high = self.buckets[upper - 1], self.buckets[upper]
        if self.stepped:
            return high.at(batch_size)
        share = (tokens - low.tokens) / (high.tokens - low.tokens)
        return low.at(batch_size) * (1 - share) + high.at(batch_size) * share

    def cap(self, tokens: int) -> int:
        """The largest batch worth making of texts padded to `tokens`."""
        upper = bisect.bisect_left(self._lengths, tokens)
        return self.buckets[min(upper, len(self.buckets) - 1)].cap

    def item_ms(self, tokens: int) -> float:
        """What one text of `tokens` adds to a full batch."""
        found = self._item_ms.get(tokens)
        if found is None:
            cap = self.cap(tokens)
            found = self._item_ms[tokens] = self.ms(cap, tokens) / cap
        return found


def measure(
    run: Callable[[int, int], object],
    lengths: Sequence[int],
    most_texts: Callable[[int], int],
    budget_ms: float,
    clock: Callable[[], float],
    timer: Callable[[], float] | None = None,
) -> CostTable:
    """Times batches of growing size for each length, until a larger batch no longer gains.

    The sizes of each length up to the best one, and the next, are then timed again, in turn, for as long as the budget
    lasts: so a disturbance meets few runs of each, and the shortest counts.

    Args:
        run: runs one batch, given (batch size, tokens).
        lengths: padded lengths to measure, ascending.
        most_texts: largest batch size tried, by length.
        budget_ms: time after which nothing further is begun; every length is measured at size one at least.
        clock: monotonic seconds.
        timer: seconds by which a batch is timed, where that is not the clock.
    """

    def timed_ms(power: int, tokens: int) -> float:
        return best_ms(partial(run, 2**power, tokens), 1, timer or clock)

    end = clock() + budget_ms / 1e3
    found: dict[int, list[float]] = {}  # by length: milliseconds of the sizes 1, 2, 4, ...
    for position, tokens in enumerate(lengths):
        # Later lengths keep their share of the budget.
        bucket_end = end - (end - clock()) * (1 - 1 / (len(lengths) - position))
        run(1, tokens)  # the first run allocates
        times = found[tokens] = [timed_ms(0, tokens)]
        best, fruitless = 1 / times[0], 0
        while 2 ** len(times) <= most_texts(tokens) and fruitless < 2 and clock() < bucket_end:
            size = 2 ** len(times)
            times.append(timed_ms(len(times), tokens))
            fruitless = 0 if size / times[-1] > best * (1 + TOLERANCE) else fruitless + 1
            best = max(best, size / times[-1])
    again = [(tokens, power) for tokens, times in found.items() for power in range(min(_best(times) + 2, len(times)))]
    for tokens, power in again * (RUNS - 1):
        if clock() >= end:
            break
        found[tokens][power] = min(found[tokens][power], timed_ms(power, tokens))
    _share(found, most_texts)
    return CostTable(tuple(_bucket(tokens, times) for tokens, times in found.items()))


def _share(found: dict[int, list[float]], most_texts: Callable[[int], int]) -> None:
    """Lets each length learn from the next: twice as many texts of half the length cost no more.

    Their matrix products have as many rows and attention does less. So a budget too small for large batches of short
    texts still finds out whether they gain.
    """
    for shorter, longer in reversed(list(itertools.pairwise(found))):
        if longer < 2 * shorter:
            continue
        times = found[shorter]
        for power, ms in enumerate(found[longer], start=1):
            if power < len(times):
                times[power] = min(times[power], ms)
            elif 2**power <= most_texts(shorter):
                times.append(ms)


def _best(times: list[float]) -> int:
    """Which of the sizes 1, 2, 4, ... has the best rate, by its power of two."""
    return max(range(len(times)), key=lambda power: 2**power / times[power])


def _bucket(tokens: int, times: list[float]) -> Bucket:
    """A bucket of the times of 1, 2, 4, ... texts, less what can only be noise, which only ever adds."""
    smooth = [min(times[power:]) for power in range(len(times))]  # a batch costs no more than a larger one
    for power in range(1, len(smooth)):
        smooth[power] = min(smooth[power], 2 * smooth[power - 1])  # nor than its halves, one after the other
    return Bucket(tokens, tuple(2**power for power in range(len(times))), tuple(smooth))


def best_ms(run: Callable[[], object], runs: int, clock: Callable[[], float]) -> float:
    """Milliseconds of the shortest of some runs: noise only ever adds. At least a microsecond."""
    times = []
    for _ in range(runs):
        start = clock()
        run()
        times.append(clock() - start)
    return max(min(times) * 1e3, 1e-3)
