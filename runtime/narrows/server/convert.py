"""Requests -> plain values, checked against the limits; results -> replies. No RPC, no engine."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from narrows.errors import InvalidRequestError, ReplyTooLargeError
from narrows.passages import Passages
from narrows.settings import ServerSettings
from narrows.tokenizer import TokenizedText
from narrows.v1 import retrieval_pb2 as pb
from narrows.work import Outcome

DTYPES: dict[int, np.dtype[np.generic]] = {
    pb.DATA_TYPE_UNSPECIFIED: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
}
# How many of a passage's strings (id, title, text) a view shows.
STRINGS: dict[int, int] = {
    pb.PASSAGE_VIEW_UNSPECIFIED: 3,
    pb.PASSAGE_VIEW_ID: 1,
    pb.PASSAGE_VIEW_TITLE: 2,
    pb.PASSAGE_VIEW_FULL: 3,
}
MAX_SCORE = 1e38  # inner products beyond it overflow float32
MESSAGE_BYTES = 32  # tags and lengths around one hit or string


@dataclass(frozen=True, slots=True)
class StageMs:
    """What the front itself measured, in milliseconds."""

    tokenize_ms: float = 0.0
    fetch_ms: float = 0.0
    read_ms: float = 0.0


def check_count(count: int, limit: int, field: str, what: str) -> None:
    """Refuses an empty list and one over the limit."""
    if count == 0:
        raise InvalidRequestError(f"give at least one of {what}", field)
    if count > limit:
        raise InvalidRequestError(f"{count} {what} in one call; at most {limit} are allowed", field)


def checked_questions(questions: Sequence[str], limits: ServerSettings) -> list[str]:
    """The questions, none of them empty or too long."""
    for number, question in enumerate(questions):
        check_question(question, limits, f"questions[{number}]")
    return list(questions)


def check_question(question: str, limits: ServerSettings, field: str) -> None:
    """Refuses a question that is empty or too long."""
    if not question.strip():
        raise InvalidRequestError("the question is empty", field)
    _check_bytes(len(question.encode()), limits, field)


def checked_passages(passages: Sequence[pb.Passage], limits: ServerSettings) -> list[tuple[str, str]]:
    """The passages as (title, text), none of them empty or too long."""
    for number, passage in enumerate(passages):
        if not passage.title.strip() and not passage.text.strip():
            raise InvalidRequestError("the passage has neither title nor text", f"passages[{number}]")
        _check_bytes(len(passage.title.encode()) + len(passage.text.encode()), limits, f"passages[{number}]")
    return [(passage.title, passage.text) for passage in passages]


def checked_count(count: int, default: int, limit: int, field: str) -> int:
    """How many are wanted; 0 means the default, or the limit where it is less."""
    if count > limit:
        raise InvalidRequestError(f"{count} is over the limit of {limit}", field)
    return count or min(default, limit)


def checked_vectors(tensor: pb.Tensor, dim: int, max_norm: float) -> npt.NDArray[np.float32]:
    """The embeddings of a request as float32 (rows, dim), finite and of the right size."""
    field = "question_embeddings"
    dtype = _dtype(tensor.dtype, f"{field}.dtype")
    if tensor.dim != dim:
        raise InvalidRequestError(f"it is {tensor.dim}; this server's embeddings have {dim} dimensions", f"{field}.dim")
    expected = tensor.rows * dim * dtype.itemsize
    if len(tensor.data) != expected:
        raise InvalidRequestError(
            f"{len(tensor.data)} bytes, but {tensor.rows} rows x {dim} x {dtype.itemsize} are {expected}",
            f"{field}.data",
        )
    vectors = np.frombuffer(tensor.data, dtype=dtype).astype(np.float32).reshape(tensor.rows, dim)
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    bad = np.flatnonzero(~((norms > 0) & (norms * max(max_norm, 1.0) < MAX_SCORE)))  # NaN fails too
    if len(bad):
        message = "it is all zero, or holds NaN, infinity or numbers too large for a score"
        raise InvalidRequestError(message, f"{field}[{bad[0]}]")
    return vectors


def check_lengths(texts: Sequence[TokenizedText], on_too_long: int, max_tokens: int, field: str) -> list[int]:
    """Positions of the texts that were cut; an error instead where the request asks for one."""
    if on_too_long not in pb.OnTooLong.values():
        raise InvalidRequestError(f"{on_too_long} is not a value of OnTooLong", "on_too_long")
    truncated = [number for number, text in enumerate(texts) if text.truncated]
    if truncated and on_too_long == pb.ON_TOO_LONG_ERROR:
        raise InvalidRequestError(f"the text has more than {max_tokens} tokens", f"{field}[{truncated[0]}]")
    return truncated


def check_view(view: int) -> None:
    """Refuses a number that is no PassageView."""
    if view not in STRINGS:
        raise InvalidRequestError(f"{view} is not a value of PassageView", "view")


def passage_messages(passages: Passages, rows: npt.NDArray[np.int64], view: int) -> list[pb.Passage]:
    """Looks rows up, as much of each as the view shows."""
    strings = STRINGS[view]
    found = passages.get(rows, with_text=strings > 2)
    if strings == 1:
        return [pb.Passage(id=passage.id) for passage in found]
    return [pb.Passage(id=passage.id, title=passage.title, text=passage.text) for passage in found]


def passages_bytes(passages: Passages, rows: npt.NDArray[np.int64], view: int) -> int:
    """Size of a reply with these rows, from the lengths of their strings; a little above the true one."""
    return passages.size_bytes(rows, STRINGS[view]) + len(rows) * MESSAGE_BYTES


def strings_bytes(strings: Sequence[str]) -> int:
    """Size of these strings in a reply; a little above the true one."""
    return sum(len(string.encode()) + MESSAGE_BYTES for string in strings)


def hit_lists(outcomes: Sequence[Outcome], passages: Passages, view: int) -> list[pb.HitList]:
    """The hits of each question."""
    lists = []
    for outcome in outcomes:
        assert outcome.rows is not None
        assert outcome.scores is not None
        found = passage_messages(passages, outcome.rows, view)
        hits = [pb.Hit(passage=p, score=score) for p, score in zip(found, outcome.scores.tolist(), strict=True)]
        lists.append(pb.HitList(hits=hits))
    return lists


def check_dtype(dtype: int) -> None:
    """Refuses a number that is no DataType."""
    _dtype(dtype, "dtype")


def tensor_message(embeddings: npt.NDArray[np.float32], dtype: int) -> pb.Tensor:
    """Embeddings as bytes in the wanted number format; float16 beyond its range becomes infinity."""
    target = DTYPES[dtype]
    with np.errstate(over="ignore"):
        data = embeddings.astype(target).tobytes()
    named = pb.DATA_TYPE_FLOAT16 if target.itemsize == 2 else pb.DATA_TYPE_FLOAT32
    return pb.Tensor(dtype=named, rows=embeddings.shape[0], dim=embeddings.shape[1], data=data)


def timings_message(outcomes: Iterable[Outcome], front: StageMs) -> pb.Timings:
    """Where the time went; for several items the largest of each stage."""
    timings = [outcome.timings for outcome in outcomes]
    return pb.Timings(
        tokenize_ms=front.tokenize_ms,
        queue_ms=max((timing.queue_ms for timing in timings), default=0.0),
        encode_ms=max((timing.encode_ms for timing in timings), default=0.0),
        search_ms=max((timing.search_ms for timing in timings), default=0.0),
        fetch_ms=front.fetch_ms,
        batch_size=max((timing.batch_size for timing in timings), default=0),
        batch_tokens=max((timing.batch_tokens for timing in timings), default=0),
        read_ms=front.read_ms,
    )


def check_reply_bytes(size: int, limits: ServerSettings, advice: str) -> None:
    """Refuses a reply that a client would refuse."""
    if size > limits.max_reply_bytes:
        raise ReplyTooLargeError(
            f"the reply would have {size} bytes; at most {limits.max_reply_bytes} are sent. {advice}"
        )


def _dtype(value: int, field: str) -> np.dtype[np.generic]:
    if value not in DTYPES:
        raise InvalidRequestError(f"{value} is not a value of DataType", field)
    return DTYPES[value]


def _check_bytes(size: int, limits: ServerSettings, field: str) -> None:
    if size > limits.max_text_bytes:
        raise InvalidRequestError(f"{size} bytes of text; at most {limits.max_text_bytes} are allowed", field)
