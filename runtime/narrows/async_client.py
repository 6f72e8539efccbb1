"""The Python client for asyncio: many requests at a time over one stream.

async with AsyncClient("localhost:50051") as client:
    result = await client.search("who wrote Don Quixote?", k=5)
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from narrows import messages, reading_messages
from narrows.errors import DeadlineExceededError, InvalidRequestError, ReplyTooLargeError, UnavailableError
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
from narrows.pipeline import Pipeline, in_order
from narrows.reading_messages import Answers, ReadOptions, Rule
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

IN_FLIGHT = 32  # of the *_many methods
PARTS_IN_FLIGHT = 4  # of one long list: enough that the server never waits for the next
T = TypeVar("T")
Vectors = npt.NDArray[np.float32]


class AsyncClient:
    """A connection to one server, for the tasks of one event loop; make it while the loop runs.

    Many tasks may ask at a time: searches share one stream, and so do encodings. When a stream breaks (the server went
    away), what is outstanding gets an UnavailableError, and the next request opens another. Every method raises the
    errors of narrows.errors, as Client does. Longer lists than one request may hold are split.
    """

    def __init__(self, target: str, timeout_s: float = 10.0) -> None:
        """Connects on first use. `timeout_s` is the deadline of each request to the server."""
        self._channel = grpc.aio.insecure_channel(target, messages.CHANNEL_OPTIONS)
        self._stub: retrieval_pb2_grpc.RetrievalServiceAsyncStub = retrieval_pb2_grpc.RetrievalServiceStub(
            self._channel
        )
        self._reader: retrieval_pb2_grpc.ReaderServiceAsyncStub = retrieval_pb2_grpc.ReaderServiceStub(self._channel)
        self._searches = Pipeline(self._stub.SearchStream, target)
        self._encodings = Pipeline(self._stub.EncodeStream, target)
        self._target = target
        self._timeout_s = timeout_s
        self._info: ServerInfo | None = None
        self._asking_info = asyncio.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. What is outstanding gets an UnavailableError."""
        self._closed = True
        await self._searches.close()
        await self._encodings.close()
        await self._channel.close()

    @overload
    async def search(  # type: ignore[overload-overlap]  # a string is a sequence of strings, too
        self,
        questions: str,
        k: int = 10,
        *,
        view: View = "full",
        corpus: str = "",
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> SearchResult: ...
    @overload
    async def search(
        self,
        questions: Sequence[str] | Vectors,
        k: int = 10,
        *,
        view: View = "full",
        corpus: str = "",
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> list[SearchResult]: ...
    async def search(
        self,
        questions: str | Sequence[str] | Vectors,
        k: int = 10,
        *,
        view: View = "full",
        corpus: str = "",
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> SearchResult | list[SearchResult]:
        """Finds the k best passages of a question, or of each of a list of them.

        Questions are given as text or as embeddings, float32 (n, dim). Those whose answers are too large for one reply
        are asked in smaller parts.
        """
        options = SearchOptions(k, view, corpus, expected_bundle, on_too_long)
        if isinstance(questions, str):
            return (await self._search(options, [questions], timeout_s))[0]
        parts = await self._parts(messages.listed(questions, "search"), timeout_s)
        answers = in_order(parts, lambda part: self._search(options, part, timeout_s), PARTS_IN_FLIGHT)
        return [result async for results in answers for result in results]

    def search_many(
        self,
        questions: Iterable[str] | AsyncIterable[str] | Vectors,
        k: int = 10,
        *,
        in_flight: int = IN_FLIGHT,
        view: View = "full",
        corpus: str = "",
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[SearchResult, None]:
        """Yields the result of each question, in order; a question is taken when there is room for it.

        The first error ends it. `in_flight` questions are taken whose results are not yet yielded; it bounds the memory
        for endless questions, and more than the server's max_stream_in_flight gains nothing. To leave early, wrap it in
        contextlib.aclosing, which drops what is outstanding.
        """
        options = SearchOptions(k, view, corpus, expected_bundle, on_too_long)

        async def ask(question: str | Vectors) -> SearchResult:
            alone = question[np.newaxis] if isinstance(question, np.ndarray) else [question]
            return (await self._search(options, alone, timeout_s))[0]

        return in_order(_several(questions, "search_many"), ask, in_flight)

    async def encode_questions(self, texts: Sequence[str], *, timeout_s: float | None = None) -> Vectors:
        """Embeds questions: float32 (n, dim)."""
        return (await self.encode(questions=texts, timeout_s=timeout_s)).embeddings.astype(np.float32, copy=False)

    async def encode_passages(self, passages: Sequence[tuple[str, str]], *, timeout_s: float | None = None) -> Vectors:
        """Embeds (title, text) pairs: float32 (n, dim)."""
        return (await self.encode(passages=passages, timeout_s=timeout_s)).embeddings.astype(np.float32, copy=False)

    async def encode(
        self,
        questions: Sequence[str] = (),
        passages: Sequence[tuple[str, str]] = (),
        *,
        dtype: DType = "float32",
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> Encoding:
        """Embeds questions, then passages, and tells their token counts and which were cut; as Client.encode does."""
        options = EncodeOptions(dtype, expected_bundle, on_too_long)
        asked = messages.listed(questions, "encode")
        requests = [options.request(questions=part) for part in await self._parts(asked, timeout_s)]
        pairs = messages.listed(passages, "encode")
        parts = await self._parts(pairs, timeout_s, messages.PASSAGES_IN_A_CALL)
        requests += [options.request(passages=part) for part in parts]
        if not requests:
            return Encoding(np.empty((0, (await self._limits(timeout_s)).dim), dtype=dtype), (), ())
        answers = in_order(requests, lambda request: self._encode(request, timeout_s), PARTS_IN_FLIGHT)
        return messages.encoding_of([reply async for reply in answers], dtype)

    def encode_many_questions(
        self,
        questions: Iterable[str] | AsyncIterable[str],
        *,
        in_flight: int = IN_FLIGHT,
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Vectors, None]:
        """Yields the embedding of each question, float32 (dim,), in order; otherwise as search_many."""
        options = EncodeOptions("float32", expected_bundle, on_too_long)

        async def ask(question: str) -> Vectors:
            return messages.embedding_of(await self._encode(options.request(questions=[question]), timeout_s))

        return in_order(_several(questions, "encode_many_questions"), ask, in_flight)

    def encode_many_passages(
        self,
        passages: Iterable[tuple[str, str]] | AsyncIterable[tuple[str, str]],
        *,
        in_flight: int = IN_FLIGHT,
        expected_bundle: str = "",
        on_too_long: OnTooLong = "truncate",
        timeout_s: float | None = None,
    ) -> AsyncGenerator[Vectors, None]:
        """Yields the embedding of each (title, text), float32 (dim,), in order; otherwise as search_many."""
        options = EncodeOptions("float32", expected_bundle, on_too_long)

        async def ask(passage: tuple[str, str]) -> Vectors:
            return messages.embedding_of(await self._encode(options.request(passages=[passage]), timeout_s))

        return in_order(_several(passages, "encode_many_passages"), ask, in_flight)

    async def answer(
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
        return reading_messages.answers_of(await self._call(self._reader.Answer, request, timeout_s))

    async def read(
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
        parts = await self._parts(pairs, timeout_s) or [pairs]  # without any the server says what is wrong
        requests = [options.read_request(question, part) for part in parts]
        replies = [await self._call(self._reader.Read, request, timeout_s) for request in requests]
        return reading_messages.merged(list(map(reading_messages.answers_of, replies)), parts, spans)

    async def get_passages(
        self, ids: Sequence[str], *, view: View = "full", corpus: str = "", timeout_s: float | None = None
    ) -> dict[str, Hit]:
        """Looks passages up: a table by id, without those that the index does not hold; their score is NaN."""
        wanted = messages.listed(ids, "get_passages")
        step = (await self._limits(timeout_s)).max_ids if wanted else 1
        found: dict[str, Hit] = {}
        for start in range(0, len(wanted), step):
            request = messages.get_passages_request(wanted[start : start + step], view, corpus)
            found |= messages.passages_of(await self._call(self._stub.GetPassages, request, timeout_s))
        return found

    async def server_info(self, *, timeout_s: float | None = None) -> ServerInfo:
        """Asks what answers here, and for the limits."""
        reply = await self._call(self._stub.GetServerInfo, pb.GetServerInfoRequest(), timeout_s)
        return messages.server_info_of(reply)

    async def _search(self, options: SearchOptions, part: Any, timeout_s: float | None) -> list[SearchResult]:  # noqa: ANN401
        item = pb.SearchStreamRequest(search=options.request(part))
        try:
            response = await self._within(timeout_s, lambda deadline_s: self._searches.ask(item, deadline_s), item)
        except ReplyTooLargeError:
            if len(part) == 1:
                raise
            middle = len(part) // 2
            first = await self._search(options, part[:middle], timeout_s)
            return first + await self._search(options, part[middle:], timeout_s)
        return messages.results_of(response.result)

    async def _encode(self, request: pb.EncodeRequest, timeout_s: float | None) -> pb.EncodeResponse:
        item = pb.EncodeStreamRequest(encode=request)
        response = await self._within(timeout_s, lambda deadline_s: self._encodings.ask(item, deadline_s), item)
        return response.result

    async def _within(
        self,
        timeout_s: float | None,
        ask: Callable[[float], Awaitable[T]],
        item: pb.SearchStreamRequest | pb.EncodeStreamRequest,
    ) -> T:
        """Asks over a stream, within the deadline."""
        deadline_s = asyncio.get_running_loop().time() + self._seconds(timeout_s)
        try:
            async with asyncio.timeout_at(deadline_s):
                # A message over the server's limit would end the stream, and all that is outstanding with it.
                info = await self._limits(timeout_s)
                largest = messages.max_request_bytes(info.max_items, info.max_text_bytes, info.max_ids, info.dim)
                if item.ByteSize() > largest:
                    raise InvalidRequestError(
                        f"the message is too large: {item.ByteSize()} bytes, and the server takes {largest}"
                    )
                self._check_open()
                return await ask(deadline_s)
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed before the answer came") from None
        except UnavailableError:
            self._info = None  # what comes back may be another server
            raise

    async def _limits(self, timeout_s: float | None) -> ServerInfo:
        try:
            async with asyncio.timeout(self._seconds(timeout_s)), self._asking_info:  # others may ask before
                if self._info is None:
                    self._info = await self.server_info(timeout_s=timeout_s)
                return self._info
        except TimeoutError:
            raise DeadlineExceededError("the deadline passed before the server told its limits") from None

    async def _parts(self, items: Any, timeout_s: float | None, most: int | None = None) -> list[Any]:  # noqa: ANN401
        """Splits what one request may not hold."""
        if len(items) == 0:
            return []
        max_items = (await self._limits(timeout_s)).max_items
        step = max_items if most is None else min(most, max_items)
        return [items[start : start + step] for start in range(0, len(items), step)]

    async def _call(self, method: Callable[..., Awaitable[T]], request: object, timeout_s: float | None) -> T:
        self._check_open()
        try:
            return await method(request, timeout=self._seconds(timeout_s))
        except grpc.RpcError as error:
            raise messages.status_error(error, self._target) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or not task.cancelling():  # then it was the channel that cancelled the call
                self._check_open()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise UnavailableError(f"{self._target}: the client is closed")

    def _seconds(self, timeout_s: float | None) -> float:
        return messages.seconds(self._timeout_s if timeout_s is None else timeout_s)


def _several(items: T, method: str) -> T:
    """The items; one string where several belong would be taken apart into letters."""
    if isinstance(items, str):
        raise InvalidRequestError(f"give a list: {method}([...])")
    return items
