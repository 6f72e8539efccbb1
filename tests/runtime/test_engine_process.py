"""An engine behind sockets: what it owes each front, and what a front that misbehaves may cost."""

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest

from narrows import wire
from narrows.control import Attach, Control, Drain, pair
from narrows.costs import Bucket, CostTable
from narrows.engine import EncodeStage, Engine
from narrows.engine_process import Fronts
from narrows.quarantine import digest
from narrows.scheduler import LaneSettings
from narrows.work import Lane, Outcome, Served, Work

COSTS = CostTable((Bucket(1, (1, 8), (1.0, 1.0)), Bucket(256, (1, 8), (1.0, 1.0))))
DIM = 4096  # 16 KiB an embedding, so that a socket that nobody reads is soon full
FAR = 1e12
WAIT_S = 30.0


@dataclass
class Tower:
    """Embeds a text as its first token, over and over; held at a gate."""

    gate: threading.Event = field(default_factory=threading.Event)
    batches: list[list[int]] = field(default_factory=list)
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def encode(self, token_ids: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.float32]:
        self.entered.release()
        assert self.gate.wait(WAIT_S)
        self.batches.append([int(ids[0]) for ids in token_ids])
        return np.array([np.full(DIM, ids[0]) for ids in token_ids], dtype=np.float32)


@dataclass
class Process:
    """A running engine process, but for the process."""

    tower: Tower
    supervisor: Control
    served: threading.Thread

    def attach(self) -> socket.socket:
        """A new front."""
        front, engine_side = socket.socketpair()
        front.settimeout(WAIT_S)
        with engine_side:
            self.supervisor.send(Attach(Served("fp32", "fp32", "cpu", ("", ""), ""), 1), [engine_side.fileno()])
        return front


@contextmanager
def running(refused: dict[int, float] | None = None, *, open_gate: bool = True) -> Iterator[Process]:
    tower = Tower()
    if open_gate:
        tower.gate.set()
    lanes: list[Lane] = ["questions", "passages"]
    fronts = Fronts(refused or {})
    stage = EncodeStage(dict.fromkeys(lanes, tower.encode), dict.fromkeys(lanes, COSTS))
    engine = Engine(stage, None, [LaneSettings(lane, 10_000) for lane in lanes], fronts.deliver)
    ours, theirs = pair()
    thread = threading.Thread(target=fronts.serve, args=(engine, Control(theirs)))
    thread.start()
    supervisor = Control(ours)
    try:
        yield Process(tower, supervisor, thread)
    finally:
        tower.gate.set()
        supervisor.send(Drain())
        thread.join(WAIT_S)
        assert not thread.is_alive()
        engine.close()
        fronts.close()
        ours.close()
        theirs.close()


def work(number: int, token: int, lane: Lane = "questions") -> Work:
    return Work(number, lane, FAR, token_ids=np.array([token, 1, 2]))


def ask(front: socket.socket, *works: Work) -> None:
    front.sendall(wire.frame([wire.submit([one]) for one in works]))


def receive(front: socket.socket, count: int) -> list[Outcome]:
    frames, found = wire.Frames(), list[Outcome]()
    while len(found) < count:
        data = front.recv(1 << 16)
        assert data, "the engine has hung up"
        for payload in frames.feed(data):
            found += wire.read_outcomes(payload)[0]
    assert len(found) == count
    return found


def test_each_front_gets_its_own_outcomes_by_its_own_ids() -> None:
    with running(open_gate=False) as engine:
        first, second = engine.attach(), engine.attach()
        ask(first, work(1, 11), work(2, 12))
        ask(second, work(1, 21), work(2, 22))
        engine.tower.gate.set()
        for front, tokens in ((first, {1: 11.0, 2: 12.0}), (second, {1: 21.0, 2: 22.0})):
            found = receive(front, 2)
            assert {one.request_id: float(one.embedding[0]) for one in found if one.embedding is not None} == tokens
            front.close()


def test_a_front_that_dies_has_nothing_computed_any_more() -> None:
    with running(open_gate=False) as engine:
        dying, living = engine.attach(), engine.attach()
        ask(living, work(1, 1))
        assert engine.tower.entered.acquire(timeout=WAIT_S)  # it is at work on that one
        ask(dying, work(1, 66), work(2, 67))
        dying.shutdown(socket.SHUT_WR)
        assert dying.recv(1) == b"", "the engine hangs up when it has dropped everything"
        dying.close()
        engine.tower.gate.set()
        receive(living, 1)
        ask(living, work(2, 2))
        receive(living, 1)
        assert not {66, 67} & {token for batch in engine.tower.batches for token in batch}
        living.close()


def test_a_front_that_does_not_read_holds_up_nobody_and_gets_everything_later() -> None:
    with running() as engine:
        lazy, quick = engine.attach(), engine.attach()
        ask(lazy, *(work(number, number) for number in range(200)))  # 3 MiB of answers
        for number in range(50):
            ask(quick, work(number, number))
            receive(quick, 1)
        assert sorted(one.request_id for one in receive(lazy, 200)) == list(range(200))
        lazy.close()
        quick.close()


@pytest.mark.parametrize("garbage", [b"\x01\x00\x00\x00\xff", b"\x03\x00\x00\x00abc", wire.frame([])[:2]])
def test_a_front_that_sends_nonsense_is_cut_off_and_no_other(garbage: bytes) -> None:
    with running() as engine:
        broken, sound = engine.attach(), engine.attach()
        broken.sendall(garbage)
        if len(garbage) > 2:
            assert broken.recv(1) == b""
        ask(sound, work(1, 1))
        receive(sound, 1)
        broken.close()
        sound.close()


def test_a_refused_work_is_not_run_nor_is_its_call() -> None:
    bad = work(1, 13)
    with running({digest(bad): FAR}) as engine:
        front = engine.attach()
        front.sendall(wire.frame([wire.submit([bad, work(2, 2)]), wire.submit([work(3, 3)])]))
        found = {one.request_id: one.refusal for one in receive(front, 3)}
        assert found == {1: "poisonous", 2: "poisonous", 3: None}
        assert engine.tower.batches == [[3]]
        front.close()


def test_a_cancelled_work_is_not_run() -> None:
    with running(open_gate=False) as engine:
        front = engine.attach()
        ask(front, work(1, 1))
        assert engine.tower.entered.acquire(timeout=WAIT_S)
        front.sendall(wire.frame([wire.submit([work(2, 2)]), wire.Cancel([2]), wire.submit([work(3, 3)])]))
        cancelled = receive(front, 1)
        assert (cancelled[0].request_id, cancelled[0].refusal) == (2, "cancelled")
        engine.tower.gate.set()
        receive(front, 2)
        assert engine.tower.batches == [[1], [3]]
        front.close()


def test_outcomes_tell_when_a_new_call_would_begin() -> None:
    with running() as engine:
        front = engine.attach()
        ask(front, work(1, 1))
        (payload,) = wire.Frames().feed(front.recv(1 << 20))
        assert set(wire.read_outcomes(payload)[1]) == {"questions", "passages"}
        front.close()
