"""The seam as bytes, for when front and engine are two processes: frames of MessagePack over a stream socket.

A frame is its length (4 bytes, little-endian) and a list of messages. Both sides put into one frame what they have at
the moment. Arrays travel as raw little-endian bytes; nothing in a frame can be code.
"""

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from narrows.work import Lane, Outcome, Refusal, Timings, Work

LENGTH_BYTES = 4
FLOAT32, INT32, INT64 = np.dtype("<f4"), np.dtype("<i4"), np.dtype("<i8")


class Submit(msgspec.Struct, array_like=True, tag="submit", gc=False):
    """The works of one call: `tokens` is the int32 ids of all texts, `lengths` how many are whose; or `vectors`."""

    request_ids: list[int]
    lane: Lane
    deadline_s: float
    k: int
    source: int
    lengths: list[int]
    tokens: bytes
    vectors: bytes


class Cancel(msgspec.Struct, array_like=True, tag="cancel", gc=False):
    """Works that nobody waits for any more."""

    request_ids: list[int]


class Answer(msgspec.Struct, array_like=True, gc=False):
    """One outcome that is an answer; `embedding` is empty where rows were asked for."""

    request_id: int
    timings: tuple[float, float, float, int, int]
    embedding: bytes
    rows: bytes
    scores: bytes


class Refused(msgspec.Struct, array_like=True, gc=False):
    """One outcome that is none."""

    request_id: int
    refusal: Refusal
    message: str
    retry_after_ms: int


class Outcomes(msgspec.Struct, array_like=True, gc=False):
    """What one batch led to, for one front; and when a call that comes now would begin to run."""

    answers: list[Answer]
    refused: list[Refused]
    begins_s: dict[Lane, float]


ToEngine = list[Submit | Cancel]
_encode = msgspec.msgpack.Encoder().encode
_to_engine = msgspec.msgpack.Decoder(ToEngine).decode
_outcomes = msgspec.msgpack.Decoder(Outcomes).decode


def submit(works: Sequence[Work]) -> Submit:
    """The message for the works of one call."""
    first = works[0]
    ids = [work.request_id for work in works]
    if first.vector is not None:
        vectors = [_bytes(work.vector, FLOAT32) for work in works]
        return Submit(ids, first.lane, first.deadline_s, first.k, first.source, [], b"", b"".join(vectors))
    texts = [work.token_ids for work in works if work.token_ids is not None]
    tokens = (texts[0] if len(texts) == 1 else np.concatenate(texts)).astype(INT32).tobytes()
    return Submit(ids, first.lane, first.deadline_s, first.k, first.source, [len(text) for text in texts], tokens, b"")


def works(message: Submit, first_id: int) -> list[Work]:
    """The works of a message; `first_id` is added to their ids, and to the number of a stream."""
    source = first_id + message.source if message.source else 0
    count = len(message.request_ids)
    lane, deadline_s, k = message.lane, message.deadline_s, message.k
    if message.vectors:
        vectors = np.frombuffer(message.vectors, FLOAT32).reshape(count, -1)
        return [
            Work(first_id + number, lane, deadline_s, vector=vector, k=k, source=source)
            for number, vector in zip(message.request_ids, vectors, strict=True)
        ]
    tokens = np.frombuffer(message.tokens, INT32).astype(np.int64)
    texts = np.split(tokens, np.cumsum(message.lengths)[:-1]) if count > 1 else [tokens]
    return [
        Work(first_id + number, lane, deadline_s, token_ids=text, k=k, source=source)
        for number, text in zip(message.request_ids, texts, strict=True)
    ]


def answered(outcomes: Sequence[Outcome], first_id: int, begins_s: dict[Lane, float]) -> Outcomes:
    """The message for the outcomes of one front, whose ids had `first_id` added."""
    answers, refused = [], []
    for outcome in outcomes:
        request_id = outcome.request_id - first_id
        if outcome.refusal is not None:
            refused.append(Refused(request_id, outcome.refusal, outcome.message, outcome.retry_after_ms))
            continue
        times = outcome.timings
        answers.append(
            Answer(
                request_id,
                (times.queue_ms, times.encode_ms, times.search_ms, times.batch_size, times.batch_tokens),
                _bytes(outcome.embedding, FLOAT32) if outcome.rows is None else b"",
                _bytes(outcome.rows, INT64),
                _bytes(outcome.scores, FLOAT32),
            )
        )
    return Outcomes(answers, refused, begins_s)


def outcomes(message: Outcomes) -> list[Outcome]:
    """The outcomes of a message."""
    made = [
        Outcome(
            answer.request_id,
            embedding=np.frombuffer(answer.embedding, FLOAT32) if answer.embedding else None,
            rows=np.frombuffer(answer.rows, INT64) if answer.rows else None,
            scores=np.frombuffer(answer.scores, FLOAT32) if answer.scores else None,
            timings=Timings(*answer.timings),
        )
        for answer in message.answers
    ]
    return made + [Outcome(*msgspec.structs.astuple(refusal)) for refusal in message.refused]


def frame(message: ToEngine | Outcomes) -> bytes:
    """A message as a frame."""
    data = _encode(message)
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def read_requests(payload: bytes) -> ToEngine:
    """The messages in a frame for the engine.

    Raises:
        msgspec.MsgspecError: it holds something else.
    """
    return _to_engine(payload)


def read_outcomes(payload: bytes) -> tuple[list[Outcome], dict[Lane, float]]:
    """The outcomes in a frame for a front, and when a call that comes now would begin to run.

    Raises:
        msgspec.MsgspecError: it holds something else.
    """
    message = _outcomes(payload)
    return outcomes(message), message.begins_s


class Frames:
    """Cuts a stream of bytes, which arrives in pieces of any size, into the payloads of its frames."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Takes a piece, and gives the payloads that are complete by now."""
        held = self._held
        held += data
        start = 0
        while len(held) - start >= LENGTH_BYTES:
            end = start + LENGTH_BYTES + int.from_bytes(held[start : start + LENGTH_BYTES], "little")
            if len(held) < end:
                break
            yield bytes(held[start + LENGTH_BYTES : end])
            start = end
        del held[:start]


def _bytes(array: npt.NDArray[np.generic] | None, kind: np.dtype[np.generic]) -> bytes:
    return b"" if array is None else array.astype(kind, copy=False).tobytes()
