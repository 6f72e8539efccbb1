"""Measured costs, with a clock that only the batches advance."""

from collections.abc import Callable

import pytest

from narrows.costs import Bucket, CostTable, measure


class Machine:
    """Runs batches on a clock of its own: `cost(batch size, tokens)` is in milliseconds."""

    def __init__(self, cost: Callable[[int, int], float]) -> None:
        self.cost = cost
        self.now_s = 100.0
        self.runs: list[tuple[int, int]] = []

    def run(self, batch_size: int, tokens: int) -> None:
        self.runs.append((batch_size, tokens))
        self.now_s += self.cost(batch_size, tokens) / 1e3

    def clock(self) -> float:
        return self.now_s

    def measure(self, lengths: list[int], max_batch: int, budget_ms: float) -> CostTable:
        return measure(self.run, lengths, lambda tokens: max_batch, budget_ms, self.clock)


# --- a bucket


def test_cap_is_the_size_of_the_best_rate() -> None:
    assert Bucket(8, (1, 2, 4, 8), (1.0, 1.5, 2.0, 5.0)).cap == 4  # 1, 1.33, 2, 1.6 texts/ms


def test_cap_prefers_a_smaller_batch_within_the_tolerance() -> None:
    assert Bucket(8, (1, 2, 4), (1.0, 1.0, 2 / 1.009)).cap == 2  # 2 texts/ms against 2.018
    assert Bucket(8, (1, 2, 4), (1.0, 1.0, 2 / 1.02)).cap == 4  # against 2.04


def test_cap_of_one_measured_size() -> None:
    assert Bucket(8, (1,), (3.0,)).cap == 1


@pytest.mark.parametrize(
    ("batch_size", "ms"),
    [(1, 2.0), (2, 3.0), (3, 5.0), (4, 7.0), (5, 8.0), (7, 10.0), (8, 11.0), (16, 22.0), (12, 16.5)],
)
def test_batches_between_and_beyond_the_measured_sizes(batch_size: int, ms: float) -> None:
    assert Bucket(8, (1, 2, 4, 8), (2.0, 3.0, 7.0, 11.0)).at(batch_size) == pytest.approx(ms)


def test_one_measured_size_goes_on_at_its_rate() -> None:
    bucket = Bucket(8, (1,), (3.0,))
    assert [bucket.at(size) for size in (1, 2, 10)] == pytest.approx([3.0, 6.0, 30.0])


# --- the table


TABLE = CostTable((Bucket(8, (1, 2), (1.0, 1.0)), Bucket(16, (1, 2), (3.0, 6.0)), Bucket(64, (1, 2), (9.0, 18.0))))


@pytest.mark.parametrize(
    ("batch_size", "tokens", "ms"),
    [
        (1, 1, 1.0),  # shorter than measured: as the shortest
        (1, 8, 1.0),
        (1, 12, 2.0),
        (2, 12, 3.5),
        (1, 16, 3.0),
        (1, 40, 6.0),
        (2, 64, 18.0),
        (4, 64, 36.0),
        (1, 128, 18.0),  # longer: at the rate of the longest
    ],
)
def test_lengths_between_and_beyond_the_measured_ones(batch_size: int, tokens: int, ms: float) -> None:
    assert TABLE.ms(batch_size, tokens) == pytest.approx(ms)


def test_cap_of_a_length_is_that_of_the_bucket_it_fits_in() -> None:
    assert [TABLE.cap(tokens) for tokens in (1, 8, 9, 16, 17, 64, 65, 1000)] == [2, 2, 1, 1, 1, 1, 1, 1]


def test_one_text_of_a_full_batch() -> None:
    assert [TABLE.item_ms(tokens) for tokens in (8, 16, 12)] == pytest.approx([0.5, 3.0, 2.0])


# --- measuring


