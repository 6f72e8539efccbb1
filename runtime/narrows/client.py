"""The Python client: needs only grpcio, protobuf and numpy.

with Client("localhost:50051") as client:
    for hit in client.search(["who wrote Don Quixote?"], k=5)[0]:
        print(hit.score, hit.title)
"""

import collections
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, overload

import grpc
import numpy as np
import numpy.typing as npt

from narrows import errors
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

View = Literal["id", "title", "full"]
VIEWS: dict[View, "pb.PassageView.ValueType"] = {
    "id": pb.PASSAGE_VIEW_ID,
    "title": pb.PASSAGE_VIEW_TITLE,
    "full": pb.PASSAGE_VIEW_FULL,
}
PASSAGES_IN_A_CALL = 16  # so that a call of long ones keeps its deadline on a slow encoder
MAX_REPLY_BYTES = 64 * 2**20  # whatever the server is set to send
T = TypeVar("T")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found, and its score: the inner product of the embeddings, higher is better."""

    id: str
    title: str
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server's time went, in milliseconds, and how many texts shared the encoder's batch."""

    tokenize_ms: float
    queue_ms: float
    encode_ms: float
    search_ms: float
    fetch_ms: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class Served:
    """What produced an answer."""

    bundle: str
    index: str
    generation: str
    variant: str
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
    """Embeddings, float32 (texts, dim); how many tokens each text had; and which were cut (positions)."""

    embeddings: npt.NDArray[np.float32]
    token_counts: tuple[int, ...]
    truncated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """What answers, and the limits that requests must keep."""

    server_version: str
    device: str
    bundle: str
    variant: str
    dim: int
    similarity: str
    corpora: tuple[str, ...]
    generation: str
    passage_count: int
    question_tower_id: str
    context_tower_id: str
    license: str
    language: str
    max_items: int
    max_k: int
    max_text_bytes: int
    max_ids: int


