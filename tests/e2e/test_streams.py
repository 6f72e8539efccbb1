"""SearchStream and EncodeStream of a real server: the same answers as the unary calls, and nobody harmed."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio
import numpy as np
import pytest
from server_process import ServerProcess, server

from narrows import Client
from narrows.bundle import Bundle
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc
from narrows_export import corpus

SERVICE = "/narrows.v1.RetrievalService"
DIM = 64
QUESTIONS = [question.question for question in corpus.questions("en")]
LONG = "river " * 400
LONG_TEXT = " ".join(passage.text for passage in corpus.passages("en")[:12])
SLOW = pb.EncodeRequest(passages=[pb.Passage(text=LONG_TEXT)] * 64)
ON_TOO_LONG = (pb.ON_TOO_LONG_TRUNCATE, pb.ON_TOO_LONG_ERROR)
VECTORS = pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, rows=2, dim=DIM, data=np.ones((2, DIM), dtype="<f4").tobytes())

SEARCHES = [
    *(pb.SearchRequest(questions=QUESTIONS[start : start + 3], k=7) for start in range(0, 30, 3)),
    *(pb.SearchRequest(questions=["rivers", LONG], k=2, view=view) for view in pb.PassageView.values()),
    *(pb.SearchRequest(questions=["rivers", LONG], k=2, on_too_long=rule) for rule in ON_TOO_LONG),
    *(pb.SearchRequest(questions=["rivers"], k=1, corpus=name) for name in ("", "demo", "wikipedia")),
    *(pb.SearchRequest(questions=["rivers"], k=1, expected_bundle=name) for name in ("small", "other")),
    pb.SearchRequest(question_embeddings=VECTORS, k=5),
    pb.SearchRequest(),
    pb.SearchRequest(questions=["rivers", " "]),
    pb.SearchRequest(questions=["rivers"], view=9),  # type: ignore[arg-type]
    pb.SearchRequest(questions=["rivers"], k=1001),
    pb.SearchRequest(questions=["rivers"] * 64, k=300),  # more than one reply holds
    pb.SearchRequest(question_embeddings=pb.Tensor(rows=1, dim=DIM, data=b"123")),
]
PASSAGES = [pb.Passage(title=passage.title, text=passage.text) for passage in corpus.passages("en")[:12]]
ENCODES = [
    *(pb.EncodeRequest(questions=[question], passages=PASSAGES[:2]) for question in QUESTIONS[:10]),
    *(pb.EncodeRequest(passages=PASSAGES, dtype=dtype) for dtype in pb.DataType.values()),
    *(pb.EncodeRequest(passages=[PASSAGES[0], pb.Passage(text=LONG)], on_too_long=rule) for rule in ON_TOO_LONG),
    *(pb.EncodeRequest(questions=["rivers"], expected_bundle=name) for name in ("small", "other")),
    pb.EncodeRequest(),
    pb.EncodeRequest(questions=["rivers"], dtype=5),  # type: ignore[arg-type]
    pb.EncodeRequest(passages=[PASSAGES[0], pb.Passage(id="x")]),
]

Stub: TypeAlias = "retrieval_pb2_grpc.RetrievalServiceAsyncStub"


def run(address: str, test: Callable[[Stub], Coroutine[Any, Any, None]]) -> None:
    """Runs a test with a stub of the server."""

    async def connected() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            await test(retrieval_pb2_grpc.RetrievalServiceStub(channel))

    asyncio.run(asyncio.wait_for(connected(), 120))


def search_item(request_id: str, request: pb.SearchRequest, timeout_ms: int = 0) -> pb.SearchStreamRequest:
    return pb.SearchStreamRequest(request_id=request_id, search=request, timeout_ms=timeout_ms)


def encode_item(request_id: str, request: pb.EncodeRequest, timeout_ms: int = 0) -> pb.EncodeStreamRequest:
    return pb.EncodeStreamRequest(request_id=request_id, encode=request, timeout_ms=timeout_ms)


async def write_all(call: Any, items: Iterable[Any]) -> None:
    for item in items:
        await call.write(item)
    await call.done_writing()


async def ask_all(method: Any, items: Sequence[Any]) -> list[Any]:
    """Writes and reads at the same time, half-closes, and returns the answers as they came."""
    call = method()
    writing = asyncio.create_task(write_all(call, items))
    answers = [answer async for answer in call]
    await writing
    assert await call.code() == grpc.StatusCode.OK
    return answers


async def unary(method: Any, request: Any) -> Any:
    """What the unary call says: the reply, or the same as an ItemError."""
    try:
        return await method(request, timeout=60)
    except grpc.aio.AioRpcError as error:
        trailers = dict(iter(error.trailing_metadata()))
        return pb.ItemError(
            code=error.code().value[0],
            reason=str(trailers["narrows-reason"]),
            message=error.details() or "",
            field=str(trailers.get("narrows-field", "")),
        )


def without_timings(reply: Any) -> Any:
    if not isinstance(reply, pb.ItemError):
        reply.served.ClearField("timings")
    return reply


@pytest.mark.parametrize("kind", ["search", "encode"])
def test_streamed_answers_and_errors_are_those_of_the_unary_calls_bit_for_bit(
    running: ServerProcess, kind: str
) -> None:
    async def test(stub: Stub) -> None:
        if kind == "search":
            method, items = stub.Search, [search_item(str(n), request) for n, request in enumerate(SEARCHES)]
            requests, stream = SEARCHES, stub.SearchStream
        else:
            method, items = stub.Encode, [encode_item(str(n), request) for n, request in enumerate(ENCODES)]
            requests, stream = ENCODES, stub.EncodeStream
        answers = {answer.request_id: answer for answer in await ask_all(stream, items)}
        assert len(answers) == len(items)
        reasons = set()
        for number, request in enumerate(requests):
            answer, expected = answers[str(number)], await unary(method, request)
            if isinstance(expected, pb.ItemError):
                assert answer.error == expected
                reasons.add(expected.reason)
            else:
                assert without_timings(answer.result) == without_timings(expected)
                assert answer.result.served.passage_variant == "fp32"
        searched = {"UNKNOWN_CORPUS", "REPLY_TOO_LARGE"} if kind == "search" else set()
        assert reasons == {"INVALID_FIELD", "OTHER_BUNDLE"} | searched

    run(running.address, test)


def test_a_slow_request_holds_up_nobody(running: ServerProcess) -> None:
    async def test(stub: Stub) -> None:
        items = [encode_item("slow", SLOW), encode_item("quick", pb.EncodeRequest(questions=["rivers"]))]
        answers = await ask_all(stub.EncodeStream, items)
        assert [answer.request_id for answer in answers] == ["quick", "slow"]
        assert answers[1].result.embeddings.rows == 64

    run(running.address, test)


def test_a_request_has_a_deadline_of_its_own(running: ServerProcess) -> None:
    async def test(stub: Stub) -> None:
        items = [encode_item("in time", SLOW, 60_000), encode_item("hasty", SLOW, 1), encode_item("default", SLOW)]
        answers = {answer.request_id: answer for answer in await ask_all(stub.EncodeStream, items)}
        assert answers["hasty"].error.reason in ("DEADLINE_EXCEEDED", "OVERLOADED")
        assert answers["in time"].HasField("result")
        assert answers["default"].HasField("result")

    run(running.address, test)


def test_bad_items_are_named_where_they_can_be(running: ServerProcess) -> None:
    async def test(stub: Stub) -> None:
        good = pb.SearchRequest(questions=["rivers"], k=1)
        longest = "é" * 256
        items = [
            search_item("twice", good),
            pb.SearchStreamRequest(request_id="empty"),
            search_item(longest + "x", good),
            search_item(longest, good),
            search_item("", good),
            search_item("twice", good),
        ]
        answers = await ask_all(stub.SearchStream, items)
        errors = {answer.error.field: answer.request_id for answer in answers if answer.HasField("error")}
        assert errors == {"search": "empty", "request_id": ""}
        named = sorted(answer.request_id for answer in answers if answer.HasField("result"))
        assert named == ["", "twice", "twice", longest]

    run(running.address, test)


def test_a_message_that_cannot_be_decoded_is_an_error_of_its_own(running: ServerProcess) -> None:
    async def test() -> None:
        async with grpc.aio.insecure_channel(running.address) as channel:
            good = search_item("good", pb.SearchRequest(questions=["rivers"], k=1)).SerializeToString()
            call = channel.stream_stream(f"{SERVICE}/SearchStream")()
            await write_all(call, [b"\xff\xff\xff\xff", good])
            answers = [pb.SearchStreamResponse.FromString(raw) async for raw in call]
            assert [answer.request_id for answer in answers] == ["", "good"]
            assert answers[0].error.code == 3
            assert answers[1].HasField("result")

    asyncio.run(test())


def test_an_empty_stream_ends_well(running: ServerProcess) -> None:
    async def test(stub: Stub) -> None:
        assert await ask_all(stub.SearchStream, []) == []

    run(running.address, test)


def test_a_deadline_on_the_call_ends_the_whole_stream(running: ServerProcess, client: Client) -> None:
    async def test(stub: Stub) -> None:
        call = stub.EncodeStream(timeout=0.2)
        await call.write(encode_item("never", SLOW, 60_000))
        await call.read()  # type: ignore[func-returns-value]
        await call.read()

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        run(running.address, test)
    assert ended.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert len(client.search(["rivers"], k=1)[0]) == 1


def test_a_cancelled_stream_leaves_room_for_others(small_bundle: Bundle) -> None:
    async def test(stub: Stub) -> None:
        call = stub.EncodeStream()
        await call.write(encode_item("outstanding", SLOW))
        await call.write(encode_item("seen", pb.EncodeRequest()))
        assert (await call.read()).request_id == "seen"  # type: ignore[union-attr]
        call.cancel()
        while isinstance(reply := await unary(stub.Encode, SLOW), pb.ItemError):
            assert reply.reason == "OVERLOADED"
        assert reply.embeddings.rows == 64

    with server(small_bundle.path, None, max_queued_passages="64") as running:
        run(running.address, test)
        assert running.stop() == 0


def resident_bytes(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text("ascii")
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def test_a_client_that_never_reads_is_held_back_and_costs_little(small_bundle: Bundle, small_index: Path) -> None:
    padded = "rivers" + " " * 16_000
    request = pb.SearchRequest(questions=[padded] * 16, k=100)  # 256 kB, and as much in reply
    wanted = 400  # all of it would be 100 MB in either direction

    async def test(stub: Stub) -> None:
        await ask_all(stub.SearchStream, [search_item(str(number), request) for number in range(8)])
        before = resident_bytes(running.process.pid)
        written = 0
        call = stub.SearchStream()

        async def write() -> None:
            nonlocal written
            for number in range(wanted):
                await call.write(search_item(str(number), request))
                written += 1

        writing = asyncio.create_task(write())
        seen = -1
        while written == 0 or written != seen:
            seen = written
            await asyncio.wait([writing], timeout=1.0)
        assert 0 < written < wanted, "flow control holds the writer back"
        assert resident_bytes(running.process.pid) - before < 60 * 2**20
        reply = await stub.Search(pb.SearchRequest(questions=["lakes"], k=1), timeout=30)
        assert len(reply.results) == 1, "others are served meanwhile"
        first = await call.read()
        assert isinstance(first, pb.SearchStreamResponse)
        assert len(first.result.results) == 16, "and it goes on when it reads"
        assert running.stop() == 0, "a client that does not read holds up the shutdown for drain_ms at most"
        call.cancel()
        await asyncio.gather(writing, return_exceptions=True)

    with server(small_bundle.path, small_index, max_stream_in_flight="4", drain_ms="500") as running:
        run(running.address, test)


def test_a_stream_of_one_in_flight_answers_all_in_order(small_bundle: Bundle, small_index: Path) -> None:
    async def test(stub: Stub) -> None:
        items = [search_item(str(number), pb.SearchRequest(questions=QUESTIONS[:1], k=1)) for number in range(200)]
        answers = await ask_all(stub.SearchStream, items)
        assert [answer.request_id for answer in answers] == [item.request_id for item in items]
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.limits.max_stream_in_flight == 1
        assert {"search_stream", "encode_stream"} <= set(info.features)
        assert info.question_encoder.text_preset == info.context_encoder.text_preset == "hf"
        assert info.served.passage_variant == info.served.variant == "fp32"

    with server(small_bundle.path, small_index, max_stream_in_flight="1") as running:
        run(running.address, test)


def test_sigterm_answers_what_was_read_and_ends_the_stream(small_bundle: Bundle, frontends: str) -> None:
    async def test(stub: Stub) -> None:
        idle = stub.SearchStream()
        await idle.write(search_item("x", pb.SearchRequest(questions=["rivers"])))
        await idle.read()
        call = stub.EncodeStream()
        for number in range(6):
            await call.write(encode_item(str(number), SLOW))
        await call.write(encode_item("seen", pb.EncodeRequest()))
        answers = [await call.read()]
        while answers[-1].request_id != "seen":  # answered at once: all before it are read by now
            answers.append(await call.read())
        assert len(answers) < 7
        running.process.terminate()
        while len(answers) < 7:
            answers.append(await call.read())
        assert all(answer.HasField("result") for answer in answers if answer.request_id != "seen")
        for stream in (call, idle):
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await stream.read()
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
            assert dict(iter(ended.value.trailing_metadata()))["narrows-reason"] == "DRAINING"

    with server(small_bundle.path, None, frontends=frontends, drain_ms="600000") as running:
        run(running.address, test)
        assert running.process.wait(30) == 0
