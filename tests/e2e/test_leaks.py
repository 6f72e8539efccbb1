"""What clients leave behind: connections, descriptors, threads and memory are the same before and after."""

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from server_process import PATIENCE_S, ServerProcess, server, until

from narrows import Client
from narrows.bundle import Bundle
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

MIB = 1 << 20

pytestmark = pytest.mark.slow  # half a minute for either kind of server
# The client's side of an HTTP/2 connection, no more: the preface and empty SETTINGS (RFC 9113, section 3.4).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
PASSAGES = pb.EncodeRequest(passages=[pb.Passage(text="river " * 200)] * 32)


def processes(running: ServerProcess) -> list[int]:
    return [running.process.pid, *running.children()]


def descriptors(running: ServerProcess) -> int:
    return sum(len(os.listdir(f"/proc/{number}/fd")) for number in processes(running))  # noqa: PTH208


def threads(running: ServerProcess) -> int:
    return sum(len(os.listdir(f"/proc/{number}/task")) for number in processes(running))  # noqa: PTH208


def resident_bytes(running: ServerProcess) -> int:
    pages = [int(Path(f"/proc/{number}/statm").read_text("ascii").split()[1]) for number in processes(running)]
    return sum(pages) * os.sysconf("SC_PAGESIZE")


def connections(address: str, count: int) -> list[socket.socket]:
    """So many open HTTP/2 connections that never ask anything, nor answer a ping."""
    host, _, port = address.rpartition(":")
    made = []
    for _ in range(count):
        connection = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        connection.sendall(PREFACE)
        made.append(connection)
    return made


@pytest.fixture
def own(small_bundle: Bundle, small_index: Path, frontends: str) -> Iterator[ServerProcess]:
    with server(small_bundle.path, small_index, frontends=frontends) as running:
        with Client(running.address) as client:
            client.search(["rivers"])
        yield running
        assert running.stop() == 0


def test_streams_that_are_cancelled_in_the_middle_leave_nothing(own: ServerProcess) -> None:
    async def cancel_many(count: int) -> None:
        for _ in range(count):
            async with grpc.aio.insecure_channel(own.address) as channel:
                stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
                stream = stub.EncodeStream()
                for number in range(4):
                    await stream.write(pb.EncodeStreamRequest(request_id=str(number), encode=PASSAGES))
                search = stub.SearchStream()
                await search.write(
                    pb.SearchStreamRequest(request_id="q", search=pb.SearchRequest(questions=["rivers"], k=3))
                )
                stream.cancel()
                search.cancel()

    asyncio.run(cancel_many(20))
    with Client(own.address) as client:
        client.search(["rivers"])
    before = descriptors(own), threads(own), resident_bytes(own)
    asyncio.run(cancel_many(60))
    until(lambda: descriptors(own) <= before[0])
    # Each of two fronts begins its tokenizer's thread with the first passages that it meets, which may be now.
    until(lambda: threads(own) <= before[1] + 2)
    assert resident_bytes(own) - before[2] < 16 * MIB
    with Client(own.address) as client:
        assert len(client.search(["rivers"], k=2)[0]) == 2


def test_idle_connections_cost_little_and_leave_nothing(own: ServerProcess) -> None:
    many = 1000
    before = descriptors(own)
    first = connections(own.address, many)
    until(lambda: descriptors(own) >= many)
    held_bytes = resident_bytes(own)
    with Client(own.address) as client:
        assert len(client.search(["rivers"], k=2)[0]) == 2
    for connection in first:
        connection.close()
    until(lambda: descriptors(own) <= before)
    second = connections(own.address, many)
    until(lambda: descriptors(own) >= many)
    assert resident_bytes(own) - held_bytes < 16 * MIB, "the second thousand takes the first one's place"
    for connection in second:
        connection.close()
    until(lambda: descriptors(own) <= before)


@pytest.mark.timeout(300)
def test_ten_thousand_half_open_connections_are_found_out(own: ServerProcess) -> None:
    """Nobody answers their pings any more: all are closed, and a question is answered meanwhile."""
    before = descriptors(own)
    held = connections(own.address, 10_000)
    until(lambda: descriptors(own) >= 10_000)
    with Client(own.address) as client:
        assert len(client.search(["rivers"], k=2)[0]) == 2
    until(lambda: descriptors(own) <= before, 200.0)
    for connection in held:
        connection.close()
