"""RetrievalService: each method hands its request to Answers, and turns what is raised into a gRPC status."""

import asyncio
import functools
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import grpc.aio

from narrows.server.activity import Activity
from narrows.server.answers import Answers
from narrows.server.errors import failure_of
from narrows.server.streams import Context, StreamKind, StreamLimits, serve_stream
from narrows.settings import ServerSettings
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Method = Callable[["RetrievalServicer", Request, Context], Awaitable[Reply]]


def _rpc(method: Method[Request, Reply]) -> Method[Request, Reply]:
    """Turns exceptions into gRPC statuses, by the one table."""

    @functools.wraps(method)
    async def wrapped(self: "RetrievalServicer", request: Request, context: Context) -> Reply:
        with self.activity.answering():
            try:
                return await method(self, request, context)
            except Exception as error:
                failure = failure_of(error)
        try:
            await context.abort(failure.code, failure.message, failure.trailers())
        except grpc.aio.InternalError:  # the caller's own deadline passed meanwhile: nobody is there to be told
            raise asyncio.CancelledError from None
        raise AssertionError("abort raises")

    return wrapped


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Answers over gRPC. `activity` knows what is being answered."""

    def __init__(self, answers: Answers, settings: ServerSettings) -> None:
        self.activity = Activity()
        self._answers = answers
        self._sources = itertools.count(1)  # a number for each stream
        self._default_timeout_s = settings.default_deadline_ms / 1e3
        self._stream_limits = StreamLimits(settings.max_stream_in_flight, self._default_timeout_s)

    @_rpc
    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Answers questions, or searches with ready embeddings."""
        return await self._answers.search(request, self._deadline_s(context))

    @_rpc
    async def SearchStream(  # type: ignore[override]  # grpc.aio takes coroutines as well as generators
        self, requests: AsyncIterator[pb.SearchStreamRequest], context: Context
    ) -> None:
        """Search, for many requests over one stream."""
        answer = functools.partial(self._answers.search, source=next(self._sources))
        kind = StreamKind("search", answer, pb.SearchStreamResponse)
        await serve_stream(context, kind, self._stream_limits, self.activity)

    @_rpc
    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        """Embeds questions with one tower and passages with the other."""
        return await self._answers.encode(request, self._deadline_s(context))

    @_rpc
    async def EncodeStream(  # type: ignore[override]  # grpc.aio takes coroutines as well as generators
        self, requests: AsyncIterator[pb.EncodeStreamRequest], context: Context
    ) -> None:
        """Encode, for many requests over one stream."""
        answer = functools.partial(self._answers.encode, source=next(self._sources))
        kind = StreamKind("encode", answer, pb.EncodeStreamResponse)
        await serve_stream(context, kind, self._stream_limits, self.activity)

    @_rpc
    async def GetPassages(self, request: pb.GetPassagesRequest, context: Context) -> pb.GetPassagesResponse:
        """Looks passages up by id."""
        return await self._answers.get_passages(request)

    @_rpc
    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Shows the tokens that the towers would see."""
        return await self._answers.tokenize(request)

    @_rpc
    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """Says what answers here."""
        return self._answers.server_info()

    def _deadline_s(self, context: Context) -> float:
        """The caller's deadline on CLOCK_MONOTONIC; the server's default one where it set none."""
        remaining_s = context.time_remaining()
        return time.monotonic() + (self._default_timeout_s if remaining_s is None else remaining_s)
