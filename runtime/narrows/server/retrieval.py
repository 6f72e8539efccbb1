"""RetrievalService: each method hands its request to Answers, and turns what is raised into a gRPC status."""

import functools
import itertools
from collections.abc import AsyncIterator

from narrows.server.activity import Activity
from narrows.server.answers import Answers
from narrows.server.rpc import deadline_s, rpc
from narrows.server.streams import Context, StreamKind, StreamLimits, serve_stream
from narrows.settings import ServerSettings
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc


class RetrievalServicer(retrieval_pb2_grpc.RetrievalServiceServicer):
    """Answers over gRPC. `activity` knows what is being answered."""

    def __init__(self, answers: Answers, settings: ServerSettings, activity: Activity) -> None:
        self.activity = activity
        self._answers = answers
        self._sources = itertools.count(1)  # a number for each stream
        self._default_timeout_s = settings.default_deadline_ms / 1e3
        self._stream_limits = StreamLimits(settings.max_stream_in_flight, self._default_timeout_s)

    @rpc
    async def Search(self, request: pb.SearchRequest, context: Context) -> pb.SearchResponse:
        """Answers questions, or searches with ready embeddings."""
        return await self._answers.search(request, deadline_s(context, self._default_timeout_s))

    @rpc
    async def SearchStream(  # type: ignore[override]  # grpc.aio takes coroutines as well as generators
        self, requests: AsyncIterator[pb.SearchStreamRequest], context: Context
    ) -> None:
        """Search, for many requests over one stream."""
        answer = functools.partial(self._answers.search, source=next(self._sources))
        kind = StreamKind("search", answer, pb.SearchStreamResponse)
        await serve_stream(context, kind, self._stream_limits, self.activity)

    @rpc
    async def Encode(self, request: pb.EncodeRequest, context: Context) -> pb.EncodeResponse:
        """Embeds questions with one tower and passages with the other."""
        return await self._answers.encode(request, deadline_s(context, self._default_timeout_s))

    @rpc
    async def EncodeStream(  # type: ignore[override]  # grpc.aio takes coroutines as well as generators
        self, requests: AsyncIterator[pb.EncodeStreamRequest], context: Context
    ) -> None:
        """Encode, for many requests over one stream."""
        answer = functools.partial(self._answers.encode, source=next(self._sources))
        kind = StreamKind("encode", answer, pb.EncodeStreamResponse)
        await serve_stream(context, kind, self._stream_limits, self.activity)

    @rpc
    async def GetPassages(self, request: pb.GetPassagesRequest, context: Context) -> pb.GetPassagesResponse:
        """Looks passages up by id."""
        return await self._answers.get_passages(request)

    @rpc
    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Shows the tokens that the towers would see."""
        return await self._answers.tokenize(request)

    @rpc
    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        """Says what answers here."""
        return self._answers.server_info()