def test_sizes_grow_to_the_largest_while_they_gain() -> None:
    machine = Machine(lambda batch_size, tokens: 10 + batch_size)  # the fixed part is always worth sharing
    table = machine.measure([8], max_batch=64, budget_ms=1e9)
    assert table.buckets[0].batch_sizes == (1, 2, 4, 8, 16, 32, 64)
    assert table.buckets[0].ms == pytest.approx([11, 12, 14, 18, 26, 42, 74])
    assert table.cap(8) == 64


@pytest.mark.parametrize(("max_batch", "sizes"), [(1, (1,)), (3, (1, 2)), (63, (1, 2, 4, 8, 16, 32))])
def test_no_size_exceeds_the_largest(max_batch: int, sizes: tuple[int, ...]) -> None:
    machine = Machine(lambda batch_size, tokens: 10 + batch_size)
    assert machine.measure([8], max_batch, budget_ms=1e9).buckets[0].batch_sizes == sizes
    assert max(batch_size for batch_size, _ in machine.runs) <= max_batch


def test_growth_stops_after_two_sizes_without_gain() -> None:
    machine = Machine(lambda batch_size, tokens: 5.0 * batch_size)
    table = machine.measure([8], max_batch=64, budget_ms=1e9)
    assert table.buckets[0].batch_sizes == (1, 2, 4)
    assert table.cap(8) == 1


def test_one_size_without_gain_is_passed_over() -> None:
    times = {1: 10.0, 2: 20.0, 4: 20.0, 8: 40.0, 16: 80.0}
    machine = Machine(lambda batch_size, tokens: times[batch_size])
    table = machine.measure([8], max_batch=64, budget_ms=1e9)
    assert table.buckets[0].batch_sizes == (1, 2, 4, 8, 16)
    assert table.cap(8) == 4


def test_a_whole_batch_never_costs_more_than_its_halves() -> None:
    times = {1: 10.0, 2: 15.0, 4: 1000.0, 8: 1000.0}
    machine = Machine(lambda batch_size, tokens: times[batch_size])
    assert machine.measure([8], max_batch=64, budget_ms=1e9).buckets[0].ms == pytest.approx([10, 15, 30, 60])


def test_the_shortest_run_counts_and_the_first_is_for_warming_up() -> None:
    slow = iter([500.0, 9.0, 30.0, 7.0, 9.0, 8.0, 8.0, 9.0, 9.0, 9.0, 9.0])
    machine = Machine(lambda batch_size, tokens: next(slow))
    table = machine.measure([8], max_batch=2, budget_ms=1e9)
    assert table.buckets[0].ms == pytest.approx([7.0, 8.0])
    assert machine.runs == [(1, 8)] + [(1, 8), (2, 8)] * 5


def test_what_was_found_is_timed_again_in_turn_for_as_long_as_the_budget_lasts() -> None:
    machine = Machine(lambda batch_size, tokens: 10.0)
    machine.measure([8, 16], max_batch=2, budget_ms=95)
    # 60 ms for finding, with the warm-ups; the fourth of the next four begins at 90 ms.
    assert machine.runs[6:] == [(1, 8), (2, 8), (1, 16), (2, 16)]


def test_sizes_beyond_the_best_and_the_next_are_not_timed_again() -> None:
    machine = Machine(lambda batch_size, tokens: 5.0 * batch_size)
    machine.measure([8], max_batch=64, budget_ms=1e9)
    assert machine.runs.count((4, 8)) == 1
    assert machine.runs.count((2, 8)) == 5


def test_a_batch_never_costs_more_than_a_larger_one() -> None:
    times = {1: 10.0, 2: 18.0, 4: 12.0, 8: 24.0, 16: 48.0}
    machine = Machine(lambda batch_size, tokens: times[batch_size])
    assert machine.measure([8], max_batch=64, budget_ms=1e9).buckets[0].ms == pytest.approx([10, 12, 12, 24, 48])


def test_batches_are_timed_by_their_own_timer() -> None:
    machine = Machine(lambda batch_size, tokens: 10.0)
    table = measure(machine.run, [8], lambda tokens: 1, 1e9, machine.clock, timer=lambda: machine.now_s / 2)
    assert table.buckets[0].ms == pytest.approx([5.0])


