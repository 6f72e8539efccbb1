"""What clients send and receive: plain values on one side, the contract's messages on the other. No connection."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import grpc
import numpy as np
import numpy.typing as npt

from narrows import errors
from narrows.v1 import retrieval_pb2 as pb

View = Literal["id", "title", "full"]
OnTooLong = Literal["truncate", "error"]
DType = Literal["float32", "float16"]
Embeddings = npt.NDArray[np.float32] | npt.NDArray[np.float16]
VIEWS: dict[View, "pb.PassageView.ValueType"] = {
    "id": pb.PASSAGE_VIEW_ID,
    "title": pb.PASSAGE_VIEW_TITLE,
    "full": pb.PASSAGE_VIEW_FULL,
}
ON_TOO_LONG: dict[OnTooLong, "pb.OnTooLong.ValueType"] = {
    "truncate": pb.ON_TOO_LONG_TRUNCATE,
    "error": pb.ON_TOO_LONG_ERROR,
}
DTYPES: dict[DType, "pb.DataType.ValueType"] = {
    "float32": pb.DATA_TYPE_FLOAT32,
    "float16": pb.DATA_TYPE_FLOAT16,
}
PASSAGES_IN_A_CALL = 16  # so that a call of long ones keeps its deadline on a slow encoder
# Replies of whatever size the server is set to send; a server that is back is found again within seconds; and a
# connection whose other end has vanished is given up within half a minute, instead of swallowing every request.
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # of gRPC's other pings, one of which may be on its way already
    ("grpc.http2.max_pings_without_data", 0),
]
MAX_ID_BYTES = 512
MESSAGE_OVERHEAD_BYTES = 32_768  # what surrounds the texts of a request, at most
MAX_TIMEOUT_MS = 2**32 - 1  # 49 days: what a message holds; gRPC takes far longer ones for deadlines that have passed
STATUSES = {status.value[0]: status for status in grpc.StatusCode}
T = TypeVar("T")
Name = TypeVar("Name", bound=str)


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found, and its score: the inner product of the embeddings, higher is better."""

    id: str
    title: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server's time went, in milliseconds; texts in the encoder's batch, and tokens each was padded to.

    `read_ms` is what reading took from beginning to end; where passages were searched for, all else is the search's.
    """

    tokenize_ms: float
    queue_ms: float
    encode_ms: float
    search_ms: float
    fetch_ms: float
    batch_size: int
    batch_tokens: int
    read_ms: float


@dataclass(frozen=True, slots=True)
class Served:
    """What produced an answer."""

    bundle: str
    index: str
    generation: str
    variant: str
    passage_variant: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class SearchResult(Sequence[Hit]):
    """The hits of one question, best first, and what produced them. `truncated`: the question was cut."""

    hits: tuple[Hit, ...]
    served: Served
    truncated: bool

    def __len__(self) -> int:
        return len(self.hits)

    @overload
    def __getitem__(self, index: int) -> Hit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Hit, ...]: ...
    def __getitem__(self, index: int | slice) -> Hit | tuple[Hit, ...]:
        """The hit, or the hits, at that rank (0 is the best)."""
        return self.hits[index]


@dataclass(frozen=True, slots=True)
class Encoding:
    """Embeddings (texts, dim), of the dtype asked for; how many tokens each text had; which were cut (positions)."""

    embeddings: Embeddings
    token_counts: tuple[int, ...]
    truncated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What answers, and the limits that requests must keep."""

    server_version: str
    features: tuple[str, ...]
    device: str
    bundle: str
    variant: str
    passage_variant: str
    dim: int
    similarity: str
    corpora: tuple[str, ...]
    generation: str
    passage_count: int
    question_tower_id: str
    question_text_preset: str
    context_tower_id: str
    context_text_preset: str
    license: str
    language: str
    max_items: int
    max_k: int
    max_text_bytes: int
    max_ids: int
    max_stream_in_flight: int


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search: a SearchRequest beside its questions."""

    k: int
    view: View
    corpus: str
    expected_bundle: str
    on_too_long: OnTooLong

    def request(self, questions: Sequence[str] | npt.NDArray[np.float32]) -> pb.SearchRequest:
        """The request for these questions, given as text or as embeddings, (n, dim).

        Raises:
            InvalidRequestError: a value that fits no message.
        """
        if self.k < 1:
            raise errors.InvalidRequestError("it must be at least 1", "k")
        return build(
            pb.SearchRequest,
            k=self.k,
            view=named(VIEWS, self.view, "view"),
            corpus=self.corpus,
            expected_bundle=self.expected_bundle,
            on_too_long=named(ON_TOO_LONG, self.on_too_long, "on_too_long"),
            **(
                {"question_embeddings": _tensor(questions)}
                if isinstance(questions, np.ndarray)
                else {"questions": questions}
            ),
        )


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How to encode: an EncodeRequest beside its texts."""

    dtype: DType
    expected_bundle: str
    on_too_long: OnTooLong

    def request(self, questions: Iterable[str] = (), passages: Iterable[tuple[str, str]] = ()) -> pb.EncodeRequest:
        """The request for these texts; raises as SearchOptions.request does."""
        messages = [build(pb.Passage, title=title, text=text) for title, text in map(pair, passages)]
        return build(
            pb.EncodeRequest,
            questions=questions,
            passages=messages,
            dtype=named(DTYPES, self.dtype, "dtype"),
            expected_bundle=self.expected_bundle,
            on_too_long=named(ON_TOO_LONG, self.on_too_long, "on_too_long"),
        )


