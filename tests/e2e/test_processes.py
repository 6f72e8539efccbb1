"""Fronts and an engine in processes of their own: what each death costs, and that nothing is left behind."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest
from building import build
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import PATIENCE_S, ServerProcess, server, until

from narrows import Client, EngineDownError, NarrowsError, PoisonousError, UnavailableError
from narrows.bundle import Bundle
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

ENGINE, FRONT = "narrows.engine_process", "narrows.server.front_process"


def children(running: ServerProcess, module: str) -> list[int]:
    """The process ids of a server's children that run `module`."""
    return [number for number in running.children() if module in Path(f"/proc/{number}/cmdline").read_text("utf-8")]


def all_children(running: ServerProcess) -> list[int]:
    return children(running, ENGINE) + children(running, FRONT)


def is_gone(process_id: int) -> bool:
    try:
        return Path(f"/proc/{process_id}/stat").read_text("ascii").rpartition(") ")[2].startswith("Z")
    except FileNotFoundError:
        return True


@dataclass
class Load:
    """What clients that ask all the time have seen; the failures with the seconds that each took."""

    answered: int = 0
    failures: list[tuple[NarrowsError, float]] = field(default_factory=list)

    def goes_on(self) -> None:
        """Waits for 20 more answers."""
        before = self.answered
        until(lambda: self.answered >= before + 20)


@contextmanager
def load(address: str, clients: int = 4) -> Iterator[Load]:
    """Asks all the time."""
    seen, end = Load(), threading.Event()

    def ask() -> None:
        with Client(address, timeout_s=PATIENCE_S) as client:
            while not end.is_set():
                started_s = time.monotonic()
                try:
                    client.search(["rivers"], k=1)
                    seen.answered += 1
                except NarrowsError as error:
                    seen.failures.append((error, time.monotonic() - started_s))
                    end.wait(0.02)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        end.set()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a call hangs"


@pytest.fixture
def many(small_bundle: Bundle, small_index: Path) -> Iterator[ServerProcess]:
    """A server of two fronts and an engine, whose end leaves no process."""
    with server(small_bundle.path, small_index, frontends="2") as running:
        seen = all_children(running)
        assert len(seen) == 3
        yield running
        if running.process.poll() is None:
            seen += all_children(running)
            assert running.stop() == 0
        until(lambda: all(map(is_gone, seen)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV])