def test_batches_too_large_for_the_budget_are_known_from_longer_texts() -> None:
    machine = Machine(lambda batch_size, tokens: 100 + batch_size * tokens)
    table = machine.measure([8, 16, 32], max_batch=4, budget_ms=0)
    assert machine.runs[1::2] == [(1, 8), (1, 16), (1, 32)]
    assert [bucket.batch_sizes for bucket in table.buckets] == [(1, 2, 4), (1, 2), (1,)]
    assert table.buckets[0].ms == pytest.approx([108, 116, 132])
    assert table.cap(8) == 4


def test_nothing_is_learnt_from_texts_of_less_than_twice_the_length() -> None:
    machine = Machine(lambda batch_size, tokens: 100 + batch_size * tokens)
    table = machine.measure([32, 48], max_batch=4, budget_ms=0)
    assert [bucket.batch_sizes for bucket in table.buckets] == [(1,), (1,)]


def test_a_clock_that_stands_still_gives_a_time_all_the_same() -> None:
    table = Machine(lambda batch_size, tokens: 0.0).measure([8], max_batch=4, budget_ms=10)
    assert min(table.buckets[0].ms) > 0
    assert table.cap(8) >= 1


def test_nothing_is_begun_after_the_budget() -> None:
    machine = Machine(lambda batch_size, tokens: 10.0)
    table = machine.measure([8], max_batch=64, budget_ms=45)
    # 20 ms for size 1 (with its warm-up), 10 ms for each other: size 8 begins at 40 ms, size 16 would at 50.
    assert table.buckets[0].batch_sizes == (1, 2, 4, 8)
    assert machine.now_s - 100 == pytest.approx(0.050)


def test_every_length_is_measured_at_size_one_without_any_budget() -> None:
    machine = Machine(lambda batch_size, tokens: 10.0 * tokens)
    table = machine.measure([8, 16, 32], max_batch=64, budget_ms=0)
    assert machine.runs == [(1, 8), (1, 8), (1, 16), (1, 16), (1, 32), (1, 32)]
    assert table.ms(1, 32) == pytest.approx(320)


def test_later_lengths_get_their_share_of_the_budget() -> None:
    machine = Machine(lambda batch_size, tokens: 10.0)  # would grow for ever
    machine.measure([8, 16, 32, 64], max_batch=2**30, budget_ms=235)
    assert [tokens for _, tokens in machine.runs] == [8] * 6 + [16] * 6 + [32] * 6 + [64] * 6
    assert machine.now_s - 100 == pytest.approx(0.24)


def test_what_a_length_leaves_goes_to_the_later_ones() -> None:
    machine = Machine(lambda batch_size, tokens: batch_size * 1.0 if tokens == 8 else 10.0)
    machine.measure([8, 16], max_batch=2**30, budget_ms=200)
    assert [tokens for _, tokens in machine.runs].count(8) == 4  # no gain, and a warm-up
    assert [tokens for _, tokens in machine.runs].count(
        16
    ) == 1 + 19  # begun at 18, 28, ..., 198 ms; its share alone would end at 100


def test_the_largest_batch_may_depend_on_the_length() -> None:
    machine = Machine(lambda batch_size, tokens: 10.0 + 0.01 * batch_size * tokens)
    table = measure(machine.run, [8, 32], lambda tokens: 64 // tokens, 1e9, machine.clock)
    assert [bucket.batch_sizes for bucket in table.buckets] == [(1, 2, 4, 8), (1, 2)]
    assert (table.cap(8), table.cap(20)) == (8, 2)


def test_a_batch_that_is_padded_to_a_bucket_costs_what_the_bucket_does() -> None:
    buckets = (Bucket(8, (1,), (10.0,)), Bucket(16, (1,), (20.0,)))
    assert CostTable(buckets).ms(1, 12) == 15.0
    assert CostTable(buckets, stepped=True).ms(1, 12) == 20.0
    assert CostTable(buckets, stepped=True).ms(1, 8) == 10.0
