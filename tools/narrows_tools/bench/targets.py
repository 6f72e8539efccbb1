"""What the load generator sends to: a Target takes one text and says how its request ended.

A target is named by import path and arguments (TargetSpec), because the load generator's own process makes it; the
targets of other systems lie beside their servers and are named in the same way.
"""

import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt

from narrows import messages
from narrows.errors import SettingsError
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

Status = Literal["ok", "refused", "late", "failed"]
STATUSES: tuple[Status, ...] = ("ok", "refused", "late", "failed")
K = 10


@dataclass(frozen=True, slots=True)
class Text:
    """A text to send, and its length in tokens, special tokens included."""

    text: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Reply:
    """How a request ended: refused is what the server turned away, late what passed its deadline.

    `batch_size` texts shared the server's batch, each padded to `padded_tokens`; 0 where the server does not say.
    """

    status: Status
    batch_size: int = 0
    padded_tokens: int = 0
    embedding: npt.NDArray[np.float32] | None = None  # (dim,); kept only by a target that is told to


class Target(Protocol):
    """A connection to one server, used by one event loop."""

    async def open(self) -> None:
        """Connects; may raise."""

    async def send(self, text: Text, timeout_s: float) -> Reply:
        """Sends one request; a failed one is a Reply too, and never raises."""

    async def close(self) -> None:
        """Disconnects."""


@runtime_checkable
class BatchTarget(Protocol):
    """A Target that can send up to `max_items` texts in one request."""

    max_items: int

    async def send_batch(self, texts: Sequence[Text], timeout_s: float) -> list[Reply]:
        """Sends one request; a reply for each text, in order; never raises."""


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """A target by name: `factory` is `module:name` of what makes it from `arguments`, which are JSON."""

    factory: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def make(self) -> Target:
        """Makes the target, not yet open.

        Raises:
            SettingsError: there is nothing of that name.
        """
        module, _, name = self.factory.partition(":")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingsError(f"there is no target {self.factory}: {error}; name it as module:name") from None
        target: Target = found(**self.arguments)
        return target


class NarrowsTarget:
    """A Narrows server: unary Search or Encode of questions, or Encode of passages; one request a text."""

    def __init__(
        self,
        address: str,
        method: Literal["search", "encode"] = "encode",
        lane: Literal["questions", "passages"] = "questions",
        max_items: int = 16,
        keep_embeddings: bool = False,
    ) -> None:
        self.max_items = max_items
        self._address = address
        self._method = method
        self._passages = lane == "passages"
        self._keep = keep_embeddings
        self._channel: grpc.aio.Channel | None = None

    async def open(self) -> None:
        """Connects, and waits until the server answers."""
        options = [*messages.CHANNEL_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
        self._channel = grpc.aio.insecure_channel(self._address, options)
        stub: retrieval_pb2_grpc.RetrievalServiceAsyncStub = retrieval_pb2_grpc.RetrievalServiceStub(self._channel)
        self._search, self._encode = stub.Search, stub.Encode
        try:
            await stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=10.0, wait_for_ready=True)
        except grpc.RpcError as error:
            raise messages.status_error(error, self._address) from error

    async def close(self) -> None:
        """Disconnects."""
        if self._channel is not None:
            await self._channel.close()

    async def send(self, text: Text, timeout_s: float) -> Reply:
        """Sends one text."""
        return (await self.send_batch([text], timeout_s))[0]

    async def send_batch(self, texts: Sequence[Text], timeout_s: float) -> list[Reply]:
        """Sends several in one request, and leaves open how they were batched: the server tells of the largest only."""
        strings = [text.text for text in texts]
        reply: pb.SearchResponse | pb.EncodeResponse
        sent_s = time.monotonic()
        try:
            if self._method == "search":
                reply = await self._search(pb.SearchRequest(questions=strings, k=K), timeout=timeout_s)
            elif self._passages:
                passages = [pb.Passage(text=string) for string in strings]
                reply = await self._encode(pb.EncodeRequest(passages=passages), timeout=timeout_s)
            else:
                reply = await self._encode(pb.EncodeRequest(questions=strings), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return [Reply(status_of(error.code(), overdue=time.monotonic() - sent_s >= timeout_s))] * len(texts)
        timings = reply.served.timings
        batch = (timings.batch_size, timings.batch_tokens) if len(texts) == 1 else (0, 0)
        if not self._keep or isinstance(reply, pb.SearchResponse):
            return [Reply("ok", *batch)] * len(texts)
        rows = np.frombuffer(reply.embeddings.data, dtype="<f4").reshape(len(texts), -1)
        return [Reply("ok", *batch, row.astype(np.float32)) for row in rows]


def status_of(code: grpc.StatusCode, *, overdue: bool) -> Status:
    """What an error means; `overdue`: it came no earlier than the request's deadline.

    At the deadline a server cancels the call, of which a busy client may hear before its own timer rings.
    """
    match code:
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return "refused"
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return "late"
        case grpc.StatusCode.CANCELLED if overdue:
            return "late"
    return "failed"
