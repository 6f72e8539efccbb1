"""The Python client: needs only grpcio, protobuf and numpy.

with Client("localhost:50051") as client:
    for hit in client.search(["who wrote Don Quixote?"], k=5)[0]:
        print(hit.score, hit.title)
"""

import collections
import sys
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
import numpy.typing as npt

from narrows import errors, messages, reading_messages
from narrows.messages import (
    DType,
    EncodeOptions,
    Encoding,
    Hit,
    OnTooLong,
    SearchOptions,
    SearchResult,
    ServerInfo,
    View,
)
from narrows.reading_messages import Answers, ReadOptions, Rule
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

Reply = TypeVar("Reply")


class Client:
    """A connection to one server. Thread-safe. Longer lists than one call may hold are split.

    Every method raises the errors of narrows.errors: InvalidRequestError, NotFoundError, NoReaderError, MismatchError,
    OverloadedError (with `retry_after_ms`), DeadlineExceededError, UnavailableError, ServerError.
    """

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        """Connects on first use. `timeout_s` is the deadline of each call to the server."""
        self._channel = grpc.insecure_channel(target, messages.CHANNEL_OPTIONS)
        self._stub = retrieval_pb2_grpc.RetrievalServiceStub(self._channel)
        self._reader = retrieval_pb2_grpc.ReaderServiceStub(self._channel)
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
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> list[SearchResult]:
        """Finds the k best passages of each question, given as text or as an embedding (float32, (n, dim)).

        Questions whose answers are too large for one reply are asked in smaller parts. A question of more tokens than
        the tower reads is cut, or with `on_too_long="error"` an InvalidRequestError.
        """
        options = SearchOptions(k, view, corpus, expected_bundle, on_too_long)
        results: list[SearchResult] = []
        parts = collections.deque(self._parts(messages.listed(questions, "search"), timeout_s))
        while parts:
            part = parts.popleft()
            try:
                reply = self._call(self._stub.Search, options.request(part), timeout_s)
            except errors.ReplyTooLargeError:
                if len(part) == 1:
                    raise
                parts.extendleft([part[len(part) // 2 :], part[: len(part) // 2]])
                continue
            results += messages.results_of(reply)
        return results

    def encode_questions(self, texts: Sequence[str], *, timeout_s: float | None = None) -> npt.NDArray[np.float32]:
        """Embeds questions: float32 (n, dim)."""
        return self.encode(questions=texts, timeout_s=timeout_s).embeddings.astype(np.float32, copy=False)

    def encode_passages(
        self, passages: Sequence[tuple[str, str]], *, timeout_s: float | None = None
    ) -> npt.NDArray[np.float32]:
        """Embeds (title, text) pairs: float32 (n, dim)."""
        return self.encode(passages=passages, timeout_s=timeout_s).embeddings.astype(np.float32, copy=False)

    def encode(
        self,
        questions: Sequence[str] = (),
        passages: Sequence[tuple[str, str]] = (),
        *,
        dtype: DType = "float32",
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> Encoding:
        """Embeds questions, then passages, and tells their token counts and which were cut.

        With the dtype float16 the embeddings are rounded by the server, and half as many bytes travel.
        """
        options = EncodeOptions(dtype, expected_bundle, on_too_long)
        requests = [
            options.request(questions=part) for part in self._parts(messages.listed(questions, "encode"), timeout_s)
        ]
        pairs = messages.listed(passages, "encode")
        requests += [
            options.request(passages=part) for part in self._parts(pairs, timeout_s, messages.PASSAGES_IN_A_CALL)
        ]
        if not requests:
            return Encoding(np.empty((0, self.server_info().dim), dtype=dtype), (), ())
        return messages.encoding_of([self._call(self._stub.Encode, request, timeout_s) for request in requests], dtype)

    def answer(
        self,
        question: str,
        passages: int | None = None,
        *,
        spans: int = 5,
        rule: Rule = "dpr",
        view: View = "full",
        corpus: str = "",
        expected_bundle: str = "",
        timeout_s: float | None = None,
    ) -> Answers:
        """Finds the best passages for a question, reads them, and returns the words that answer, best first.

        Needs a server with an index and a reader (NoReaderError). So many `passages` are read: 50 unless it is given,
        or as many as the server's limits allow. `rule` says which words may be an answer: at most 10 tokens of the
        text, made whole words (dpr), or what transformers' reader tokenizer gives (hugging-face).
        """
        request = ReadOptions(spans, rule, expected_bundle).answer_request(question, passages, view, corpus)
        return reading_messages.answers_of(self._call(self._reader.Answer, request, timeout_s))

    def read(
        self,
        question: str,
        passages: Sequence[tuple[str, str]],
        *,
        spans: int = 5,
        rule: Rule = "dpr",
        expected_bundle: str = "",
        timeout_s: float | None = None,
    ) -> Answers:
        """Reads passages, (title, text), and returns their words that answer a question, best first; as `answer`."""
        pairs = messages.listed(passages, "read")
        options = ReadOptions(spans, rule, expected_bundle)
        parts = list(self._parts(pairs, timeout_s)) or [pairs]  # without any the server says what is wrong
        requests = [options.read_request(question, part) for part in parts]
        replies = [self._call(self._reader.Read, request, timeout_s) for request in requests]
        return reading_messages.merged(list(map(reading_messages.answers_of, replies)), parts, spans)

    def get_passages(
        self, ids: Sequence[str], *, view: View = "full", corpus: str = "", timeout_s: float | None = None
    ) -> dict[str, Hit]:
        """Looks passages up: a table by id, without those that the index does not hold; their score is NaN."""
        wanted = messages.listed(ids, "get_passages")
        step = self._limits(timeout_s).max_ids if wanted else 1
        found: dict[str, Hit] = {}
        for start in range(0, len(wanted), step):
            request = messages.get_passages_request(wanted[start : start + step], view, corpus)
            found |= messages.passages_of(self._call(self._stub.GetPassages, request, timeout_s))
        return found

    def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Asks what answers here, and for the limits."""
        return messages.server_info_of(self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s))

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
            return method(request, timeout=messages.seconds(self._timeout_s if timeout_s is None else timeout_s))
        except grpc.RpcError as error:
            raise messages.status_error(error, self._target) from error
