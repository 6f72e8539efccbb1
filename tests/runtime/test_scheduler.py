"""The scheduler's rules, with time passed in as numbers."""

import gc
import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows import scheduler as schedulers
from narrows.costs import Bucket, CostTable
from narrows.scheduler import Batch, Entry, LaneSettings, Scheduler, admit
from narrows.work import Lane, Work

# A device that gains from batches up to 8 (a fixed cost of 4 ms), with cost linear in tokens beyond that.
SIZES = (1, 2, 4, 8, 16)
GAINING = CostTable(
    tuple(
        Bucket(tokens, SIZES, (*(4.0 + 0.05 * size * tokens for size in SIZES[:4]), 8.0 + 0.8 * tokens))
        for tokens in (16, 32, 64, 128, 256)
    )
)
# A device whose cost is all padded tokens: batches gain nothing.
LINEAR = CostTable(tuple(Bucket(tokens, SIZES, tuple(0.1 * size * tokens for size in SIZES)) for tokens in (16, 256)))
FAR = 1e9
NUMBERS = itertools.count(1_000_000)  # request ids


def work(
    request_id: int,
    tokens: int = 16,
    lane: Lane = "questions",
    deadline_s: float = FAR,
    k: int = 0,
    source: int = 0,
) -> Work:
    return Work(request_id, lane, deadline_s, token_ids=np.zeros(tokens, dtype=np.int64), k=k, source=source)


def scheduler(
    costs: CostTable = GAINING, *, max_queued: int = 1000, share: float = 0.1, after_ms: float = 0.0
) -> Scheduler[None]:
    lanes = [LaneSettings("questions", max_queued), LaneSettings("passages", max_queued, share)]
    return Scheduler(lanes, {"questions": costs, "passages": costs}, after_ms)


def add(queue: Scheduler[None], *works: Work, now_s: float = 0.0) -> None:
    for item in works:
        queue.add(Entry(item, None, now_s))


def next_batch(queue: Scheduler[None], now_s: float = 0.0) -> Batch[None]:
    """The next batch, which there must be, with nothing dropped."""
    batch, dropped = queue.next_batch(now_s)
    assert batch is not None
    assert dropped == []
    return batch


def next_ids(queue: Scheduler[None], now_s: float = 0.0) -> list[int]:
    return closed(queue, now_s)[0]


def closed(queue: Scheduler[None], now_s: float = 0.0) -> tuple[list[int], list[int]]:
    """Request ids: of the next batch, and of what was dropped."""
    batch, dropped = queue.next_batch(now_s)
    entries = () if batch is None else batch.entries
    return sorted(entry.work.request_id for entry in entries), sorted(entry.work.request_id for entry in dropped)


def test_an_idle_device_gets_a_lone_question_at_once() -> None:
    queue = scheduler()
    assert queue.next_batch(0.0) == (None, [])
    add(queue, work(1))
    assert next_ids(queue) == [1]


def test_a_batch_closes_late_so_work_that_came_meanwhile_joins() -> None:
    queue = scheduler()
    add(queue, work(1))
    assert next_ids(queue) == [1]
    add(queue, work(2), now_s=0.001)
    add(queue, work(3), now_s=0.002)
    assert sorted(next_ids(queue, 0.003)) == [2, 3]


def test_a_batch_stops_at_the_cap_of_the_cost_table() -> None:
    queue = scheduler()
    assert GAINING.cap(16) == 8
    add(queue, *(work(number) for number in range(20)))
    assert [len(next_ids(queue)) for _ in range(4)] == [8, 8, 4, 0]


def test_a_batch_takes_like_lengths_around_its_oldest() -> None:
    queue = scheduler()
    add(queue, work(1, 128), work(2, 256), work(3, 16), work(4, 130), work(5, 250), work(6, 126))
    assert sorted(next_ids(queue)) == [1, 4, 6]
    assert sorted(next_ids(queue)) == [2, 5]
    assert next_ids(queue) == [3]


def test_a_batch_ends_where_the_next_one_in_length_would_slow_down_the_rest() -> None:
    queue = scheduler()
    add(queue, *(work(number) for number in range(4)), work(4, 32))
    # Together they take 12 ms, less than 7.2 for the short ones and then 5.6 for the long one; but of what
    # full batches do in a millisecond, four alone get 0.72 done, and all five 0.61.
    assert sorted(next_ids(queue)) == [0, 1, 2, 3]
    assert next_ids(queue) == [4]


