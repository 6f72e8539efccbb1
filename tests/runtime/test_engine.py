"""The engine's promises, with stages that the tests hold at a gate instead of sleeping."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.costs import Bucket, CostTable
from narrows.engine import EncodeStage, Engine, SearchStage
from narrows.index import SearchHits
from narrows.scheduler import LaneSettings
from narrows.work import Lane, Outcome, Work

# Batches gain up to 8; a batch takes 1 ms by the table.
COSTS = CostTable((Bucket(1, (1, 8), (1.0, 1.0)), Bucket(256, (1, 8), (1.0, 1.0))))
POISON = 13
SEARCH_POISON = 17
FAR = 1e12
WAIT_S = 30.0


@dataclass
class Stages:
    """A tower that embeds a text as (its first token, its length), an index that finds rows by the first of these."""

    gate: threading.Event = field(default_factory=threading.Event)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[int]] = field(default_factory=list)
    searched: list[list[int]] = field(default_factory=list)
    threads: dict[str, set[int]] = field(default_factory=lambda: {"encode": set(), "search": set()})

    def encode(self, token_ids: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        self.threads["encode"].add(threading.get_ident())
        self.batches.append([int(ids[0]) for ids in token_ids])
        if any(POISON in ids for ids in token_ids):
            raise ValueError("poison")
        return np.array([[ids[0], len(ids)] for ids in token_ids], dtype=np.float32)

    def search(self, queries: npt.NDArray[np.float32], k: int) -> SearchHits:
        self.threads["search"].add(threading.get_ident())
        self.searched.append([int(query[0]) for query in queries])
        if SEARCH_POISON in queries[:, 0]:
            raise ValueError("poison")
        rows = queries[:, :1].astype(np.int64) + np.arange(k)
        return SearchHits(rows.astype(np.float32), rows)


class Inbox:
    """Collects outcomes, one delivery after the other."""

    def __init__(self) -> None:
        self.deliveries: list[list[Outcome]] = []
        self._changed = threading.Condition()

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        with self._changed:
            self.deliveries.append(list(outcomes))
            self._changed.notify_all()

    def wait(self, count: int) -> dict[int, Outcome]:
        """The first `count` outcomes by request id."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(map(len, self.deliveries)) >= count, WAIT_S)
            outcomes = [outcome for delivery in self.deliveries for outcome in delivery]
        assert len({outcome.request_id for outcome in outcomes}) == len(outcomes), "an outcome came twice"
        return {outcome.request_id: outcome for outcome in outcomes}


@dataclass
class Clock:
    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Running:
    engine: Engine
    stages: Stages
    inbox: Inbox
    clock: Clock


