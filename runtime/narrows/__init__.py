"""Narrows: dense passage retrieval, served.

Importing this package needs only grpcio, protobuf and numpy; everything a server needs is imported by the
modules that use it.
"""

from narrows.async_client import AsyncClient
from narrows.client import Client
from narrows.errors import (
    DeadlineExceededError,
    EngineDownError,
    InvalidRequestError,
    MismatchError,
    NarrowsError,
    NoReaderError,
    NotFoundError,
    OverloadedError,
    PoisonousError,
    ReplyTooLargeError,
    ServerError,
    UnavailableError,
)
from narrows.messages import Encoding, Hit, SearchResult, Served, ServerInfo
from narrows.reading_messages import Answers, Span

__version__ = "0.1.0"

__all__ = [
    "Client",
    "AsyncClient",
    "Hit",
    "SearchResult",
    "Encoding",
    "Answers",
    "Span",
    "Served",
    "ServerInfo",
    "NarrowsError",
    "InvalidRequestError",
    "ReplyTooLargeError",
    "MismatchError",
    "NotFoundError",
    "NoReaderError",
    "OverloadedError",
    "DeadlineExceededError",
    "UnavailableError",
    "EngineDownError",
    "ServerError",
    "PoisonousError",
]
