"""How long a batch takes on this machine: measured once at warm-up, then used for every decision of the scheduler."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

RUNS = 2  # of each batch
TOLERANCE = 0.03  # a batch this close to the best rate is as good: smaller batches keep latency low


@dataclass(frozen=True, slots=True)
class Bucket:
    """Measured batches of one padded length: `ms[i]` is the time of `batch_sizes[i]` texts of `tokens` tokens."""

    tokens: int
    batch_sizes: tuple[int, ...]
    ms: tuple[float, ...]

    @property
    def cap(self) -> int:
        """The smallest batch within 3 % of the best measured texts/ms."""
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


@dataclass(frozen=True, slots=True)
class CostTable:
    """Buckets by ascending length. With a single one (search) the length does not matter."""

    buckets: tuple[Bucket, ...]

    def ms(self, batch_size: int, tokens: int) -> float:
        """Predicted milliseconds for `batch_size` texts padded to `tokens`: linear between the bucket lengths."""
        if len(self.buckets) == 1:
            return self.buckets[0].at(batch_size)
        lengths = [bucket.tokens for bucket in self.buckets]
        upper = bisect.bisect_left(lengths, tokens)
        if upper == len(lengths):
            return self.buckets[-1].at(batch_size) * tokens / lengths[-1]
        if upper == 0:
            return self.buckets[0].at(batch_size)
        low, high = self.buckets[upper - 1], self.buckets[upper]
        share = (tokens - low.tokens) / (high.tokens - low.tokens)
        return low.at(batch_size) * (1 - share) + high.at(batch_size) * share

    def cap(self, tokens: int) -> int:
        """The largest batch worth making of texts padded to `tokens`."""
        upper = bisect.bisect_left([bucket.tokens for bucket in self.buckets], tokens)
        return self.buckets[min(upper, len(self.buckets) - 1)].cap

    def item_ms(self, tokens: int) -> float:
        """What one text of `tokens` adds to a full batch."""
        cap = self.cap(tokens)
        return self.ms(cap, tokens) / cap


def measure(
    run: Callable[[int, int], object],
    lengths: Sequence[int],
    max_batch: int,
    budget_ms: float,
    clock: Callable[[], float],
) -> CostTable:
    """Times batches of growing size for each length, until a larger batch no longer gains.

    Args:
        run: runs one batch, given (batch size, tokens).
        lengths: padded lengths to measure, ascending.
        max_batch: largest batch size tried.
        budget_ms: time after which no further size is begun; every length is measured at size one at least.
        clock: monotonic seconds.
    """
    end = clock() + budget_ms / 1e3
    buckets = []
    for position, tokens in enumerate(lengths):
        # Later lengths keep their share of the budget.
        bucket_end = end - (end - clock()) * (1 - 1 / (len(lengths) - position))
        run(1, tokens)  # the first run allocates
        sizes, times = [1], [best_ms(partial(run, 1, tokens), RUNS, clock)]
        fruitless = 0
        while sizes[-1] * 2 <= max_batch and fruitless < 2 and clock() < bucket_end:
            size = sizes[-1] * 2
            # Two halves can always run one after the other, so a whole never costs more than both: noise would say so.
            ms = min(best_ms(partial(run, size, tokens), RUNS, clock), 2 * times[-1])
            best = max(n / t for n, t in zip(sizes, times, strict=True))
            fruitless = 0 if size / ms > best * (1 + TOLERANCE) else fruitless + 1
            sizes.append(size)
            times.append(ms)
        buckets.append(Bucket(tokens, tuple(sizes), tuple(times)))
    return CostTable(tuple(buckets))


def best_ms(run: Callable[[], object], runs: int, clock: Callable[[], float]) -> float:
    """Milliseconds of the shortest of some runs: noise only ever adds. At least a microsecond."""
    times = []
    for _ in range(runs):
        start = clock()
        run()
        times.append(clock() - start)
    return max(min(times) * 1e3, 1e-3)