def test_an_engine_that_dies_costs_calls_but_no_connection(many: ServerProcess, number: signal.Signals) -> None:
    (engine,) = children(many, ENGINE)
    fronts = children(many, FRONT)
    with (
        grpc.insecure_channel(many.address) as channel,
        load(many.address) as seen,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        seen.goes_on()
        os.kill(engine, number)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        seen.goes_on()
    assert seen.failures
    assert {type(error) for error, _ in seen.failures} == {EngineDownError}
    assert all("the engine has died" in str(error) for error, _ in seen.failures)
    assert all(error.retry_after_ms >= 1 for error, _ in seen.failures if isinstance(error, EngineDownError))
    assert children(many, FRONT) == fronts
    assert children(many, ENGINE) != [engine]


def test_a_call_to_a_dead_engine_says_why_and_when_to_come_back(many: ServerProcess) -> None:
    with grpc.insecure_channel(many.address) as channel:
        (engine,) = children(many, ENGINE)
        search = retrieval_pb2_grpc.RetrievalServiceStub(channel).Search
        search(pb.SearchRequest(questions=["rivers"]), timeout=PATIENCE_S)
        os.kill(engine, signal.SIGKILL)
        until(lambda: is_gone(engine))
        with pytest.raises(grpc.RpcError) as raised:
            search(pb.SearchRequest(questions=["rivers"]), timeout=PATIENCE_S)
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        trailers = dict(raised.value.trailing_metadata())
        assert trailers["narrows-reason"] == "ENGINE_DOWN"
        assert int(trailers["grpc-retry-pushback-ms"]) >= 1


def test_a_front_that_dies_loses_only_its_own_calls(many: ServerProcess) -> None:
    first, second = children(many, FRONT)
    with load(many.address, clients=8) as seen:
        seen.goes_on()
        os.kill(first, signal.SIGKILL)
        until(lambda: len(children(many, FRONT)) == 2 and first not in children(many, FRONT))
        seen.goes_on()
    assert {type(error) for error, _ in seen.failures} <= {UnavailableError}
    assert second in children(many, FRONT)


def test_signals_to_stop_are_for_the_supervisor_alone(many: ServerProcess) -> None:
    """Though an init system may send them to all processes: the others stop when it says so."""
    before = all_children(many)
    for process in before:
        os.kill(process, signal.SIGTERM)
        os.kill(process, signal.SIGINT)
    with Client(many.address, timeout_s=PATIENCE_S) as client:
        assert len(client.search(["rivers"], k=1)[0]) == 1
    assert all_children(many) == before
    assert many.stop() == 0


def test_killed_outright_it_leaves_no_process(many: ServerProcess) -> None:
    processes = all_children(many)
    assert many.stop(signal.SIGKILL) == -signal.SIGKILL
    until(lambda: all(map(is_gone, processes)))


def test_a_second_signal_ends_it_at_once(small_bundle: Bundle, frontends: str) -> None:
    with (
        server(small_bundle.path, None, frontends=frontends, drain_ms="600000") as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        processes = all_children(running)
        stream = retrieval_pb2_grpc.RetrievalServiceStub(channel).EncodeStream(iter([]), timeout=PATIENCE_S)
        list(stream)
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        running.process.send_signal(signal.SIGSTOP)  # so that both signals are there before it acts on one
        running.process.send_signal(signal.SIGTERM)
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGCONT)
        assert running.process.wait(30) in (128 + signal.SIGTERM, 128 + signal.SIGINT)
        until(lambda: all(map(is_gone, processes)))


# Two ways to die of a text, which has 77 tokens and is like nothing that is encoded at the start: at once, or in the
# search with its embedding.
ABORTS = {
    "encode": """
import os
from narrows.encoder import Encoder
encode = Encoder.encode
def aborts(self, token_ids):
    if any(len(ids) == 77 and len(set(ids.tolist())) == 3 for ids in token_ids):
        os.abort()
    return encode(self, token_ids)
Encoder.encode = aborts
""",
    "search": """
import os
import numpy
from narrows.encoder import Encoder
from narrows.index.flat import FlatIndex
encode, search, deadly = Encoder.encode, FlatIndex.search, []
def marks(self, token_ids):
    embeddings = encode(self, token_ids)
    deadly.extend(e for e, ids in zip(embeddings, token_ids) if len(ids) == 77 and len(set(ids.tolist())) == 3)
    return embeddings
def aborts(self, queries, k):
    if any(numpy.array_equal(query, e) for query in queries for e in deadly):
        os.abort()
    return search(self, queries, k)
Encoder.encode, FlatIndex.search = marks, aborts
""",
}
DEADLY = "river " * 75


@pytest.mark.parametrize("stage", ABORTS)
def test_a_text_that_kills_the_engine_twice_is_refused_and_no_other(
    tmp_path: Path, small_bundle: Bundle, small_index: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ABORTS[stage], "ascii")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with (
        server(small_bundle.path, small_index, frontends="2") as running,
        Client(running.address, timeout_s=PATIENCE_S) as client,
        load(running.address) as seen,
    ):
        for _ in range(2):
            seen.goes_on()
            with pytest.raises(EngineDownError, match="the engine has died"):
                client.search([DEADLY])
        seen.goes_on()
        (engine,) = children(running, ENGINE)
        with pytest.raises(PoisonousError, match="refused for some minutes"):
            client.search([DEADLY])
        assert len(client.search(["river " * 74], k=1)[0]) == 1
        assert children(running, ENGINE) == [engine]
    assert {type(error) for error, _ in seen.failures} == {EngineDownError}


def test_an_engine_that_does_nothing_is_not_ready_and_the_fronts_are_alive(
    small_bundle: Bundle, small_index: Path
) -> None:
    statuses = health_pb2.HealthCheckResponse
    with (
        server(small_bundle.path, small_index, frontends="1", canary_deadline_ms="2000") as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        (engine,) = children(running, ENGINE)
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="readiness"), timeout=PATIENCE_S)
        assert next(watch).status == statuses.SERVING
        os.kill(engine, signal.SIGSTOP)
        assert next(watch).status == statuses.NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest(service="liveness")).status == statuses.SERVING
        os.kill(engine, signal.SIGCONT)
        assert next(watch).status == statuses.SERVING
        assert running.stop() == 0


def passages_of(place: Path, kind: str) -> Path:
    file = place / f"{kind}.tsv"
    rows = [f"{number}\ta {kind} has number {number}\t{kind} {number}" for number in range(30)]
    file.write_text("\n".join(["id\ttext\ttitle", *rows, ""]), "utf-8")
    return file


def test_rows_of_one_index_are_never_read_from_another(tmp_path: Path, small_bundle: Bundle) -> None:
    """Neither by the fronts when the engine has opened a new one, nor by a front that comes when the engine has not."""

    def index_of(kind: str) -> Path:
        out = tmp_path / kind
        build(small_bundle, passages_of(tmp_path, kind), out, name="i")
        return out

    place = index_of("film").rename(tmp_path / "index")
    with (
        server(small_bundle.path, place, frontends="1") as running,
        Client(running.address, timeout_s=PATIENCE_S) as client,
    ):

        def kinds() -> set[str]:
            """Which kind of passage answers, asked until somebody answers."""
            while True:
                try:
                    return {hit.title.split()[0] for hit in client.search(["rivers"], k=10)[0]}
                except UnavailableError:
                    time.sleep(0.05)

        assert kinds() == {"film"}
        place.rename(tmp_path / "old")
        index_of("city").rename(place)
        assert kinds() == {"film"}
        (front,) = children(running, FRONT)
        os.kill(front, signal.SIGKILL)
        until(lambda: kinds() == {"city"})
        place.rename(tmp_path / "older")
        index_of("bird").rename(place)
        os.kill(children(running, ENGINE)[0], signal.SIGKILL)
        until(lambda: kinds() == {"bird"})
        assert running.stop() == 0