def get_passages_request(ids: Sequence[str], view: View, corpus: str) -> pb.GetPassagesRequest:
    """The request for these ids; raises as SearchOptions.request does."""
    return build(pb.GetPassagesRequest, ids=ids, view=named(VIEWS, view, "view"), corpus=corpus)


def build(message: Callable[..., T], **fields: object) -> T:
    """Makes a message; a value that does not fit (a negative k, a lone surrogate in a text) is a bad request."""
    try:
        return message(**fields)
    except (TypeError, ValueError) as error:
        raise errors.InvalidRequestError(str(error)) from None


def named(values: dict[Name, T], name: Name, field: str) -> T:
    """The contract's value of that name."""
    if name not in values:
        raise errors.InvalidRequestError(f"it must be one of {', '.join(values)}, not {name!r}", field)
    return values[name]


def seconds(timeout_s: float) -> float:
    """A timeout as gRPC and the messages take it; a longer one, even an infinite one, becomes the longest."""
    if math.isnan(timeout_s):
        raise errors.InvalidRequestError("it is not a number", "timeout_s")
    return min(timeout_s, MAX_TIMEOUT_MS / 1e3)


def listed(items: Any, method: str) -> Any:  # noqa: ANN401  (a list, or an array as it is)
    """The items as a list; one string where a list belongs would be taken apart into letters."""
    if isinstance(items, str):
        raise errors.InvalidRequestError(f"give a list: {method}([...])")
    return items if isinstance(items, np.ndarray) and items.dtype.kind == "f" else list(items)


def results_of(reply: pb.SearchResponse) -> list[SearchResult]:
    """One result for each question."""
    served, truncated = served_of(reply.served), set(reply.truncated)
    return [
        SearchResult(
            tuple(map(hit_of, found.hits)),
            served,
            number in truncated,
        )
        for number, found in enumerate(reply.results)
    ]


def hit_of(hit: pb.Hit) -> Hit:
    """A passage found."""
    return Hit(hit.passage.id, hit.passage.title, hit.passage.text, hit.score)


def encoding_of(replies: Iterable[pb.EncodeResponse], dtype: DType) -> Encoding:
    """The rows of several replies, one after another; there is at least one."""
    blocks: list[Embeddings] = []
    counts: list[int] = []
    truncated: list[int] = []
    for reply in replies:
        truncated += [len(counts) + row for row in reply.truncated]
        counts += reply.token_counts
        block = np.frombuffer(reply.embeddings.data, dtype=np.dtype(dtype).newbyteorder("<"))
        blocks.append(block.reshape(reply.embeddings.rows, reply.embeddings.dim))
    return Encoding(np.concatenate(blocks).astype(dtype, copy=False), tuple(counts), tuple(truncated))


def embedding_of(reply: pb.EncodeResponse) -> npt.NDArray[np.float32]:
    """The one embedding of a reply, (dim,)."""
    return np.frombuffer(reply.embeddings.data, dtype="<f4").astype(np.float32)


def passages_of(reply: pb.GetPassagesResponse) -> dict[str, Hit]:
    """The passages found, by id; their score is NaN."""
    return {p.id: Hit(p.id, p.title, p.text, float("nan")) for p in reply.passages}


