"""The simulated server, and through it the real scheduler: what must hold for any arrivals, and how well it does."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.costs import Bucket, CostTable
from narrows.scheduler import LaneSettings
from narrows_tools.bench import batch_costs
from narrows_tools.bench.schedule import poisson
from narrows_tools.bench.simulation import (
    Call,
    Ran,
    Server,
    Simulated,
    Stage,
    ceiling_per_s,
    closed_loop,
    open_loop,
    saturation_per_s,
    simulate,
)
from narrows_tools.bench.traffic import lengths

# Measured by `narrows bench simulate --bundle minilm.bundle --threads 1 --save-costs ...` on one core (AVX2).
MINILM = batch_costs.load(Path(__file__).parents[2] / "data" / "minilm_costs.json")

SIZES = (1, 2, 4, 8, 16)
GAINING = CostTable(
    tuple(Bucket(tokens, SIZES, tuple(4.0 + 0.05 * size * tokens for size in SIZES)) for tokens in (8, 64, 256))
)
LINEAR = CostTable(tuple(Bucket(tokens, SIZES, tuple(0.1 * size * tokens for size in SIZES)) for tokens in (8, 256)))
SEARCH = CostTable((Bucket(1, SIZES, (3.0, 3.5, 4.0, 5.0, 9.0)),))
SLOW_SEARCH = CostTable((Bucket(1, (1, 2), (40.0, 45.0)),))


@st.composite
def calls(draw: st.DrawFn) -> list[Call]:
    """Up to 40 calls, close together or far apart, some of them with many texts, short deadlines or a search."""
    now_s, found = 0.0, []
    for _ in range(draw(st.integers(1, 40))):
        now_s += draw(st.sampled_from([0.0, 0.0005, 0.004, 0.05]))
        tokens = tuple(draw(st.lists(st.integers(2, 256), min_size=1, max_size=draw(st.sampled_from([1, 1, 12])))))
        lane = draw(st.sampled_from(["questions", "passages"]))
        timeout_s = draw(st.sampled_from([0.0, 0.02, 0.06, 0.3, 1000.0]))
        found.append(Call(now_s, tokens, lane, k=draw(st.sampled_from([0, 10])), timeout_s=timeout_s))
    return found


SERVERS = st.builds(
    Server,
    encode=st.sampled_from([Stage.of(GAINING), Stage.of(LINEAR), Stage.of(GAINING, lambda n, t: 2 * GAINING.ms(n, t))]),
    search=st.sampled_from([Stage.of(SEARCH), Stage.of(SLOW_SEARCH)]),
    own_thread=st.booleans(),
    lanes=st.sampled_from(
        [(LaneSettings("questions", 12), LaneSettings("passages", 24, 0.1)), Server(Stage.of(LINEAR)).lanes]
    ),
)


def ends_s(batch: Ran) -> float:
    return batch.began_s + batch.took_ms / 1e3


def batches(found: Simulated, stage: str) -> dict[int, Ran]:
    """The batch of each text, which has at most one in a stage."""
    texts = [text for batch in found.batches if batch.stage == stage for text in batch.texts]
    assert len(set(texts)) == len(texts)
    return {text: batch for batch in found.batches if batch.stage == stage for text in batch.texts}


def texts_of(arrivals: list[Call]) -> list[range]:
    ends = np.cumsum([len(call.tokens) for call in arrivals])
    return [range(int(end) - len(call.tokens), int(end)) for end, call in zip(ends, arrivals, strict=True)]


@settings(derandomize=True, deadline=None, max_examples=100)
@given(calls(), SERVERS)
def test_every_call_ends_once_and_what_is_answered_was_computed_once(arrivals: list[Call], server: Server) -> None:
    found = simulate(arrivals, server)
    encoded, searched = batches(found, "encode"), batches(found, "search")
    assert [item.call for item in found.ended] == arrivals
    for item, texts in zip(found.ended, texts_of(arrivals), strict=True):
        call = item.call
        if item.ending == "refused":
            assert item.at_s == call.at_s
            assert not any(text in encoded or text in searched for text in texts)
        if item.ending == "ok":
            last = searched if call.k else encoded
            assert item.at_s == max(ends_s(last[text]) for text in texts)
            assert item.at_s <= call.at_s + call.timeout_s
        for place, text in enumerate(texts):
            if text in encoded:
                batch = encoded[text]
                assert batch.lane == call.lane
                assert batch.tokens[batch.texts.index(text)] == call.tokens[place]
                assert batch.began_s >= call.at_s
            if text in searched:
                assert call.k > 0
                assert searched[text].began_s >= ends_s(encoded[text])


@settings(derandomize=True, deadline=None, max_examples=100)
@given(calls(), SERVERS)
def test_expired_work_is_never_begun_and_no_batch_is_above_its_cap(arrivals: list[Call], server: Server) -> None:
    found = simulate(arrivals, server)
    deadline_s = {
        text: call.at_s + call.timeout_s
        for call, texts in zip(arrivals, texts_of(arrivals), strict=True)
        for text in texts
    }
    for batch in found.batches:
        assert all(batch.began_s < deadline_s[text] for text in batch.texts)
        stage = server.encode if batch.stage == "encode" else server.search
        assert stage is not None
        assert len(batch.texts) <= stage.costs[batch.lane].cap(max(batch.tokens))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(calls(), SERVERS)
def test_a_thread_runs_one_batch_at_a_time_and_never_idles_while_work_waits(
    arrivals: list[Call], server: Server
) -> None:
    found = simulate(arrivals, server)
    came_s = {call.at_s for call in arrivals}
    ended_s = {ends_s(batch) for batch in found.batches}
    threads = [["encode"], ["search"]] if server.own_thread else [["encode", "search"]]
    for stages in threads:
        own = [batch for batch in found.batches if batch.stage in stages]
        for before, after in itertools.pairwise(own):
            assert ends_s(before) <= after.began_s
    # A batch begins when a text comes or a batch ends: it is never held back for a fuller one.
    assert all(batch.began_s in came_s | ended_s for batch in found.batches)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(calls(), SERVERS)
def test_nothing_is_overtaken_by_more_batches_than_there_was_work_before_it(
    arrivals: list[Call], server: Server
) -> None:
    found = simulate(arrivals, server)
    encoded = batches(found, "encode")
    for call, texts in zip(arrivals, texts_of(arrivals), strict=True):
        for text in texts:
            if text not in encoded:
                continue
            own_s = encoded[text].began_s
            before = [other for other in encoded if other < text and encoded[other].lane == call.lane]
            waiting = sum(encoded[other].began_s >= call.at_s for other in before)
            ahead = {
                batch.began_s
                for batch in found.batches
                if batch.stage == "encode" and batch.lane == call.lane and call.at_s <= batch.began_s < own_s
            }
            # What expired or was cancelled meanwhile stood before it too, but took no batch.
            assert len(ahead) <= waiting


def test_the_same_calls_end_in_the_same_way() -> None:
    arrivals = open_loop(poisson(300.0, 500, 1), lengths("short", 500, 256))
    assert simulate(arrivals, MINILM.server(7)) == simulate(arrivals, MINILM.server(7))
    assert simulate(arrivals, MINILM.server(7)) != simulate(arrivals, MINILM.server(8))


def test_a_queue_without_batches_waits_as_long_as_theory_says() -> None:
    """M/D/1: a mean wait of load / (2 (1 - load)) services (Pollaczek 1930, Khinchine 1932)."""
    load, service_ms, count = 0.7, 10.0, 20_000
    server = Server(Stage.of(CostTable((Bucket(16, (1,), (service_ms,)),))))
    found = simulate(open_loop(poisson(load / service_ms * 1e3, count, 0), [16] * count), server)
    waits_ms = [(item.at_s - item.call.at_s) * 1e3 - service_ms for item in found.ended]
    assert np.mean(waits_ms) == pytest.approx(service_ms * load / (2 * (1 - load)), rel=0.05)
    assert found.metrics()["utilisation_share"] == pytest.approx(load, rel=0.03)


def test_clients_of_a_closed_loop_each_wait_for_their_answer() -> None:
    """One client: one batch after the other. As many as there are calls: all at once. Between: never more waiting."""
    tokens = shuffled("short", 400)
    alone = closed_loop(tokens, 1, MINILM.server())
    assert [batch.tokens for batch in alone.batches] == [(length,) for length in tokens]
    most = saturation_per_s(tokens, MINILM.server())
    assert closed_loop(tokens, 400, MINILM.server()).metrics()["throughput_per_s"] == pytest.approx(most)
    found = closed_loop(tokens, 16, MINILM.server())
    for item in found.ended:
        waiting = sum(other.call.at_s <= item.call.at_s < other.at_s for other in found.ended)
        assert waiting <= 16
    assert alone.metrics()["throughput_per_s"] < found.metrics()["throughput_per_s"] < most


def test_a_lone_question_takes_its_stages_and_nothing_more() -> None:
    found = simulate([Call(5.0, (8,), k=10)], Server(Stage.of(GAINING), Stage.of(SEARCH)))
    assert found.metrics()["p50_ms"] == pytest.approx(GAINING.ms(1, 8) + 3.0)


@pytest.mark.parametrize(("own_thread", "elapsed_ms"), [(True, 3 * 4.4 + 3.0), (False, 3 * (4.4 + 3.0))])
def test_a_search_on_its_own_thread_holds_up_no_encoding(own_thread: bool, elapsed_ms: float) -> None:
    one = CostTable((Bucket(8, (1,), (4.4,)),))
    server = Server(Stage.of(one), Stage.of(CostTable((Bucket(1, (1,), (3.0,)),))), own_thread)
    found = simulate([Call(0.0, (8,), k=10)] * 3, server)
    assert max(item.at_s for item in found.ended) * 1e3 == pytest.approx(elapsed_ms)


# --- how well the scheduler does, on costs measured on one core


@pytest.mark.parametrize(("traffic", "share"), [("short", 0.95), ("mixed", 0.95)])
def test_at_saturation_the_scheduler_is_near_the_best_that_the_costs_allow(traffic: str, share: float) -> None:
    tokens = shuffled(traffic, 1000)
    assert share <= saturation_per_s(tokens, MINILM.server()) / ceiling_per_s(tokens, MINILM.actual.ms) <= 1.0


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95, 1.5])
def test_padding_of_mixed_lengths_stays_below_5_percent(load: float) -> None:
    tokens = shuffled("mixed", 1000)
    rate = load * saturation_per_s(tokens, MINILM.server())
    found = simulate(open_loop(poisson(rate, len(tokens), 0), tokens), MINILM.server()).metrics()
    assert found["padding_share"] <= 0.05


@pytest.mark.parametrize("load", [1.2, 3.0])
@pytest.mark.parametrize(("timeout_s", "least"), [(0.1, 0.85), (0.25, 0.92), (1.0, 0.92)])
def test_above_saturation_the_answers_in_time_are_nearly_as_many_as_ever(
    load: float, timeout_s: float, least: float
) -> None:
    tokens = shuffled("short", 2000)
    saturation = saturation_per_s(tokens, MINILM.server())
    calls = open_loop(poisson(load * saturation, len(tokens), 0), tokens, timeout_s=timeout_s)
    found = simulate(calls, MINILM.server(0))
    assert found.metrics()["throughput_per_s"] > least * saturation
    computed = {text for batch in found.batches for text in batch.texts}
    in_vain = sum(item.ending == "late" and number in computed for number, item in enumerate(found.ended))
    assert in_vain < 0.01 * len(calls)


def test_questions_hardly_wait_for_passages_and_passages_keep_their_share() -> None:
    count = 600
    passages = [Call(0.0, (128,) * 16, "passages", timeout_s=1000.0) for _ in range(30)]
    questions = open_loop(poisson(100.0, count, 0), shuffled("short", count))
    found = simulate(sorted([*passages, *questions], key=lambda call: call.at_s), MINILM.server())
    alone = simulate(questions, MINILM.server()).metrics()["p99_ms"]
    longest_ms = max(batch.took_ms for batch in found.batches if batch.lane == "passages")
    assert found.metrics()["p99_ms"] <= 2 * (alone + longest_ms)
    while_both_s = min(max(ends_s(batch) for batch in found.batches if batch.lane == lane) for lane in LANES)
    spent = Counter[str]()
    for batch in found.batches:
        if ends_s(batch) <= while_both_s:
            spent[batch.lane] += batch.took_ms
    assert spent["passages"] / spent.total() >= 0.1


LANES = ("questions", "passages")


def shuffled(traffic: str, count: int) -> list[int]:
    return [int(length) for length in np.random.default_rng(0).permutation(lengths(traffic, count, 256))]


def test_metrics_of_a_lane_without_calls_or_answers_are_left_out() -> None:
    found = simulate([Call(0.0, (8,), timeout_s=0.0)], Server(Stage.of(GAINING)))
    assert found.metrics() == {"refused_share": 1.0, "late_share": 0.0}
    assert found.metrics("passages") == {}
    assert found.batch_sizes() == {}


def test_saturation_is_measured_without_refusals() -> None:
    server = replace(Server(Stage.of(LINEAR)), lanes=(LaneSettings("questions", 1), LaneSettings("passages", 1)))
    assert saturation_per_s([10] * 50, server) == pytest.approx(1e3)
    assert math.isclose(ceiling_per_s([10, 30], LINEAR.ms), 2e3 / 4)
