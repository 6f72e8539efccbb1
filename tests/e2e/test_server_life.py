"""Start, health, reflection, overload, deadlines, shutdown: with real processes and real signals."""

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from checkpoints import Pair, write_dpr
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server_process import NARROWS, ServerProcess, environment, run_narrows, server

from narrows import (
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    MismatchError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from narrows.bundle import Bundle
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc
from narrows_export import corpus
from narrows_export.export import ExportRequest, export_bundle

T = TypeVar("T")

SERVICE = "narrows.v1.RetrievalService"
LONG_TEXT = " ".join(passage.text for passage in corpus.passages("en")[:12])


def test_health_and_reflection_are_served(running: ServerProcess) -> None:
    with grpc.insecure_channel(running.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE, "readiness", "liveness"):
            reply = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reply = next(iter(reflection.ServerReflectionInfo(iter([request]), timeout=10)))
        assert SERVICE in [service.name for service in reply.list_services_response.service]


def test_a_deadline_that_cannot_be_met_is_refused_or_exceeded(client: Client) -> None:
    with pytest.raises((DeadlineExceededError, OverloadedError)):
        client.search([LONG_TEXT] * 4, timeout_s=0.0005)


def test_a_server_that_does_not_answer_is_named() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with Client(address) as client, pytest.raises(DeadlineExceededError, match=f"{address}: no answer within"):
            client.search(["a question?"], timeout_s=0.1)


def test_a_client_that_hangs_up_leaves_the_server_well(running: ServerProcess, client: Client) -> None:
    with grpc.insecure_channel(running.address) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        passages = [pb.Passage(text=LONG_TEXT)] * 64
        calls = [stub.Encode.future(pb.EncodeRequest(passages=passages), timeout=60) for _ in range(6)]
        for call in calls:
            call.cancel()
    assert len(client.search(["rivers"], k=1)[0]) == 1


def test_a_full_queue_is_overload_with_a_time_to_come_back(minilm_bundle: Bundle, frontends: str) -> None:
    # MiniLM, because the queue fills only where encoding takes longer than reading a call and cutting it into tokens
    with (
        server(minilm_bundle.path, None, frontends=frontends, max_items="4", max_queued_questions="4") as busy,
        Client(busy.address) as client,
        grpc.insecure_channel(busy.address) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        statuses = [next(health).status]
        listening = threading.Thread(target=lambda: statuses.extend(change.status for change in no_error(health)))
        listening.start()
        clients, results = 12, []

        def ask(number: int) -> None:
            try:
                results.append(client.encode_questions([f"{LONG_TEXT} {number}-{part}" for part in range(4)]))
            except OverloadedError as error:
                results.append(error)

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients)))
        refused = [result for result in results if isinstance(result, OverloadedError)]
        assert refused
        assert len(refused) < clients
        assert all("too many questions" in str(error) for error in refused)
        assert all(error.retry_after_ms >= 1 for error in refused)
        assert len(client.encode_questions(["rivers"] * 4)) == 4, "what fits is still served"
        health.cancel()
        listening.join()
        assert statuses == [health_pb2.HealthCheckResponse.SERVING], "overload is no failure"


def no_error(stream: Iterator[T]) -> Iterator[T]:
    """What a stream brings until it ends, however."""
    with contextlib.suppress(grpc.RpcError):
        yield from stream