class Client:
    """A connection to one server. Thread-safe. Longer lists than one call may hold are split.

    Every method raises the errors of narrows.errors: InvalidRequestError, NotFoundError, MismatchError,
    OverloadedError (with `retry_after_ms`), DeadlineExceededError, UnavailableError, ServerError.
    """

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        """Connects on first use. `timeout_s` is the deadline of each call to the server."""
        self._channel = grpc.insecure_channel(target, [("grpc.max_receive_message_length", MAX_REPLY_BYTES)])
        self._stub = retrieval_pb2_grpc.RetrievalServiceStub(self._channel)
        self._target = target
        self._timeout_s = timeout_s
        self._info: ServerInfo | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def search(
        self,
        questions: Sequence[str] | npt.NDArray[np.float32],
        k: int = 10,
        *,
        view: View = "full",
        corpus: str = "",
        expected_bundle: str = "",
        timeout_s: float | None = None,
    ) -> list[SearchResult]:
        """Finds the k best passages of each question, given as text or as an embedding (float32, (n, dim)).

        Questions whose answers are too large for one reply are asked in smaller parts.
        """
        if view not in VIEWS:
            raise errors.InvalidRequestError(f"it must be one of {', '.join(VIEWS)}, not {view!r}", "view")
        if k < 1:
            raise errors.InvalidRequestError("it must be at least 1", "k")
        settings = {"k": k, "view": VIEWS[view], "corpus": corpus, "expected_bundle": expected_bundle}
        results: list[SearchResult] = []
        parts = collections.deque(self._parts(_listed(questions, "search"), timeout_s))
        while parts:
            part = parts.popleft()
            given = {"question_embeddings": _tensor(part)} if isinstance(part, np.ndarray) else {"questions": part}
            try:
                reply = self._call(self._stub.Search, _build(pb.SearchRequest, **given, **settings), timeout_s)
            except errors.ReplyTooLargeError:
                if len(part) == 1:
                    raise
                parts.extendleft([part[len(part) // 2 :], part[: len(part) // 2]])
                continue
            results += _results(reply)
        return results

    def encode_questions(self, texts: Sequence[str], *, timeout_s: float | None = None) -> npt.NDArray[np.float32]:
        """Embeds questions: float32 (n, dim)."""
        return self.encode(questions=texts, timeout_s=timeout_s).embeddings

    def encode_passages(
        self, passages: Sequence[tuple[str, str]], *, timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeds (title, text) pairs: float32 (n, dim)."""
        return self.encode(passages=passages, timeout_s=timeout_s).embeddings

    def encode(
        self,
        questions: Sequence[str] = (),
        passages: Sequence[tuple[str, str]] = (),
        *,
        timeout_s: float | None = None,
    ) -> Encoding:
        """Embeds questions, then passages, and tells their token counts and which were cut."""
        requests = [
            _build(pb.EncodeRequest, questions=part) for part in self._parts(_listed(questions, "encode"), timeout_s)
        ]
        for part in self._parts(_listed(passages, "encode"), timeout_s, PASSAGES_IN_A_CALL):
            messages = [_build(pb.Passage, title=title, text=text) for title, text in map(_pair, part)]
            requests.append(_build(pb.EncodeRequest, passages=messages))
        blocks: list[npt.NDArray[np.float32]] = []
        counts: list[int] = []
        truncated: list[int] = []
        for request in requests:
            reply = self._call(self._stub.Encode, request, timeout_s)
            truncated += [len(counts) + row for row in reply.truncated]
            counts += reply.token_counts
            block = np.frombuffer(reply.embeddings.data, dtype="<f4")
            blocks.append(block.reshape(reply.embeddings.rows, reply.embeddings.dim))
        if not blocks:
            return Encoding(np.empty((0, self.server_info().dim), dtype=np.float32), (), ())
        return Encoding(np.concatenate(blocks).astype(np.float32, copy=False), tuple(counts), tuple(truncated))

    def get_passages(self, ids: Sequence[str], *, corpus: str = "", timeout_s: float | None = None) -> dict[str, Hit]:
        """Looks passages up: a table by id, without those that the index does not hold; their score is NaN."""
        wanted = _listed(ids, "get_passages")
        step = self._limits(timeout_s).max_ids if wanted else 1
        found: dict[str, Hit] = {}
        for start in range(0, len(wanted), step):
            request = _build(pb.GetPassagesRequest, ids=wanted[start : start + step], corpus=corpus)
            reply = self._call(self._stub.GetPassages, request, timeout_s)
            found.update((p.id, Hit(p.id, p.title, p.text, float("nan"))) for p in reply.passages)
        return found

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Asks what answers here, and for the limits."""
        reply = self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s)
        return ServerInfo(
            server_version=reply.server_version,
            device=reply.device,
            bundle=reply.served.bundle,
            variant=reply.served.variant,
            dim=reply.dim,
            similarity=reply.similarity,
            corpora=tuple(reply.corpora),
            generation=reply.served.generation,
            passage_count=reply.passage_count,
            question_tower_id=reply.question_encoder.tower_id,
            context_tower_id=reply.context_encoder.tower_id,
            license=reply.license,
            language=reply.language,
            max_items=reply.limits.max_items,
            max_k=reply.limits.max_k,
            max_text_bytes=reply.limits.max_text_bytes,
            max_ids=reply.limits.max_ids,
        )

    def _limits(self, timeout_s: float | None) -> ServerInfo:
        if self._info is None:
            self._info = self.server_info(timeout_s=timeout_s)
        return self._info

    def _parts(self, items: Any, timeout_s: float | None, most: int = sys.maxsize) -> Iterator[Any]:  # noqa: ANN401
        """Splits what one call may not hold; the limit is asked for only where a list has several items."""
        if len(items) == 1:
            yield items
        elif len(items) > 1:
            step = min(most, self._limits(timeout_s).max_items)
            for start in range(0, len(items), step):
                yield items[start : start + step]

    def _call(self, method: Callable[..., Reply], request: object, timeout_s: float | None) -> Reply:
        try:
            return method(request, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise _typed(error, self._target) from error


def _build(message: Callable[..., T], **fields: object) -> T:
    """Makes a message; a value that does not fit (a negative k, a lone surrogate in a text) is a bad request."""
    try:
        return message(**fields)
    except (TypeError, ValueError) as error:
        raise errors.InvalidRequestError(str(error)) from None


def _listed(items: Any, method: str) -> Any:  # noqa: ANN401  (a list, or an array as it is)
    """The items as a list; one string where a list belongs would be taken apart into letters."""
    if isinstance(items, str):
        raise errors.InvalidRequestError(f"give a list: {method}([...])")
    return items if isinstance(items, np.ndarray) and items.dtype.kind == "f" else list(items)


def _pair(passage: tuple[str, str]) -> tuple[str, str]:
    if isinstance(passage, str) or len(passage) != 2:
        raise errors.InvalidRequestError(f"a passage is a pair (title, text), not {passage!r}", "passages")
    return passage


def _results(reply: pb.SearchResponse) -> list[SearchResult]:
    served, truncated = _served(reply.served), set(reply.truncated)
    return [
        SearchResult(
            tuple(Hit(hit.passage.id, hit.passage.title, hit.passage.text, hit.score) for hit in found.hits),
            served,
            number in truncated,
        )
        for number, found in enumerate(reply.results)
    ]


def _tensor(vectors: npt.NDArray[np.float32]) -> pb.Tensor:
    if vectors.ndim != 2:
        raise errors.InvalidRequestError(f"embeddings have the shape (n, dim), not {vectors.shape}", "questions")
    data = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
    return pb.Tensor(dtype=pb.DATA_TYPE_FLOAT32, rows=vectors.shape[0], dim=vectors.shape[1], data=data)


def _served(served: pb.Served) -> Served:
    t = served.timings
    timings = Timings(t.tokenize_ms, t.queue_ms, t.encode_ms, t.search_ms, t.fetch_ms, t.batch_size)
    return Served(served.bundle, served.index, served.generation, served.variant, timings)


def _typed(error: grpc.RpcError, target: str) -> errors.NarrowsError:
    """The typed exception for a gRPC status. `error` is a call that ended, as grpc's stubs raise it."""
    assert isinstance(error, grpc.Call)
    message = error.details() or ""
    trailers = {key: str(value) for key, value in error.trailing_metadata() or ()}
    match error.code():
        case grpc.StatusCode.INVALID_ARGUMENT if trailers.get("narrows-reason") == "REPLY_TOO_LARGE":
            return errors.ReplyTooLargeError(message)
        case grpc.StatusCode.INVALID_ARGUMENT:
            field = trailers.get("narrows-field", "")
            return errors.InvalidRequestError(message.removeprefix(f"{field}: ") if field else message, field)
        case grpc.StatusCode.NOT_FOUND:
            return errors.NotFoundError(message)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return errors.MismatchError(message)
        case grpc.StatusCode.RESOURCE_EXHAUSTED if trailers.get("narrows-reason") == "OVERLOADED":
            return errors.OverloadedError(message, int(trailers.get("grpc-retry-pushback-ms", "0")))
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return errors.InvalidRequestError(f"the message is too large: {message}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return errors.DeadlineExceededError(message or "the deadline passed")
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:  # CANCELLED: the server shut down meanwhile
            return errors.UnavailableError(f"{target}: {message}")
        case code:
            return errors.ServerError(f"{code.name}: {message}")
