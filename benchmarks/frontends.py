"""What the seam costs when it is a process boundary: processor time a request, in fronts and in the engine.

    python -m benchmarks.frontends --bundle minilm.bundle

Two parts. The seam alone: a real engine process's loop with a tower that takes no time, fed over its socket with frames
of 1 to 64 works; what it uses is what receiving, admitting, scheduling, batching and answering cost. Then real servers
with 0, 1 and 2 fronts, in turn, under a closed loop of unary calls, calls of 16 questions, and one stream; CPU time is
read from /proc for each process. Server and client are not pinned: with two cores, throughput is not to be compared.
"""

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import socket
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import grpc.aio
import numpy as np
import psutil

from narrows import wire
from narrows.control import Control, Drain, pair
from narrows.costs import Bucket, CostTable
from narrows.encoder import Embeddings
from narrows.engine import EncodeStage, Engine
from narrows.engine_process import Fronts
from narrows.quarantine import Guard, Journal
from narrows.scheduler import LaneSettings
from narrows.tokenizer import TokenIds
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc
from narrows.work import Work
from narrows_tools.bench.servers import narrows_server, usage_of

DIM, TOKENS = 384, 14
FRAMES = 3000
WINDOW = 4  # frames under way
CLIENTS, SECONDS, QUESTIONS = 32, 3.0, 16
FAR_S = 1e9


def engine_process(
    connection: multiprocessing.connection.Connection, front: socket.socket, control: socket.socket
) -> None:
    """An engine behind a socket, with a tower that takes no time; sends the CPU seconds that it used."""

    def encode(texts: Sequence[TokenIds]) -> Embeddings:
        return np.zeros((len(texts), DIM), np.float32)

    costs = CostTable((Bucket(512, (1, 64), (0.001, 0.001)),))
    fronts = Fronts({})
    guard = Guard(Journal.create(), [], lambda digest: None)
    stage = EncodeStage({"questions": encode}, {"questions": costs})
    engine = Engine(stage, None, [LaneSettings("questions", 100_000)], fronts.deliver, guard=guard)
    fronts.attach(front)
    started_s = time.process_time()
    connection.send(True)
    fronts.serve(engine, Control(control))
    engine.close()
    connection.send(time.process_time() - started_s)


def seam_us(works_a_frame: int) -> float:
    """Microseconds of the engine's CPU time for each work, when so many come at a time."""
    rng = np.random.default_rng(0)
    front, engine_side = socket.socketpair()
    ours, theirs = pair()
    context = multiprocessing.get_context("spawn")
    connection, child_end = context.Pipe()
    process = context.Process(target=engine_process, args=(child_end, engine_side, theirs))
    process.start()
    assert connection.recv()
    ids = itertools.count(1)
    frames = [
        wire.frame(
            [
                wire.submit([Work(next(ids), "questions", FAR_S, token_ids=rng.integers(0, 30_000, TOKENS))])
                for _ in range(works_a_frame)
            ]
        )
        for _ in range(FRAMES)
    ]
    reader, answered, sent = wire.Frames(), 0, 0
    while answered < FRAMES * works_a_frame:
        while sent < FRAMES and sent * works_a_frame - answered < WINDOW * works_a_frame:
            front.sendall(frames[sent])
            sent += 1
        answered += sum(len(wire.read_outcomes(payload)[0]) for payload in reader.feed(front.recv(1 << 18)))
    Control(ours).send(Drain())
    used_s: float = connection.recv()
    process.join()
    front.close()
    ours.close()
    return used_s * 1e6 / (FRAMES * works_a_frame)


def processes(server: int) -> dict[str, list[int]]:
    """The process ids of a server: `front` and `engine`, which are one process where there are no fronts."""
    children = psutil.Process(server).children()
    found: dict[str, list[int]] = {"front": [], "engine": []}
    for child in children:
        found["engine" if "engine_process" in " ".join(child.cmdline()) else "front"].append(child.pid)
    return found if children else {"both": [server]}


def cpu_s(processes: Sequence[int]) -> float:
    """CPU seconds of these processes so far."""
    return sum(usage_of(each, ()).cpu_s for each in processes)


async def closed_loop(address: str, kind: str) -> int:
    """Calls, or requests of a stream, that were answered within SECONDS."""
    questions = [f"who wrote the book number {number}?" for number in range(QUESTIONS if kind == "batch" else 1)]
    request = pb.EncodeRequest(questions=questions)
    end_s, done = time.monotonic() + SECONDS, 0
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            )
            for _ in range(8)  # so that both fronts get some
        ]
        if kind == "stream":
            stream = retrieval_pb2_grpc.RetrievalServiceStub(channels[0]).EncodeStream()
            for number in range(CLIENTS):
                await stream.write(pb.EncodeStreamRequest(request_id=str(number), encode=request))
            while time.monotonic() < end_s:
                answer = await stream.read()
                assert isinstance(answer, pb.EncodeStreamResponse)
                assert answer.HasField("result"), answer.error
                done += 1
                await stream.write(pb.EncodeStreamRequest(request_id=answer.request_id, encode=request))
            stream.cancel()
            return done

        async def client(number: int) -> int:
            stub = retrieval_pb2_grpc.RetrievalServiceStub(channels[number % len(channels)])
            calls = 0
            while time.monotonic() < end_s:
                await stub.Encode(request, timeout=60)
                calls += 1
            return calls

        return sum(await asyncio.gather(*(client(number) for number in range(CLIENTS))))


def served(bundle: Path, fronts: int) -> dict[tuple[str, str], float]:
    """Milliseconds of CPU time a call, by kind of call and kind of process."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    flags = ("--frontends", str(fronts), "--variant", "fp32", "--encode-threads", "1")
    found = {}
    with narrows_server(bundle, None, cores, flags) as server:
        who = processes(server.pid)
        asyncio.run(closed_loop(server.address, "unary"))  # warms up
        for kind in ("unary", "batch", "stream"):
            before = {name: cpu_s(ids) for name, ids in who.items()}
            calls = asyncio.run(closed_loop(server.address, kind))
            for name, ids in who.items():
                found[kind, name] = (cpu_s(ids) - before[name]) * 1e3 / calls
    return found


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("the engine alone, us of CPU time a work (median and range)")
    for works in (1, 4, 16, 64):
        us = [seam_us(works) for _ in range(options.rounds)]
        print(f"  {works:3} works a frame: {statistics.median(us):6.1f} ({min(us):.1f} to {max(us):.1f})")
    rounds = [{fronts: served(options.bundle, fronts) for fronts in (0, 1, 2)} for _ in range(options.rounds)]
    print("servers, ms of CPU time a call (median and range)")
    for fronts in (0, 1, 2):
        for kind, name in rounds[0][fronts]:
            ms = [each[fronts][kind, name] for each in rounds]
            print(
                f"  {fronts} fronts, {kind:6} {name:6}: {statistics.median(ms):7.3f} ({min(ms):.3f} to {max(ms):.3f})"
            )


if __name__ == "__main__":
    main()