def test_where_padding_only_costs_other_lengths_never_join() -> None:
    queue = scheduler(LINEAR)
    add(queue, work(1, 100), work(2, 101), work(3, 99))
    assert [next_ids(queue) for _ in range(3)] == [[1], [2], [3]]


def test_where_padding_is_free_a_batch_is_priced_by_its_mean_length() -> None:
    packed = replace(GAINING, packed=True)
    queue = scheduler(packed)
    add(queue, *(work(number) for number in range(4)), work(4, 32))
    batch = next_batch(queue, 0.0)  # of padded ones, the long one would slow down the rest
    assert len(batch.entries) == 5
    assert batch.predicted_ms == pytest.approx(GAINING.ms(5, (4 * 16 + 32) / 5))
    add(queue, work(1, 128), work(2, 256), work(3, 16), work(4, 130), work(5, 250), work(6, 126))
    assert len(next_ids(queue)) == 6


@pytest.mark.parametrize("packed", [False, True])
def test_a_text_joins_no_batch_that_is_too_large_for_its_length(packed: bool) -> None:
    """So that texts that gain nothing from a larger batch make no others wait."""
    flat = (4.0, 4.4, 5.0, 6.0, 9.0)
    costs = CostTable((Bucket(16, SIZES, flat), Bucket(128, SIZES, (8.0, 9.0, 18.0, 36.0, 72.0))), packed)
    assert (costs.cap(16), costs.cap(20), costs.cap(128)) == (16, 2, 2)
    queue = scheduler(costs)
    add(queue, *(work(number) for number in range(6)), work(6, 20))
    assert sorted(next_ids(queue)) == [0, 1, 2, 3, 4, 5]
    add(queue, work(7, 20))
    assert sorted(next_ids(queue)) == [6, 7]
    add(queue, work(8, 20), *(work(number) for number in range(9, 14)))
    assert len(next_ids(queue)) == 2


def test_questions_go_before_passages() -> None:
    queue = scheduler(share=0.0)
    add(queue, work(1, 64, "passages"), work(2, 16, "questions"))
    assert next_ids(queue) == [2]
    assert next_ids(queue) == [1]


@pytest.mark.parametrize("share", [0.1, 0.3])
def test_passages_keep_their_share_while_questions_never_end(share: float) -> None:
    queue = scheduler(share=share)
    spent_ms = {"questions": 0.0, "passages": 0.0}
    for number in range(0, 40_000, 20):
        add(queue, *(work(number + i) for i in range(8)), *(work(number + 10 + i, 128, "passages") for i in range(2)))
        batch = next_batch(queue, 0.0)
        spent_ms[batch.lane] += batch.predicted_ms
    measured = spent_ms["passages"] / sum(spent_ms.values())
    assert share - 0.01 <= measured <= share + 0.05


def test_passages_that_come_one_at_a_time_get_no_more_than_their_share() -> None:
    queue = scheduler(share=0.1)
    spent_ms = {"questions": 0.0, "passages": 0.0}
    add(queue, work(0, 16, "passages"))
    for number in range(1, 2000):
        add(queue, work(number * 2))
        batch = next_batch(queue, 0.0)
        spent_ms[batch.lane] += batch.predicted_ms
        if batch.lane == "passages":
            add(queue, work(number * 2 + 1, 16, "passages"))
    assert spent_ms["passages"] / sum(spent_ms.values()) == pytest.approx(0.1, abs=0.02)


def test_a_full_lane_refuses_a_whole_submission_and_says_when_to_come_back() -> None:
    queue = scheduler(max_queued=4)
    add(queue, work(1), work(2), work(3))
    assert admit([queue], [work(4)], 0.0) is None
    refused = admit([queue], [work(4), work(5)], 0.0)
    assert refused is not None
    assert refused.reason == "overloaded"
    assert refused.retry_after_ms >= 1
    assert admit([queue], [work(4, lane="passages")], 0.0) is None  # another lane has room