def served_of(served: pb.Served) -> Served:
    """What produced an answer."""
    t = served.timings
    stages_ms = (t.tokenize_ms, t.queue_ms, t.encode_ms, t.search_ms, t.fetch_ms)
    timings = Timings(*stages_ms, t.batch_size, t.batch_tokens, t.read_ms)
    return Served(served.bundle, served.index, served.generation, served.variant, served.passage_variant, timings)


def server_info_of(reply: pb.GetServerInfoResponse) -> ServerInfo:
    """What answers, and its limits."""
    return ServerInfo(
        server_version=reply.server_version,
        features=tuple(reply.features),
        device=reply.device,
        bundle=reply.served.bundle,
        variant=reply.served.variant,
        passage_variant=reply.served.passage_variant,
        dim=reply.dim,
        similarity=reply.similarity,
        corpora=tuple(reply.corpora),
        generation=reply.served.generation,
        passage_count=reply.passage_count,
        question_tower_id=reply.question_encoder.tower_id,
        question_text_preset=reply.question_encoder.text_preset,
        context_tower_id=reply.context_encoder.tower_id,
        context_text_preset=reply.context_encoder.text_preset,
        license=reply.license,
        language=reply.language,
        max_items=reply.limits.max_items,
        max_k=reply.limits.max_k,
        max_text_bytes=reply.limits.max_text_bytes,
        max_ids=reply.limits.max_ids,
        max_stream_in_flight=reply.limits.max_stream_in_flight,
    )


def max_request_bytes(max_items: int, max_text_bytes: int, max_ids: int, dim: int) -> int:
    """The largest message that keeps a server's limits; what the server receives is a little more."""
    embeddings = max_items * dim * 4
    return max(max_items * max_text_bytes, max_ids * MAX_ID_BYTES, embeddings) + MESSAGE_OVERHEAD_BYTES


def status_error(error: grpc.RpcError, target: str) -> errors.NarrowsError:
    """The typed exception for the status of a call that ended, as grpc's stubs raise it."""
    assert isinstance(error, (grpc.Call, grpc.aio.AioRpcError))
    trailers = {key: str(value) for key, value in error.trailing_metadata() or ()}
    return _typed(
        error.code(),
        error.details() or "",
        trailers.get("narrows-reason", ""),
        trailers.get("narrows-field", ""),
        int(trailers.get("grpc-retry-pushback-ms", "0")),
        target,
    )


def item_error(error: pb.ItemError, target: str) -> errors.NarrowsError:
    """The typed exception for the error of one request of a stream."""
    status = STATUSES.get(error.code, grpc.StatusCode.UNKNOWN)
    return _typed(status, error.message, error.reason, error.field, error.retry_after_ms, target)


def _typed(
    code: grpc.StatusCode, message: str, reason: str, field: str, retry_after_ms: int, target: str
) -> errors.NarrowsError:
    match code:
        case grpc.StatusCode.INVALID_ARGUMENT if reason == "REPLY_TOO_LARGE":
            return errors.ReplyTooLargeError(message)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return errors.InvalidRequestError(message.removeprefix(f"{field}: ") if field else message, field)
        case grpc.StatusCode.NOT_FOUND:
            return errors.NotFoundError(message)
        case grpc.StatusCode.UNIMPLEMENTED if reason == "NO_READER":
            return errors.NoReaderError(message)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return errors.MismatchError(message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if reason == "OVERLOADED":
            return errors.OverloadedError(message, retry_after_ms)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.InvalidRequestError(f"the message is too large: {message}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceededError(message if reason else f"{target}: no answer within the deadline")
        case grpc.StatusCode.UNAVAILABLE if reason == "ENGINE_DOWN":
            return errors.EngineDownError(f"{target}: {message}", retry_after_ms)
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:  # CANCELLED: the server shut down meanwhile
            return errors.UnavailableError(f"{target}: {message}")
        case grpc.StatusCode.INTERNAL if reason == "POISONOUS":
            return errors.PoisonousError(message)
        case _:
            return errors.ServerError(f"{code.name}: {message}")


def pair(passage: tuple[str, str]) -> tuple[str, str]:
    """Checks a (title, text)."""
    if isinstance(passage, str) or len(passage) != 2:
        raise errors.InvalidRequestError(f"a passage is a pair (title, text), not {passage!r}", "passages")
    return passage


def _tensor(vectors: npt.NDArray[np.float32]) -> pb.Tensor:
    if vectors.ndim != 2:
        raise errors.InvalidRequestError(f"embeddings have the shape (n, dim), not {vectors.shape}", "questions")
    data = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    return pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, rows=vectors.shape[0], dim=vectors.shape[1], data=data)
