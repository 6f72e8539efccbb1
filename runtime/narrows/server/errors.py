"""The one table from Narrows' errors to gRPC: status code and reason."""

import logging

import grpc

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

log = logging.getLogger(__name__)

MAX_MESSAGE_CHARS = 1000  # gRPC refuses to send metadata over 8 KiB
REASON, FIELD, PUSHBACK = "narrows-reason", "narrows-field", "grpc-retry-pushback-ms"

CODES: dict[type[NarrowsError], tuple[grpc.StatusCode, str]] = {
    InvalidRequestError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ReplyTooLargeError: (grpc.StatusCode.INVALID_ARGUMENT, "REPLY_TOO_LARGE"),
    NotFoundError: (grpc.StatusCode.NOT_FOUND, "UNKNOWN_CORPUS"),
    MismatchError: (grpc.StatusCode.FAILED_PRECONDITION, "OTHER_BUNDLE"),
    OverloadedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    DeadlineExceededError: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    UnavailableError: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    ServerError: (grpc.StatusCode.INTERNAL, "INTERNAL"),
}


def status_of(error: Exception) -> tuple[grpc.StatusCode, str, tuple[tuple[str, str], ...]]:
    """Returns code, message and trailing metadata. An unexpected error is INTERNAL; its details stay in the log."""
    if not isinstance(error, NarrowsError) or type(error) not in CODES:
        log.exception("a call failed unexpectedly", exc_info=error)
        return status_of(ServerError("internal error; the server's log says more"))
    code, reason = CODES[type(error)]
    trailers = [(REASON, reason)]
    if isinstance(error, InvalidRequestError) and error.field:
        trailers.append((FIELD, error.field))
    if isinstance(error, OverloadedError):
        trailers.append((PUSHBACK, str(error.retry_after_ms)))
    return code, str(error)[:MAX_MESSAGE_CHARS], tuple(trailers)
