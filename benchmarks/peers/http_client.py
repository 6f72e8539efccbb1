"""A small HTTP/1.1 client with kept-alive connections, so that the peers' clients cost as little as Narrows' own."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

MAX_CONNECTIONS = 256


class HttpError(Exception):
    """The server broke off, or answered what is no HTTP reply with a length."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A reply's status and body."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class HttpClient:
    """POSTs to one server. A request takes the connection that was used last, or a new one; then it waits."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[_Connection] = []
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> HttpReply:
        """Sends one request. Cancelled, it drops its connection.

        Raises:
            OSError: nobody listens, or the connection broke.
            HttpError: the answer makes no sense.
        """
        lines = [f"POST {path} HTTP/1.1", f"Host: {self._host}:{self._port}", f"Content-Length: {len(body)}"]
        head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        async with self._free:
            connection = await self._connection()
            try:
                connection.writer.write(head.encode() + body)
                reply, keep = await _read(connection.reader)
            except BaseException:
                connection.writer.close()
                raise
            if keep:
                self._idle.append(connection)
            else:
                connection.writer.close()
        return reply

    async def close(self) -> None:
        """Ends the idle connections."""
        while self._idle:
            writer = self._idle.pop().writer
            writer.close()

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof():
                return connection
            connection.writer.close()
        return _Connection(*await asyncio.open_connection(self._host, self._port))


async def _read(reader: asyncio.StreamReader) -> tuple[HttpReply, bool]:
    """One reply, and whether the connection stays open."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head[:-4].lower().split(b"\r\n")
        headers = dict(line.split(b":", 1) for line in lines)
        status = int(first.split(b" ", 2)[1])
        body = await reader.readexactly(int(headers[b"content-length"]))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError, IndexError, KeyError) as error:
        raise HttpError(f"no HTTP reply with a length: {error!r}") from None
    return HttpReply(status, body), headers.get(b"connection", b"").strip() != b"close"
