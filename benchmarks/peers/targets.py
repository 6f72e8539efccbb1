"""The peers as targets of the load generator: one text a request, its embedding back, over HTTP."""

import asyncio
import base64
import json
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from benchmarks.peers.http_client import HttpClient, HttpError
from narrows.errors import BenchmarkError
from narrows_tools.bench.targets import Reply, Status, Text

STATUS_OF: dict[int, Status] = {408: "late", 429: "refused", 503: "refused", 504: "late"}
JSON_HEADERS = {"Content-Type": "application/json"}


class HttpTarget(ABC):
    """A peer on this machine."""

    path: str
    headers: dict[str, str]

    def __init__(self, port: int, keep_embeddings: bool = False) -> None:
        self._port = port
        self._keep = keep_embeddings
        self._client: HttpClient | None = None

    async def open(self) -> None:
        """Embeds one text.

        Raises:
            BenchmarkError: the server does not.
        """
        self._client = HttpClient("127.0.0.1", self._port)
        reply = await self.send(Text("who sings?", 5), timeout_s=10.0)
        if reply.status != "ok":
            raise BenchmarkError(f"no embedding from port {self._port}: {reply.status}")

    async def close(self) -> None:
        """Disconnects."""
        if self._client is not None:
            await self._client.close()

    async def send(self, text: Text, timeout_s: float) -> Reply:
        """Sends one text."""
        assert self._client is not None, "open first"
        body, headers = self.request(text.text)
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._client.post(self.path, body, headers)
        except TimeoutError:
            return Reply("late")
        except (OSError, HttpError):
            return Reply("failed")
        if reply.status != 200:
            return Reply(STATUS_OF.get(reply.status, "failed"))
        if not self._keep:
            return Reply("ok")
        try:
            return Reply("ok", embedding=self.embedding(reply.body))
        except (ValueError, KeyError, IndexError, TypeError):
            return Reply("failed")

    @abstractmethod
    def request(self, text: str) -> tuple[bytes, dict[str, str]]:
        """Body and headers that ask for a text's embedding."""

    def embedding(self, body: bytes) -> npt.NDArray[np.float32]:
        """What a reply holds: here plain little-endian bytes; (dim,)."""
        return np.frombuffer(body, dtype="<f4").astype(np.float32)


class MosecTarget(HttpTarget):
    """servers/mosec_server.py: the text as the body."""

    path = "/inference"
    headers = {"Content-Type": "text/plain"}  # noqa: RUF012  (read only)

    def request(self, text: str) -> tuple[bytes, dict[str, str]]:
        """The text itself."""
        return text.encode(), self.headers


class LitServeTarget(HttpTarget):
    """servers/litserve_server.py: JSON in, bytes out."""

    path = "/predict"
    headers = JSON_HEADERS

    def request(self, text: str) -> tuple[bytes, dict[str, str]]:
        """One field."""
        return json.dumps({"text": text}).encode(), self.headers


class InfinityTarget(HttpTarget):
    """infinity's own API, which is OpenAI's; embeddings in base64, which is the cheapest that it has."""

    path = "/embeddings"
    headers = JSON_HEADERS

    def request(self, text: str) -> tuple[bytes, dict[str, str]]:
        """A list of one text."""
        return json.dumps({"model": ".", "input": [text], "encoding_format": "base64"}).encode(), self.headers

    def embedding(self, body: bytes) -> npt.NDArray[np.float32]:
        """From base64."""
        return super().embedding(base64.b64decode(json.loads(body)["data"][0]["embedding"]))


class TritonTarget(HttpTarget):
    """Triton's HTTP API (KServe v2 with its binary extension): a JSON head, then the tensor's bytes."""

    path = "/v2/models/encoder/infer"
    headers = {"Content-Type": "application/octet-stream"}  # noqa: RUF012  (read only)

    def request(self, text: str) -> tuple[bytes, dict[str, str]]:
        """A tensor of one string: its length in 4 bytes, then its bytes."""
        data = text.encode()
        tensor = len(data).to_bytes(4, "little") + data
        head = (
            b'{"inputs":[{"name":"TEXT","datatype":"BYTES","shape":[1,1],"parameters":{"binary_data_size":%d}}],'
            b'"outputs":[{"name":"EMBEDDING","parameters":{"binary_data":true}}]}' % len(tensor)
        )
        return head + tensor, self.headers | {"Inference-Header-Content-Length": str(len(head))}

    def embedding(self, body: bytes) -> npt.NDArray[np.float32]:
        """The bytes after the JSON head, which says how many they are."""
        head, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        size = head["outputs"][0]["parameters"]["binary_data_size"]
        if len(body) != end + size:
            raise ValueError(f"{len(body) - end} bytes of embedding instead of {size}")
        return super().embedding(body[end:])