def test_admission_refuses_what_cannot_be_ready_in_time() -> None:
    queue = scheduler()
    add(queue, *(work(number) for number in range(80)))
    wait_ms = queue.predicted_wait_ms("questions", 0.0)
    assert wait_ms == pytest.approx(80 * GAINING.item_ms(16))
    late = admit([queue], [work(100, deadline_s=wait_ms / 1e3)], 0.0)
    assert late is not None
    assert (late.reason, late.retry_after_ms) == ("overloaded", round(wait_ms))
    assert admit([queue], [work(100, deadline_s=(wait_ms + 1.01 * GAINING.ms(1, 16)) / 1e3)], 0.0) is None


def test_what_could_not_be_in_time_even_alone_is_too_late_and_not_overload() -> None:
    refused = admit([scheduler()], [work(number, 256, deadline_s=0.05) for number in range(64)], 0.0)
    assert refused is not None
    assert refused.reason == "expired"
    alone_ms = GAINING.ms(1, 16)
    refused = admit([scheduler()], [work(1, 16, deadline_s=0.9 * alone_ms / 1e3)], 0.0)
    assert refused is not None
    assert refused.reason == "expired"
    assert admit([scheduler()], [work(1, 16, deadline_s=1.1 * alone_ms / 1e3)], 0.0) is None


def test_admission_counts_every_stage_on_the_way() -> None:
    encoding, searching = scheduler(), scheduler(CostTable((Bucket(1, (1,), (100.0,)),)), max_queued=20)
    add(searching, *(work(number) for number in range(10)))
    assert admit([encoding, searching], [work(100, deadline_s=1.2)], 0.0) is None
    late = admit([encoding, searching], [work(100, deadline_s=1.05)], 0.0)
    assert late is not None
    assert late.retry_after_ms == 1000
    add(searching, *(work(number) for number in range(10, 20)))
    assert admit([encoding, searching], [work(100)], 0.0) is not None  # the second queue is full
    assert admit([encoding], [work(100)], 0.0) is None


def test_the_predicted_wait_counts_the_running_batch_and_shrinks_as_it_runs() -> None:
    queue = scheduler()
    add(queue, work(1, 256))
    batch = next_batch(queue, 10.0)
    assert queue.predicted_wait_ms("questions", 10.0) == pytest.approx(batch.predicted_ms)
    assert queue.predicted_wait_ms("questions", 10.005) == pytest.approx(batch.predicted_ms - 5)
    queue.finished(10.006)
    assert queue.predicted_wait_ms("questions", 10.006) == 0.0


def run_under_load(queue: Scheduler[None], slowdown: float, now_s: float, batches: int) -> float:
    """Batches that each leave something waiting, and take `slowdown` times what the table says; returns the time."""
    for _ in range(batches):
        add(queue, *(work(next(NUMBERS)) for _ in range(16)), now_s=now_s)
        batch = next_batch(queue, now_s)
        now_s += slowdown * batch.predicted_ms / 1e3
        queue.finished(now_s)
    return now_s


def test_the_predicted_wait_follows_what_batches_take_under_load() -> None:
    queue = scheduler()
    now_s = run_under_load(queue, 2.0, 0.0, 60)
    queue.next_batch(now_s)
    queue.finished(now_s)
    by_the_table_ms = len(queue) * GAINING.item_ms(16)
    assert queue.predicted_wait_ms("questions", now_s) == pytest.approx(2 * by_the_table_ms, rel=0.02)


def test_a_lone_work_that_took_long_changes_no_prediction() -> None:
    queue = scheduler()
    add(queue, work(1))
    next_ids(queue)
    queue.finished(60.0)
    add(queue, work(2), now_s=60.0)
    assert queue.predicted_wait_ms("questions", 60.0) == pytest.approx(GAINING.item_ms(16))


def test_a_process_that_was_suspended_does_not_refuse_for_long() -> None:
    queue = scheduler()
    now_s = run_under_load(queue, 1.0, 0.0, 5)
    now_s = run_under_load(queue, 1.0, now_s + 3600, 1)
    queue.next_batch(now_s)
    queue.finished(now_s)
    assert queue.predicted_wait_ms("questions", now_s) <= 4 * len(queue) * GAINING.item_ms(16)
    now_s = run_under_load(queue, 1.0, now_s, 200)
    assert queue.predicted_wait_ms("questions", now_s) == pytest.approx(len(queue) * GAINING.item_ms(16), rel=0.02)


def test_passages_wait_for_questions_but_not_the_other_way_round() -> None:
    queue = scheduler()
    add(queue, work(1, 64, "passages"))
    assert queue.predicted_wait_ms("questions", 0.0) == 0.0
    add(queue, work(2))
    assert queue.predicted_wait_ms("passages", 0.0) > GAINING.item_ms(64)


