"""What one process encodes, another one decodes to the same."""

from itertools import chain

import hypothesis.extra.numpy as arrays
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows import wire
from narrows.work import Outcome, Timings, Work

FIRST_ID = 3 << 40
DIM = 8

lanes = st.sampled_from(["questions", "passages"])
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
floats = arrays.arrays(np.float32, DIM, elements=finite)
token_ids = arrays.arrays(np.int64, st.integers(1, 20), elements=st.integers(0, 2**31 - 1))
timings = st.builds(Timings, finite, finite, finite, st.integers(0, 64), st.integers(0, 512))


def assert_same(found: np.ndarray | None, expected: np.ndarray | None) -> None:
    if expected is None or found is None:
        assert found is expected
    else:
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@given(
    st.lists(
        st.one_of(st.lists(token_ids, min_size=1, max_size=5), st.lists(floats, min_size=1, max_size=5)), max_size=4
    ),
    lanes,
    finite,
    st.integers(0, 1000),
    st.data(),
)
def test_works_arrive_as_they_left(calls, lane, deadline_s, k, data) -> None:
    sent = [
        [
            Work(
                number, lane, deadline_s, k=k,
                token_ids=values if values.dtype == np.int64 else None,
                vector=values if values.dtype == np.float32 else None,
            )
            for number, values in enumerate(call)
        ]
        for call in calls
    ]  # fmt: skip
    stream = wire.frame([wire.submit(call) for call in sent]) + wire.frame([wire.Cancel([5, 7])])
    cut = data.draw(st.integers(0, len(stream)))
    frames = wire.Frames()
    payloads = [*frames.feed(stream[:cut]), *frames.feed(stream[cut:])]
    *submitted, cancelled = [message for payload in payloads for message in wire.read_requests(payload)]
    assert cancelled == wire.Cancel([5, 7])
    received = [wire.works(message, FIRST_ID) for message in submitted]
    assert [len(call) for call in received] == [len(call) for call in sent]
    for here, there in zip(chain(*sent), chain(*received), strict=True):
        assert there.request_id == here.request_id + FIRST_ID
        assert (there.lane, there.deadline_s, there.k) == (lane, deadline_s, k)
        assert_same(there.token_ids, here.token_ids)
        assert_same(there.vector, here.vector)


@given(
    st.lists(
        st.one_of(
            st.builds(Outcome, st.integers(0, 99), embedding=floats, timings=timings),
            st.builds(Outcome, st.integers(0, 99), rows=arrays.arrays(np.int64, 3), scores=floats, timings=timings),
            st.builds(
                Outcome, st.integers(0, 99), st.sampled_from(["overloaded", "failed"]), st.text(), st.integers(0, 9)
            ),
        )
    )
)
def test_outcomes_arrive_as_they_left_answers_first(sent: list[Outcome]) -> None:
    message = wire.answered([shift(one) for one in sent], FIRST_ID, {"questions": 7.5})
    (payload,) = wire.Frames().feed(wire.frame(message))
    expected = [one for one in sent if one.refusal is None] + [one for one in sent if one.refusal is not None]
    received, begins_s = wire.read_outcomes(payload)
    assert begins_s == {"questions": 7.5}
    for there, here in zip(received, expected, strict=True):
        assert (there.request_id, there.refusal, there.message) == (here.request_id, here.refusal, here.message)
        assert (there.retry_after_ms, there.timings) == (here.retry_after_ms, here.timings)
        for name in ("embedding", "rows", "scores"):
            assert_same(getattr(there, name), getattr(here, name))


def shift(outcome: Outcome) -> Outcome:
    fields = {name: getattr(outcome, name) for name in Outcome.__slots__}
    return Outcome(**fields | {"request_id": outcome.request_id + FIRST_ID})


def test_an_embedding_stays_behind_where_rows_were_asked_for() -> None:
    outcome = Outcome(
        1, embedding=np.ones(DIM, np.float32), rows=np.arange(2), scores=np.ones(2, np.float32), timings=Timings()
    )
    (payload,) = wire.Frames().feed(wire.frame(wire.answered([outcome], 0, {})))
    assert wire.read_outcomes(payload)[0][0].embedding is None


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x93\x01\x02", msgspec.msgpack.encode([["submit", "x"]])])
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        wire.read_requests(payload)
    with pytest.raises(msgspec.MsgspecError):
        wire.read_outcomes(payload)
