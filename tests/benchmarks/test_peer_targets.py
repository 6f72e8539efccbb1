"""The peers' protocols, spoken to a small real server that parses them by its own means."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from benchmarks.peers.http_client import HttpClient, HttpError
from benchmarks.peers.targets import HttpTarget, InfinityTarget, LitServeTarget, MosecTarget, TritonTarget
from narrows.errors import BenchmarkError
from narrows_tools.bench.targets import Text

EMBEDDING = np.arange(6, dtype="<f4") / 7
Answer = Callable[[str, dict[str, str], bytes], bytes | None]


@dataclass
class Served:
    port: int = 0
    connections: int = 0
    requests: list[str] = field(default_factory=list)


@asynccontextmanager
async def http_server(answer: Answer) -> AsyncIterator[Served]:
    """Answers with the bytes that `answer` makes of path, headers and body; None: closes the connection."""
    served = Served()
    writers = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        writers.append(writer)
        while line := await reader.readline():
            path = line.split()[1].decode()
            headers = {}
            while (header := (await reader.readline()).decode().strip()) != "":
                name, value = header.split(": ", 1)
                headers[name.lower()] = value
            body = await reader.readexactly(int(headers["content-length"]))
            served.requests.append(path)
            reply = answer(path, headers, body)
            if reply is None:
                break
            for start in range(0, len(reply), 7):  # in pieces, as networks do
                writer.write(reply[start : start + 7])
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


def reply(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


def run(steps: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), 30))  # type: ignore[arg-type]


def mosec(path: str, headers: dict[str, str], body: bytes) -> bytes:
    assert (path, body.decode()) == ("/inference", "¿quién?")
    return reply(EMBEDDING.tobytes())


def litserve(path: str, headers: dict[str, str], body: bytes) -> bytes:
    assert (path, headers["content-type"], json.loads(body)) == ("/predict", "application/json", {"text": "¿quién?"})
    return reply(EMBEDDING.tobytes())


def infinity(path: str, headers: dict[str, str], body: bytes) -> bytes:
    asked = json.loads(body)
    assert (path, asked["input"], asked["encoding_format"]) == ("/embeddings", ["¿quién?"], "base64")
    return reply(json.dumps({"data": [{"embedding": base64.b64encode(EMBEDDING.tobytes()).decode()}]}).encode())


def triton(path: str, headers: dict[str, str], body: bytes) -> bytes:
    size = int(headers["inference-header-content-length"])
    asked, tensor = json.loads(body[:size]), body[size:]
    (given,) = asked["inputs"]
    assert (path, given["datatype"], given["shape"]) == ("/v2/models/encoder/infer", "BYTES", [1, 1])
    assert given["parameters"]["binary_data_size"] == len(tensor) == 4 + int.from_bytes(tensor[:4], "little")
    assert tensor[4:].decode() == "¿quién?"
    data = EMBEDDING.tobytes()
    head = json.dumps({"outputs": [{"name": "EMBEDDING", "parameters": {"binary_data_size": len(data)}}]}).encode()
    return reply(head + data, more=f"Inference-Header-Content-Length: {len(head)}\r\n")


@pytest.mark.parametrize(
    ("target", "answer"),
    [(MosecTarget, mosec), (LitServeTarget, litserve), (InfinityTarget, infinity), (TritonTarget, triton)],
)
def test_a_target_speaks_its_peer_s_protocol(target: type[HttpTarget], answer: Answer) -> None:
    async def steps() -> None:
        async with http_server(answer) as served:
            asking = target(served.port, keep_embeddings=True)
            asking._client = HttpClient("127.0.0.1", served.port)  # without `open`, which sends a text of its own
            got = await asking.send(Text("¿quién?", 5), 5.0)
            assert got.status == "ok"
            np.testing.assert_array_equal(got.embedding, EMBEDDING)
            await asking.close()

    run(steps)


@pytest.mark.parametrize(
    ("line", "status"),
    [("429 Too Many Requests", "refused"), ("503 Service Unavailable", "refused"), ("504 Gateway Timeout", "late"),
     ("500 Internal Server Error", "failed"), ("404 Not Found", "failed")],
)  # fmt: skip
def test_what_is_no_embedding_is_a_reply_of_its_kind(line: str, status: str) -> None:
    answers = iter([reply(EMBEDDING.tobytes()), reply(b"no", line)])

    async def steps() -> None:
        async with http_server(lambda *_: next(answers)) as served:
            target = MosecTarget(served.port)
            await target.open()
            assert (await target.send(Text("who?", 4), 5.0)).status == status
            await target.close()
            assert served.connections == 1

    run(steps)


def test_connections_are_kept_and_as_many_as_there_are_requests_at_a_time() -> None:
    async def steps() -> None:
        async with http_server(lambda *_: reply(b"abc")) as served:
            client = HttpClient("127.0.0.1", served.port)
            for _ in range(5):
                assert (await client.post("/", b"x", {})).body == b"abc"
            assert served.connections == 1
            await asyncio.gather(*(client.post("/", b"x", {}) for _ in range(4)))
            assert served.connections == 4
            await client.close()

    run(steps)


def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    answers = iter([reply(b"1", more="Connection: close\r\n"), reply(b"2"), None, reply(b"3")])

    async def steps() -> None:
        async with http_server(lambda *_: next(answers)) as served:
            client = HttpClient("127.0.0.1", served.port)
            assert (await client.post("/", b"", {})).body == b"1"
            assert (await client.post("/", b"", {})).body == b"2"
            with pytest.raises(HttpError):
                await client.post("/", b"", {})
            assert (await client.post("/", b"", {})).body == b"3"
            assert served.connections == 3
            await client.close()

    run(steps)


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 200 OK\r\n\r\n", b"hello\r\n\r\n", b"HTTP/1.1 200 OK\r\nx\r\n\r\n"])
def test_nonsense_is_a_failed_reply(nonsense: bytes) -> None:
    answers = iter([reply(EMBEDDING.tobytes()), nonsense])

    async def steps() -> None:
        async with http_server(lambda *_: next(answers)) as served:
            target = MosecTarget(served.port)
            await target.open()
            assert (await target.send(Text("who?", 4), 5.0)).status == "failed"
            await target.close()

    run(steps)


def test_an_answer_that_does_not_come_is_late_and_its_connection_is_dropped() -> None:
    answers = iter([reply(EMBEDDING.tobytes()), b"", reply(EMBEDDING.tobytes())])

    async def steps() -> None:
        async with http_server(lambda *_: next(answers)) as served:
            target = MosecTarget(served.port)
            await target.open()
            assert (await target.send(Text("who?", 4), 0.05)).status == "late"
            assert (await target.send(Text("who?", 4), 5.0)).status == "ok"
            assert served.connections == 2
            await target.close()

    run(steps)


def test_open_fails_where_nobody_listens() -> None:
    async def steps() -> None:
        async with http_server(lambda *_: None) as served:
            port = served.port
        with pytest.raises(BenchmarkError, match=str(port)):
            await MosecTarget(port).open()

    run(steps)
