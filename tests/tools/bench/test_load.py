"""The load generator against targets whose behaviour is known, on a clock that waiting moves and nothing else."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc
import numpy as np
import pytest

from narrows_tools.bench.load import Background, ClosedLoop, LoadReport, Offline, OpenLoop
from narrows_tools.bench.metrics import goodput_deadline_ms, histograms_of, metrics_of
from narrows_tools.bench.servers import Usage
from narrows_tools.bench.targets import Reply, Target, TargetSpec, Text, status_of

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Waits by moving the clock."""

    now_s = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "the loop would wait for ever"
            self.now_s += timeout
        return ready


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time, but its clock says that it did."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run(load: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(load)


@dataclass
class Server:
    """One that answers one request after another, each in `service_s`, and none between the times of `stall_s`."""

    service_s: float = 0.010
    stall_s: tuple[float, float] = (0.0, 0.0)
    answer: Callable[[int], Reply] = lambda number: Reply("ok")
    texts: list[str] = field(default_factory=list)
    free_s: float = 0.0
    start_s: float | None = None

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def send(self, text: Text, timeout_s: float) -> Reply:
        loop = asyncio.get_running_loop()
        self.start_s = loop.time() if self.start_s is None else self.start_s
        self.texts.append(text.text)
        number = len(self.texts) - 1
        begin_s = max(loop.time() - self.start_s, self.free_s)
        if self.stall_s[0] <= begin_s < self.stall_s[1]:
            begin_s = self.stall_s[1]
        self.free_s = begin_s + self.service_s
        await asyncio.sleep(self.start_s + self.free_s - loop.time())
        return self.answer(number)


def texts(count: int, tokens: int = 10) -> list[Text]:
    return [Text(f"text {number}", tokens) for number in range(count)]


def every(seconds: float, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.arange(count) * seconds


def open_loop(server: Target, schedule: np.ndarray[Any, np.dtype[np.float64]], deadline_ms: float = 100) -> LoadReport:
    return run(OpenLoop(texts(len(schedule)), schedule, 10.0, deadline_ms).run(server))


def test_an_unhurried_server_shows_its_service_time() -> None:
    report = open_loop(Server(), every(0.020, 50))
    assert report.latency.p50_ms == pytest.approx(10, rel=0.01)
    assert report.latency.max_ms == pytest.approx(10, rel=0.01)
    assert report.throughput_per_s == pytest.approx(50 / (49 * 0.020 + 0.010))


def test_every_request_that_a_stall_holds_up_pays_for_it() -> None:
    """A server that stops for a second: who measured only from the actual sending would see one slow request."""
    report = open_loop(Server(stall_s=(0.0, 1.0)), every(0.020, 100))
    # The n-th request is due at n * 20 ms and answered at 1 s + (n + 1) * 10 ms until the queue is empty.
    expected = [max(1000 + 10 * (n + 1) - 20 * n, 10) for n in range(100)]
    assert report.latency.p50_ms == pytest.approx(np.percentile(expected, 50, method="lower"), rel=0.02)
    assert report.latency.p90_ms == pytest.approx(np.percentile(expected, 90, method="lower"), rel=0.02)
    assert report.latency.max_ms == pytest.approx(1010, rel=0.01)
    assert report.send_lag.max_ms < 0.01


def test_latency_counts_from_the_intended_time_even_when_the_generator_is_late() -> None:
    class Blocking(Server):
        async def send(self, text: Text, timeout_s: float) -> Reply:
            if not self.texts:  # the first call keeps the event loop from running for a second
                loop = asyncio.get_running_loop()
                loop._jumping.now_s += 1.0  # type: ignore[attr-defined]
            return await super().send(text, timeout_s)

    report = open_loop(Blocking(service_s=0.001), every(0.010, 50))
    assert report.latency.max_ms > 900
    assert report.send_lag.p50_ms > 500  # and the report tells who is to blame
    assert metrics_of(report)["generator_late"] == 1


def test_a_closed_loop_does_not_see_a_stall_but_once_a_client() -> None:
    server = Server(stall_s=(0.0, 1.0))
    report = run(ClosedLoop(texts(100), 1, 60.0, 10.0, 100.0).run(server))
    assert report.latency.p90_ms == pytest.approx(10, rel=0.01)
    assert report.throughput_per_s == pytest.approx(100)  # the first answer of each client is left out


def test_a_closed_loop_ends_with_its_time_and_counts_only_what_came_in_it() -> None:
    server = Server()
    report = run(ClosedLoop(texts(1000), 4, 1.0, 10.0, 100.0).run(server))
    assert report.throughput_per_s == pytest.approx(100)
    assert report.requests < 110
    assert report.latency.p50_ms == pytest.approx(40, rel=0.01)


def test_a_closed_loop_that_is_too_short_for_its_clients_counts_everything() -> None:
    for duration_s in (0.001, 0.025):  # no answer comes in time, or two
        report = run(ClosedLoop(texts(100), 4, duration_s, 10.0, 100.0).run(Server()))
        assert report.requests >= 4
        assert report.throughput_per_s == pytest.approx(100)


def test_each_text_is_sent_once() -> None:
    for load in (
        OpenLoop(texts(50), every(0.001, 50), 10.0, 100.0),
        ClosedLoop(texts(50), 4, 60.0, 10.0, 100.0),
        Offline(texts(50), 4, 10.0),
    ):
        server = Server()
        assert run(load.run(server)).requests == 50
        assert sorted(server.texts) == sorted(text.text for text in texts(50))


def test_goodput_counts_what_is_ok_and_in_time_and_shares_are_of_all() -> None:
    """Of eight requests at once, each 10 ms: four are in time for 45 ms, and of these one is refused."""
    statuses: Mapping[int, Reply] = {1: Reply("refused"), 5: Reply("late"), 6: Reply("failed")}
    server = Server(answer=lambda number: statuses.get(number, Reply("ok")))
    report = open_loop(server, every(0.0, 8), deadline_ms=45)
    assert report.counts == {"ok": 5, "refused": 1, "late": 1, "failed": 1}
    assert report.within_deadline == 3
    assert report.throughput_per_s == pytest.approx(5 / 0.080)
    assert report.goodput_per_s == pytest.approx(3 / 0.080)
    metrics = metrics_of(report, Usage(1.0, 5, 20.0, 100.0, 2), Usage(1.4, 7, 20.9, 101.0, 2))
    assert metrics["in_time_share"] == pytest.approx(3 / 8)
    assert {metrics[f"{name}_share"] for name in ("refused", "late", "failed")} == {1 / 8}
    assert metrics["server_cpu_ms_per_request"] == pytest.approx(400 / 8)
    assert metrics["rss_bytes"] == 7
    assert metrics["others_cpu_share"] == pytest.approx((0.9 - 0.4) / 2)


@pytest.mark.parametrize(
    ("code", "overdue", "status"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, False, "refused"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, True, "late"),
        (grpc.StatusCode.CANCELLED, True, "late"),  # by the server, at the deadline
        (grpc.StatusCode.CANCELLED, False, "failed"),
        (grpc.StatusCode.UNAVAILABLE, True, "failed"),
        (grpc.StatusCode.INTERNAL, False, "failed"),
    ],
)
def test_what_an_error_means(code: grpc.StatusCode, overdue: bool, status: str) -> None:
    assert status_of(code, overdue=overdue) == status