LONE = CostTable((Bucket(256, (1,), (10.0,)),))  # a work a batch, each 10 ms


def test_a_source_alone_is_served_by_age() -> None:
    queue = scheduler(LONE)
    add(queue, *(work(number, source=7) for number in (3, 1, 2)))
    assert [next_ids(queue) for _ in range(3)] == [[3], [1], [2]]


def test_a_stream_that_asks_for_much_does_not_hold_up_one_that_asks_for_little() -> None:
    queue = scheduler(LONE)
    add(queue, *(work(number, source=1) for number in range(100)))
    assert next_ids(queue) == [0]
    add(queue, work(200, source=2), work(300))
    assert {*next_ids(queue), *next_ids(queue), *next_ids(queue)} == {1, 200, 300}
    add(queue, work(201, source=2))
    assert 201 in (*next_ids(queue), *next_ids(queue))


def test_sources_share_the_time_not_the_number_of_works() -> None:
    costs = CostTable((Bucket(16, (1,), (10.0,)), Bucket(64, (1,), (40.0,))))
    queue = scheduler(costs)
    add(queue, *(work(number, source=1) for number in range(100)))
    add(queue, *(work(100 + number, 64, source=2) for number in range(100)))
    ran = [next_ids(queue)[0] for _ in range(50)]
    assert sum(number < 100 for number in ran) == pytest.approx(40, abs=1)


def test_no_turn_is_saved_up() -> None:
    queue = scheduler(LONE)
    add(queue, *(work(number, source=1) for number in range(50)))
    for _ in range(30):
        next_ids(queue)
    add(queue, *(work(100 + number, source=2) for number in range(50)))
    ran = [next_ids(queue)[0] for _ in range(20)]
    assert sum(number < 100 for number in ran) == pytest.approx(10, abs=1)


@pytest.mark.parametrize("waiting", [1, 2, 16])
def test_a_stream_with_always_something_waiting_gets_its_share_and_no_more(waiting: int) -> None:
    queue = scheduler(CostTable((Bucket(16, (1,), (5.0,)), Bucket(64, (1,), (40.0,)))))
    spent_ms = {1: 0.0, 0: 0.0}
    ids = itertools.count()
    add(queue, *(work(next(ids), 64, source=1) for _ in range(waiting)), *(work(next(ids)) for _ in range(50)))
    for _ in range(400):
        batch = next_batch(queue)
        (entry,) = batch.entries
        spent_ms[entry.work.source] += batch.predicted_ms
        add(queue, work(next(ids), entry.work.tokens, source=entry.work.source))  # one comes as one goes
    assert spent_ms[0] / sum(spent_ms.values()) == pytest.approx(0.5, abs=0.03)


def test_what_is_cancelled_was_no_turn() -> None:
    queue = scheduler(LONE)
    add(queue, *(work(number, source=1) for number in range(50)), work(100))
    add(queue, *(work(200 + number) for number in range(100)))
    for number in range(100):
        queue.cancel(200 + number)
    next_ids(queue)
    add(queue, work(300))
    ran = [next_ids(queue)[0] for _ in range(4)]
    assert {100, 300} <= set(ran)


def test_a_stream_leaves_room_for_others_and_all_other_calls_may_take_the_whole_lane() -> None:
    queue = scheduler(max_queued=100)
    taken = {1: 0, 2: 0, 0: 0}
    ids = itertools.count()
    for source in taken:
        while admit([queue], [one := work(next(ids), source=source)], 0.0) is None:
            add(queue, one)
            taken[source] += 1
    assert taken == {1: 80, 2: 16, 0: 4}


def test_a_call_as_large_as_the_lane_fits_when_it_is_empty() -> None:
    queue = scheduler(max_queued=4)
    assert admit([queue], [work(number, source=1) for number in range(4)], 0.0) is None


def test_the_predicted_wait_is_for_the_turn_and_not_for_all_that_a_stream_has() -> None:
    queue = scheduler(LONE)
    add(queue, *(work(number, source=1) for number in range(100)))
    assert queue.predicted_wait_ms("questions", 0.0, 2, 10.0) == pytest.approx(10.0)
    assert queue.predicted_wait_ms("questions", 0.0, 1, 10.0) == pytest.approx(1000.0)
    assert admit([queue], [work(200, source=2, deadline_s=0.05)], 0.0) is None
    assert admit([queue], [work(200, source=1, deadline_s=0.05)], 0.0) is not None