def test_an_encode_only_server_needs_no_index(small_bundle: Bundle, frontends: str) -> None:
    with server(small_bundle.path, None, frontends=frontends) as running, Client(running.address) as client:
        assert client.encode_questions(["rivers"]).shape == (1, 64)
        assert client.server_info().corpora == ()
        with pytest.raises(NotFoundError, match="no index"):
            client.search(["rivers"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_exits_0(
    small_bundle: Bundle, small_index: Path, frontends: str, number: signal.Signals
) -> None:
    with (
        server(small_bundle.path, small_index, frontends=frontends) as running,
        Client(running.address, timeout_s=30.0) as client,
    ):
        pairs = [("", LONG_TEXT)] * 40
        started = threading.Barrier(5)

        def encode() -> int:
            started.wait(30)
            return len(client.encode_passages(pairs))

        with ThreadPoolExecutor(4) as pool:
            futures: list[Future[int]] = [pool.submit(encode) for _ in range(4)]
            started.wait(30)
            client.search(["rivers"])  # the server is at work on the others by now
            assert running.stop(number) == 0
            for future in futures:
                with contextlib.suppress(UnavailableError):  # those that came after the signal
                    assert future.result() == len(pairs)
        with pytest.raises(UnavailableError):
            client.search(["rivers"], timeout_s=5.0)


def test_a_signal_while_loading_ends_the_process_at_once(small_bundle: Bundle, frontends: str) -> None:
    command = [*NARROWS, "serve", "--bundle", str(small_bundle.path), "--listen", "127.0.0.1:0"]
    variables = environment(NARROWS_WARMUP_BUDGET_MS="600000", NARROWS_FRONTENDS=frontends)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables) as process:
        assert process.stderr is not None
        assert any("loaded on cpu" in line for line in process.stderr)  # now it measures batches
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


def test_a_watch_of_the_health_does_not_hold_up_the_shutdown(small_bundle: Bundle, frontends: str) -> None:
    with (
        server(small_bundle.path, None, frontends=frontends, drain_ms="600000") as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert running.stop(timeout_s=30.0) == 0
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_an_index_beside_other_towers_is_refused_by_name(
    tmp_path: Path, small_index: Path, small_pair: Pair, vocabulary: list[str], frontends: str
) -> None:
    other = write_dpr(tmp_path / "other", "context_encoder", vocabulary, seed=99)
    out = tmp_path / "other.bundle"
    export_bundle(
        ExportRequest(str(small_pair.question), str(other), out, "other", allow_unpaired=True), step=lambda what: None
    )
    places = ["--bundle", str(out), "--index", str(small_index), "--listen", "127.0.0.1:0"]
    failed = run_narrows("serve", *places, "--frontends", frontends)
    assert failed.returncode == 1
    assert "another context encoder" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert MismatchError.__name__ not in failed.stderr


def test_a_port_in_use_is_said_so(small_bundle: Bundle, frontends: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        failed = run_narrows("serve", "--bundle", str(small_bundle.path), "--listen", address, "--frontends", frontends)
    assert failed.returncode == 1
    assert f"cannot listen on {address}" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve"], "which bundle"),
        (["serve", "--bundle", "/no/such"], "/no/such is not a bundle"),
        (["serve", "--bundle", "/no/such", "--listen", "foo"], "--listen must be HOST:PORT"),
        (["serve", "--bundle", "/no/such", "--listen", "127.0.0.1:99999"], "--listen must be HOST:PORT"),
        (["serve", "--bundle", "x", "--config", "/no/such.toml"], "/no/such.toml cannot be read"),
        (["index", "info", "/no/such"], "/no/such is not an index"),
        (["search", "rivers", "--server", "127.0.0.1:1", "--timeout", "2"], "127.0.0.1:1"),
    ],
)
def test_expected_failures_are_one_line_and_status_1(arguments: list[str], message: str) -> None:
    failed = run_narrows(*arguments)
    assert failed.returncode == 1
    assert message in failed.stderr
    assert "Traceback" not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_search_prints_answers_and_json(running: ServerProcess) -> None:
    shown = run_narrows("search", "rivers", "-k", "2", "--server", running.address)
    assert shown.returncode == 0
    assert "  1. " in shown.stdout
    assert "  2. " in shown.stdout
    import json

    piped = run_narrows("search", "rivers", "lakes", "-k", "3", "--json", "--server", running.address)
    rows = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [row["question"] for row in rows] == ["rivers", "lakes"]
    assert [len(row["hits"]) for row in rows] == [3, 3]


def test_an_unreachable_server_is_unavailable() -> None:
    with Client("127.0.0.1:1", timeout_s=5.0) as client, pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        client.search(["rivers"])


def test_a_message_over_grpcs_limit_is_an_invalid_request(client: Client) -> None:
    with pytest.raises(InvalidRequestError):
        client.encode_passages([("", "x" * 2_000_000)])


def test_files_are_hashed_at_the_first_start_then_only_if_they_changed(
    tmp_path: Path, small_bundle: Bundle, small_index: Path
) -> None:
    bundle = shutil.copytree(small_bundle.path, tmp_path / "b", ignore=shutil.ignore_patterns(".*"))
    index = shutil.copytree(small_index, tmp_path / "i", ignore=shutil.ignore_patterns(".*"))
    with server(bundle, index):
        stamp = index / ".g000001.verified"
        forged = json.loads(stamp.read_bytes())
        assert (bundle / ".verified").exists()
    blob = index / "g000001" / "passages.blob"
    blob.write_bytes(blob.read_bytes().swapcase())
    command = ["serve", "--bundle", str(bundle), "--index", str(index), "--listen", "127.0.0.1:0"]
    done = run_narrows(*command)
    assert (done.returncode, "passages.blob does not match the manifest" in done.stderr) == (1, True)
    # A stamp that fits the changed file stands for a change that no stamp can see; full reads the bytes.
    assert not stamp.exists(), "a failed check takes the stamp away"
    for name in forged["files"]:
        found = (index / "g000001" / name).stat()
        forged["files"][name] = {
            "size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns,
            "inode": found.st_ino,
        }  # fmt: skip
    stamp.write_text(json.dumps(forged))
    with server(bundle, index):
        pass
    done = run_narrows(*command, "--verify", "full")
    assert (done.returncode, "passages.blob does not match the manifest" in done.stderr) == (1, True)
    done = run_narrows(*command, "--verify", "never")
    assert "--verify must be full or stamp, not 'never'" in done.stderr