def test_nothing_but_failures_is_a_report_too() -> None:
    report = open_loop(Server(answer=lambda number: Reply("failed")), every(0.01, 5))
    assert report.counts["failed"] == 5
    assert (report.throughput_per_s, report.latency.p99_ms, report.padding_share) == (0, 0, None)
    metrics = metrics_of(report)
    assert metrics["failed_share"] == 1
    assert "p99_ms" not in metrics  # a latency of 0 would be the best of all


def test_padding_is_the_share_of_computed_tokens_that_are_no_text() -> None:
    report = open_loop(Server(answer=lambda number: Reply("ok", 4, 16 if number < 6 else 0)), every(0.01, 8))
    assert report.padding_share == pytest.approx(1 - 10 / 16)  # of those whose batch is known
    assert histograms_of(report) == {"batch_size": {"4": 8}, "batch_tokens": {"16": 6}, "tokens": {"16": 8}}


def test_the_mean_batch_is_that_of_batches_not_of_requests() -> None:
    sizes = [1, 1, 4, 4, 4, 4]
    report = open_loop(Server(answer=lambda number: Reply("ok", sizes[number], 10)), every(0.01, 6))
    assert report.batch_size_mean == pytest.approx(6 / 3)


class BatchServer(Server):
    """Takes up to 8 texts in a request."""

    max_items = 8

    async def send_batch(self, texts: list[Text], timeout_s: float) -> list[Reply]:
        assert len(texts) <= 8
        return [await self.send(text, timeout_s) for text in texts]


def test_a_target_that_takes_batches_gets_them_offline() -> None:
    report = run(Offline(texts(20), 2, 10.0).run(BatchServer()))
    assert (report.requests, report.counts["ok"]) == (20, 20)
    assert report.throughput_per_s == pytest.approx(100)


def test_passages_in_the_background_go_on_until_the_questions_are_answered() -> None:
    background = Background(TargetSpec(f"{__name__}:BatchServer"), texts(16), 10.0)
    load = OpenLoop(texts(50), every(0.020, 50), 10.0, 100.0, background)
    report = run(load.run(Server()))
    assert report.requests == 50
    assert report.background_per_s == pytest.approx(100, rel=0.2)
    assert metrics_of(report)["passages_failed_count"] == 0


class FailingBatchServer(BatchServer):
    """Fails every request of several texts, after a while."""

    async def send_batch(self, texts: list[Text], timeout_s: float) -> list[Reply]:
        await asyncio.sleep(self.service_s)
        return [Reply("failed")] * len(texts)


def test_a_background_of_which_nothing_is_encoded_is_told_from_none() -> None:
    background = Background(TargetSpec(f"{__name__}:FailingBatchServer"), texts(16), 10.0)
    load = OpenLoop(texts(5), every(0.020, 5), 10.0, 100.0, background)
    metrics = metrics_of(run(load.run(Server())))
    assert metrics["passages_per_s"] == 0
    assert metrics["passages_failed_count"] > 0
    assert "passages_per_s" not in metrics_of(open_loop(Server(), every(0.020, 5)))


@pytest.mark.parametrize(("single_ms", "deadline_ms"), [(3.0, 100.0), (10.0, 100.0), (25.0, 250.0)])
def test_the_deadline_of_goodput(single_ms: float, deadline_ms: float) -> None:
    assert goodput_deadline_ms(single_ms) == deadline_ms
