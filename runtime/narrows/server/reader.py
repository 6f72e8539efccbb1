"""ReaderService: as RetrievalService, each method hands its request on."""

from narrows.server.activity import Activity
from narrows.server.reading import Reading
from narrows.server.rpc import deadline_s, rpc
from narrows.server.streams import Context
from narrows.settings import ServerSettings
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc


class ReaderServicer(retrieval_pb2_grpc.ReaderServiceServicer):
    """Reads over gRPC."""

    def __init__(self, reading: Reading, settings: ServerSettings, activity: Activity) -> None:
        self.activity = activity
        self._reading = reading
        self._default_timeout_s = settings.default_deadline_ms / 1e3

    @rpc
    async def Answer(self, request: pb.AnswerRequest, context: Context) -> pb.AnswerResponse:
        """Searches, and reads what was found."""
        return await self._reading.answer(request, deadline_s(context, self._default_timeout_s))

    @rpc
    async def Read(self, request: pb.ReadRequest, context: Context) -> pb.ReadResponse:
        """Reads what is given."""
        return await self._reading.read(request, deadline_s(context, self._default_timeout_s))
