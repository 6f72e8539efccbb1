"""The one table from Narrows' errors to gRPC: status code and reason, for calls and for the requests of a stream."""

import logging
import random
from dataclasses import dataclass

import grpc

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
from narrows.v1 import retrieval_pb2 as pb

log = logging.getLogger(__name__)

SPREAD = (1.0, 1.5)  # of the time when to come back, over what was predicted
MAX_MESSAGE_BYTES = 2000  # clients refuse metadata over 8 KiB, and gRPC sends up to 3 bytes for one of these
REASON, FIELD, PUSHBACK = "narrows-reason", "narrows-field", "grpc-retry-pushback-ms"

CODES: dict[type[NarrowsError], tuple[grpc.StatusCode, str]] = {
    InvalidRequestError: (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ReplyTooLargeError: (grpc.StatusCode.INVALID_ARGUMENT, "REPLY_TOO_LARGE"),
    NotFoundError: (grpc.StatusCode.NOT_FOUND, "UNKNOWN_CORPUS"),
    NoReaderError: (grpc.StatusCode.UNIMPLEMENTED, "NO_READER"),
    MismatchError: (grpc.StatusCode.FAILED_PRECONDITION, "OTHER_BUNDLE"),
    OverloadedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"),
    DeadlineExceededError: (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
    UnavailableError: (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
    EngineDownError: (grpc.StatusCode.UNAVAILABLE, "ENGINE_DOWN"),
    ServerError: (grpc.StatusCode.INTERNAL, "INTERNAL"),
    PoisonousError: (grpc.StatusCode.INTERNAL, "POISONOUS"),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What a caller is told about an error: as the status of a call, or as the error of one request of a stream."""

    code: grpc.StatusCode
    reason: str
    message: str
    field: str = ""
    retry_after_ms: int | None = None

    def trailers(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata beside the status."""
        found = [(REASON, self.reason)]
        if self.field:
            found.append((FIELD, self.field))
        if self.retry_after_ms is not None:
            found.append((PUSHBACK, str(self.retry_after_ms)))
        return tuple(found)

    def item_error(self) -> pb.ItemError:
        """The same as a message."""
        return pb.ItemError(
            code=self.code.value[0],
            reason=self.reason,
            message=self.message,
            field=self.field,
            retry_after_ms=self.retry_after_ms or 0,
        )


def failure_of(error: Exception) -> Failure:
    """Looks an error up in the table. An unexpected one is INTERNAL; its details stay in the log."""
    if not isinstance(error, NarrowsError) or type(error) not in CODES:
        log.exception("a call failed unexpectedly", exc_info=error)
        return failure_of(ServerError("internal error; the server's log says more"))
    code, reason = CODES[type(error)]
    retry_after_ms = None
    if isinstance(error, (OverloadedError, EngineDownError)):
        # Not the same for all who hear at one moment, or they would come back at one moment too.
        retry_after_ms = round(error.retry_after_ms * random.uniform(*SPREAD))  # noqa: S311
    return Failure(
        code,
        reason,
        str(error).encode(errors="replace")[:MAX_MESSAGE_BYTES].decode(errors="ignore"),
        error.field if isinstance(error, InvalidRequestError) else "",
        retry_after_ms,
    )