def test_expired_and_cancelled_work_never_runs() -> None:
    queue = scheduler()
    add(queue, work(1, deadline_s=5.0), work(2, deadline_s=7.0), work(3), work(4))
    assert queue.cancel(3) is not None
    assert queue.cancel(3) is None
    assert queue.cancel(99) is None
    assert closed(queue, 5.0) == ([2, 4], [1])
    assert closed(queue, 8.0) == ([], [])
    assert len(queue) == 0
    assert queue.predicted_wait_ms("questions", 100.0) == 0.0


def test_what_its_batch_would_make_late_is_dropped_and_the_rest_runs() -> None:
    queue = scheduler()
    full_s = GAINING.ms(8, 16) / 1e3
    add(queue, *(work(number, deadline_s=0.9 * full_s) for number in range(3)))
    add(queue, *(work(number, deadline_s=1.1 * full_s) for number in range(3, 20)))
    assert closed(queue) == (list(range(3, 11)), [0, 1, 2])


def test_what_could_be_ready_only_alone_runs_alone_where_the_rest_can_wait() -> None:
    queue = scheduler()
    add(queue, work(0, deadline_s=1.1 * GAINING.ms(1, 16) / 1e3), *(work(number) for number in range(1, 9)))
    assert closed(queue) == ([0], [])
    assert closed(queue) == (list(range(1, 9)), [])


def test_a_batch_ends_before_what_would_make_its_oldest_late() -> None:
    queue = scheduler()
    add(queue, work(0, deadline_s=1.1 * GAINING.ms(3, 16) / 1e3), *(work(number) for number in range(1, 9)))
    ran, dropped = closed(queue)
    assert (len(ran), ran[0], dropped) == (3, 0, [])


def test_lone_work_runs_if_it_can_be_ready_in_time_and_else_is_dropped() -> None:
    queue = scheduler()
    add(queue, work(0, deadline_s=1.1 * GAINING.ms(1, 16) / 1e3))
    assert closed(queue) == ([0], [])
    add(queue, work(1, deadline_s=0.9 * GAINING.ms(1, 16) / 1e3))
    assert closed(queue) == ([], [1])
    assert len(queue) == 0


def test_work_that_goes_on_leaves_time_for_the_next_stage() -> None:
    alone_s = GAINING.ms(1, 16) / 1e3
    queue = scheduler(after_ms=100.0)
    add(queue, work(0, deadline_s=alone_s + 0.09, k=5))
    assert closed(queue) == ([], [0])
    add(queue, work(1, deadline_s=alone_s + 0.09), work(2, 256, deadline_s=alone_s + 0.2, k=5))
    assert closed(queue) == ([1], [])
    assert closed(queue) == ([2], [])


def test_a_lane_whose_works_are_all_too_late_does_not_keep_the_other_one_from_running() -> None:
    queue = scheduler()
    add(queue, *(work(number, deadline_s=0.001) for number in range(3)), work(3, 64, "passages"))
    assert closed(queue) == ([3], [0, 1, 2])


def test_what_would_be_late_follows_what_batches_take_under_load() -> None:
    in_time_by_the_table_s = 1.5 * GAINING.ms(8, 16) / 1e3
    for slowdown, ran in ((1.0, True), (2.0, False)):
        queue = scheduler()
        now_s = run_under_load(queue, slowdown, 0.0, 60)
        for request_id in range(1_000_000, next(NUMBERS)):
            queue.cancel(request_id)
        add(queue, *(work(number, deadline_s=now_s + in_time_by_the_table_s) for number in range(8)), now_s=now_s)
        ids, dropped = closed(queue, now_s)
        assert (ids, dropped) == ((list(range(8)), []) if ran else ([], list(range(8))))


