"""Narrows: dense passage retrieval, served.

Importing this package needs only grpcio, protobuf and numpy; everything a server needs is imported by the
modules that use it.
"""

from narrows.client import Client, Encoding, Hit, SearchResult, ServerInfo
from narrows.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    MismatchError,
    NarrowsError,
    NotFoundError,
    OverloadedError,
    ReplyTooLargeError,
    ServerError,
    UnavailableError,
)

__version__ = "0.1.0"

__all__ = [
    "Client",
    "Hit",
    "SearchResult",
    "Encoding",
    "ServerInfo",
    "NarrowsError",
    "InvalidRequestError",
    "ReplyTooLargeError",
    "MismatchError",
    "NotFoundError",
    "OverloadedError",
    "DeadlineExceededError",
    "UnavailableError",
    "ServerError",
]