def start(own_thread: bool = True, max_queued: int = 100) -> Running:
    stages, inbox, clock = Stages(), Inbox(), Clock()
    lanes = [LaneSettings("questions", max_queued), LaneSettings("passages", max_queued, 0.1)]

    def encode_passages(token_ids: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        return -stages.encode(token_ids)

    encode = EncodeStage(
        {"questions": stages.encode, "passages": encode_passages}, {"questions": COSTS, "passages": COSTS}
    )
    engine = Engine(encode, SearchStage(stages.search, COSTS, own_thread), lanes, inbox.deliver, clock)
    return Running(engine, stages, inbox, clock)


@pytest.fixture
def running() -> Iterator[Running]:
    made = start()
    yield made
    made.stages.gate.set()
    made.engine.close()


def text(request_id: int, first: int, *, k: int = 0, lane: Lane = "questions", deadline_s: float = FAR) -> Work:
    return Work(request_id, lane, deadline_s, token_ids=np.array([first, 7, 7], dtype=np.int64), k=k)


def hold(running: Running, k: int = 0) -> Work:
    """Occupies the encoder with request 1 until the gate opens."""
    work = text(1, 1, k=k)
    running.engine.submit([work])
    assert running.stages.entered.acquire(timeout=WAIT_S)
    return work


def test_a_text_is_embedded_and_searched_with(running: Running) -> None:
    running.stages.gate.set()
    running.engine.submit([text(1, 40, k=3)])
    outcome = running.inbox.wait(1)[1]
    assert outcome.refusal is None
    assert outcome.embedding is not None
    assert outcome.rows is not None
    assert outcome.scores is not None
    assert outcome.embedding.tolist() == [40.0, 3.0]
    assert outcome.rows.tolist() == [40, 41, 42]
    assert outcome.scores.tolist() == [40.0, 41.0, 42.0]
    assert outcome.timings.batch_size == 1


def test_a_vector_goes_straight_to_the_search(running: Running) -> None:
    running.engine.submit([Work(1, "questions", FAR, vector=np.array([5, 0], dtype=np.float32), k=2)])
    outcome = running.inbox.wait(1)[1]
    assert outcome.rows is not None
    assert outcome.rows.tolist() == [5, 6]
    assert outcome.timings.batch_size == 0
    assert running.stages.batches == []


def test_works_that_come_while_the_device_is_busy_run_as_one_batch_with_one_completion(running: Running) -> None:
    hold(running)
    for request_id, tokens in ((2, 3), (3, 3), (4, 5)):
        ids = np.array([request_id] + [7] * (tokens - 1), dtype=np.int64)
        running.engine.submit([Work(request_id, "questions", FAR, token_ids=ids)])
    running.stages.gate.set()
    outcomes = running.inbox.wait(4)
    assert running.stages.batches == [[1], [2, 3, 4]]
    assert [len(delivery) for delivery in running.inbox.deliveries] == [1, 3]
    timings = [outcomes[request_id].timings for request_id in (2, 3, 4)]
    assert {(timing.batch_size, timing.batch_tokens) for timing in timings} == {(3, 5)}


def test_each_work_of_a_batch_gets_its_own_k(running: Running) -> None:
    hold(running)
    running.engine.submit([text(2, 20, k=1), text(3, 30, k=4), text(4, 40)])
    running.stages.gate.set()
    outcomes = running.inbox.wait(4)
    rows = {number: None if o.rows is None else o.rows.tolist() for number, o in outcomes.items()}
    assert rows == {1: None, 2: [20], 3: [30, 31, 32, 33], 4: None}
    assert running.stages.searched == [[20, 30]]


def test_each_lane_has_its_own_tower(running: Running) -> None:
    running.stages.gate.set()
    running.engine.submit([text(1, 5, lane="passages")])
    running.engine.submit([text(2, 5)])
    outcomes = running.inbox.wait(2)
    assert outcomes[1].embedding is not None
    assert outcomes[2].embedding is not None
    assert outcomes[1].embedding.tolist() == [-5.0, -3.0]
    assert outcomes[2].embedding.tolist() == [5.0, 3.0]


def test_cancelled_work_is_never_computed(running: Running) -> None:
    hold(running)
    running.engine.submit([text(2, 2), text(3, 3)])
    running.engine.cancel([2])
    assert running.inbox.wait(1)[2].refusal == "cancelled"
    running.stages.gate.set()
    running.inbox.wait(3)
    assert running.stages.batches == [[1], [3]]


def test_work_cancelled_while_it_is_encoded_is_not_searched(running: Running) -> None:
    running.engine.submit([text(1, 10, k=5)])
    assert running.stages.entered.acquire(timeout=WAIT_S)
    running.engine.cancel([1])
    running.stages.gate.set()
    assert running.inbox.wait(1)[1].refusal == "cancelled"
    running.engine.close()
    assert running.stages.searched == []


@pytest.mark.parametrize(
    ("deadline_s", "now_s"),
    [
        pytest.param(101.0, 102.0, id="expired"),
        pytest.param(100.0025, 100.002, id="not ready in time: a batch takes 1 ms"),
    ],
)
def test_work_that_is_too_late_is_never_computed(running: Running, deadline_s: float, now_s: float) -> None:
    hold(running)
    running.engine.submit([text(2, 2, deadline_s=deadline_s)])
    running.engine.submit([text(3, 3, deadline_s=103.0)])
    running.clock.now_s = now_s
    running.stages.gate.set()
    outcomes = running.inbox.wait(3)
    assert outcomes[2].refusal == "expired"
    assert outcomes[3].refusal is None
    assert running.stages.batches == [[1], [3]]


def test_a_full_queue_refuses_the_whole_submission() -> None:
    running = start(max_queued=2)
    hold(running)
    running.engine.submit([text(2, 2)])
    running.engine.submit([text(3, 3), text(4, 4)])
    outcomes = running.inbox.wait(2)
    assert {outcomes[3].refusal, outcomes[4].refusal} == {"overloaded"}
    assert outcomes[3].retry_after_ms >= 1
    running.stages.gate.set()
    running.engine.close()
    assert running.stages.batches == [[1], [2]]


def test_a_deadline_shorter_than_the_predicted_wait_is_refused_at_once(running: Running) -> None:
    hold(running)
    running.engine.submit([text(2, 2, deadline_s=100.001)])
    assert running.inbox.wait(1)[2].refusal == "overloaded"
    running.engine.submit([text(3, 3, deadline_s=100.0001)])
    assert running.inbox.wait(2)[3].refusal == "expired", "too late even alone"


def test_a_bad_work_fails_alone_and_its_mates_are_answered(running: Running) -> None:
    hold(running)
    running.engine.submit([text(2, 2), text(3, POISON), text(4, 4)])
    running.stages.gate.set()
    outcomes = running.inbox.wait(4)
    assert {number: outcome.refusal for number, outcome in outcomes.items()} == {1: None, 2: None, 3: "failed", 4: None}
    running.engine.submit([text(5, 5)])
    assert running.inbox.wait(5)[5].refusal is None, "the engine goes on"


def test_what_ends_while_its_batch_fails_is_not_computed_again(running: Running) -> None:
    running.engine.submit([text(2, 2), text(3, POISON), text(4, 4), text(5, 5, deadline_s=101.0)])
    assert running.stages.entered.acquire(timeout=WAIT_S), "the batch runs"
    running.engine.cancel([2])
    running.clock.now_s = 102.0
    running.stages.gate.set()
    outcomes = running.inbox.wait(4)
    assert [outcomes[number].refusal for number in (2, 3, 4, 5)] == ["cancelled", "failed", None, "expired"]
    assert running.stages.batches == [[2, POISON, 4, 5], [POISON], [4]]


def test_closing_finishes_what_is_queued_and_refuses_what_comes_after() -> None:
    running = start()
    hold(running)
    running.engine.submit([text(2, 20, k=2)])
    closing = threading.Thread(target=running.engine.close)
    closing.start()
    running.stages.gate.set()
    closing.join(WAIT_S)
    running.engine.submit([text(3, 3)])
    outcomes = running.inbox.wait(3)
    assert {number: outcome.refusal for number, outcome in outcomes.items()} == {1: None, 2: None, 3: "draining"}
    assert outcomes[2].rows is not None


@pytest.mark.parametrize("own_thread", [True, False])
def test_an_index_of_its_own_affinity_leaves_the_encoders_thread_free(own_thread: bool) -> None:
    running = start(own_thread)
    running.stages.gate.set()
    running.engine.submit([text(number, number, k=1) for number in range(20, 40)])
    running.inbox.wait(20)
    running.engine.close()
    threads = running.stages.threads
    assert len(threads["encode"]) == len(threads["search"]) == 1
    assert (threads["encode"] != threads["search"]) == own_thread


def test_a_receiver_that_fails_does_not_stop_the_engine() -> None:
    stages, inbox, failing = Stages(), Inbox(), iter([True])
    stages.gate.set()

    def deliver(outcomes: Sequence[Outcome]) -> None:
        if next(failing, False):
            raise RuntimeError("the receiver is broken")
        inbox.deliver(outcomes)

    encode = EncodeStage({"questions": stages.encode}, {"questions": COSTS})
    engine = Engine(encode, None, [LaneSettings("questions", 9)], deliver)
    engine.submit([text(1, 1)])
    assert stages.entered.acquire(timeout=WAIT_S)
    engine.submit([text(2, 2)])
    engine.close()
    assert inbox.wait(1)[2].refusal is None


# Whatever happens in whatever order


STEPS = st.one_of(
    st.tuples(st.just("submit"), st.integers(1, 4), st.integers(0, 2), st.sampled_from([0.5, 5.0, FAR])),
    st.tuples(st.just("vectors"), st.integers(1, 3)),
    st.tuples(st.just("cancel"), st.integers(0, 20)),
    st.tuples(st.just("later"), st.sampled_from([0.4, 2.0])),
    st.tuples(st.just("open")),
    st.tuples(st.just("hold")),
)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(steps=st.lists(STEPS, max_size=25), own_thread=st.booleans())
def test_every_work_ends_once_with_its_own_answer_or_a_reason(steps: list[tuple], own_thread: bool) -> None:
    """Of works that are submitted, cancelled, late and bad in any order, while batches run and fail."""
    running = start(own_thread, max_queued=12)
    works = [hold(running, k=1)]
    cancelled: set[int] = set()
    for step, *values in steps:
        first = len(works) + 1
        match step, values:
            case "submit", [count, k, seconds]:
                ids = range(first, first + count)
                made = [text(each, each, k=k, deadline_s=running.clock.now_s + seconds) for each in ids]
            case "vectors", [count]:
                ids = range(first, first + count)
                made = [Work(each, "questions", FAR, vector=np.array([each, 3], np.float32), k=1) for each in ids]
            case "cancel", [number]:
                chosen = [number % len(works) + 1, 1000]  # and one that was never there
                cancelled.update(chosen)
                running.engine.cancel(chosen)
                continue
            case "later", [seconds]:
                running.clock.now_s += seconds
                continue
            case _:
                running.stages.gate.set() if step == "open" else running.stages.gate.clear()
                continue
        works += made
        running.engine.submit(made)
    running.stages.gate.set()
    running.engine.close()
    outcomes = running.inbox.wait(len(works))
    assert sorted(outcomes) == [work.request_id for work in works]
    for work in works:
        outcome = outcomes[work.request_id]
        match outcome.refusal:
            case None:
                assert outcome.embedding is not None
                assert outcome.embedding.tolist() == [work.request_id, 3.0]
                assert (outcome.rows is not None) == (work.k > 0)
                assert outcome.rows is None or outcome.rows[0] == work.request_id
            case "cancelled":
                assert work.request_id in cancelled
            case "expired":
                assert work.deadline_s <= running.clock.now_s
            case "failed":
                assert work.request_id in (POISON, SEARCH_POISON)
            case _:
                assert outcome.refusal == "overloaded"
        assert outcome.refusal or work.request_id != (POISON if work.vector is None else None)
        assert outcome.refusal or not (work.request_id == SEARCH_POISON and work.k)