def test_after_a_bad_moment_work_is_not_dropped_for_long() -> None:
    """Else nothing would run, and so nothing be learned."""
    queue = scheduler()
    now_s = run_under_load(queue, 4.0, 0.0, 60)
    for request_id in range(1_000_000, next(NUMBERS)):
        queue.cancel(request_id)
    deadline_ms = 2 * GAINING.ms(1, 16)
    add(queue, work(0, deadline_s=now_s + deadline_ms / 1e3), now_s=now_s)
    assert closed(queue, now_s) == ([], [0])
    add(queue, work(1, deadline_s=now_s + deadline_ms / 1e3), now_s=now_s)
    assert closed(queue, now_s) == ([1], [])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(1, 256), st.sampled_from([0.0, 0.004, 0.006, 0.01, 0.02, 0.05, 1000.0])),
        min_size=1,
        max_size=40,
    )
)
def test_only_what_is_in_time_runs_the_oldest_of_it_first_and_the_rest_is_dropped(
    texts: list[tuple[int, float]],
) -> None:
    queue, now_s = scheduler(), 0.0
    works = [work(number, tokens, deadline_s=deadline_s) for number, (tokens, deadline_s) in enumerate(texts)]
    add(queue, *works)
    waiting = set(range(len(works)))
    while waiting:
        batch, dropped = queue.next_batch(now_s)
        gone = {entry.work.request_id for entry in dropped}
        assert gone <= waiting
        assert all(works[number].deadline_s < 1000.0 for number in gone)
        waiting -= gone
        if batch is None:
            assert not waiting
            break
        ran = {entry.work.request_id for entry in batch.entries}
        assert ran <= waiting
        assert min(ran) == min(waiting)
        assert all(works[number].deadline_s > now_s + batch.predicted_ms / 1e3 for number in ran)
        waiting -= ran
        now_s += batch.predicted_ms / 1e3
        queue.finished(now_s)
    assert len(queue) == 0


def test_under_endless_load_with_far_deadlines_nothing_piles_up() -> None:
    queue = scheduler()
    ids = itertools.count()

    def keep_busy(batches: int) -> None:
        for _ in range(batches):
            add(queue, *(work(next(ids)) for _ in range(8)))
            assert len(next_ids(queue)) == 8

    add(queue, work(next(ids)))
    keep_busy(100)
    tracemalloc.start()
    try:
        keep_busy(2000)
        gc.collect()
        # Of these two files: threads of other tests may allocate meanwhile.
        own = [tracemalloc.Filter(True, file) for file in (schedulers.__file__, __file__)]
        grown_bytes = sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(own).traces)
    finally:
        tracemalloc.stop()
    assert len(queue) == 1
    assert grown_bytes < 100_000, "16,000 works have come and gone"


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 256), st.sampled_from(["questions", "passages"])),
            st.tuples(st.just("stream"), st.integers(1, 256), st.sampled_from(["questions", "passages"])),
            st.tuples(st.just("run"), st.just(0), st.just("")),
            st.tuples(st.just("cancel"), st.integers(0, 60), st.just("")),
        ),
        max_size=80,
    )
)
def test_every_work_leaves_the_queue_exactly_once_and_none_is_overtaken_for_ever(
    steps: list[tuple[str, int, Lane]],
) -> None:
    queue = scheduler()
    waiting: dict[int, tuple[Lane, int]] = {}  # id -> lane, batches of its lane that may still go before it
    ids = iter(range(1000))
    streams = any(kind == "stream" for kind, *_ in steps)  # among sources turns go round; age counts within one

    def run() -> None:
        batch, dropped = queue.next_batch(0.0)
        assert dropped == []
        assert (batch is None) == (not waiting)
        if batch is None:
            return
        assert len(batch.entries) <= max(SIZES)
        for entry in batch.entries:
            assert waiting.pop(entry.work.request_id)[0] == batch.lane
        for request_id, (lane, ahead) in waiting.items():
            if lane == batch.lane and not streams:
                assert ahead > 0, "overtaken by more batches than there were works before it"
                waiting[request_id] = (lane, ahead - 1)

    for kind, number, lane in steps:
        if kind in ("add", "stream"):
            request_id = next(ids)
            source = number % 3 + 1 if kind == "stream" else 0
            add(queue, work(request_id, number, lane, source=source))
            waiting[request_id] = (lane, sum(1 for other, _ in waiting.values() if other == lane))
        elif kind == "run":
            run()
        else:
            assert (queue.cancel(number) is not None) == (waiting.pop(number, None) is not None)
    while waiting:
        run()
    assert queue.next_batch(0.0) == (None, [])
    assert queue.predicted_wait_ms("passages", FAR) == 0.0
