"""The wire between the supervisor and each of its child processes: setup, sockets, readiness, the order to stop.

One SOCK_SEQPACKET pair a child, so each message arrives whole, with the sockets that come along with it. A child whose
supervisor is gone reads the end of it and exits: no orphans, whatever killed the parent.
"""

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from narrows import errors
from narrows.errors import NarrowsError
from narrows.process import log_to_stderr
from narrows.settings import ServerSettings
from narrows.work import Served

MAX_MESSAGE_BYTES = 200_000
MAX_DESCRIPTORS = 4
PR_SET_PDEATHSIG = 1


class Setup(msgspec.Struct, tag="setup"):
    """The first message to a child.

    `supervisor` is the parent's process id. `listen` is for a front: the address, with the port that is kept for it.
    The rest is for the engine, whose journal comes along: digests of works to run alone, and of those to refuse, with
    the time until when (narrows.quarantine).
    """

    settings: ServerSettings
    supervisor: int
    listen: str = ""
    suspects: list[int] = []
    refused: dict[int, float] = {}


class Attach(msgspec.Struct, tag="attach"):
    """To both ends of a new connection, which comes along as a socket.

    `served` is what the engine computes with; another one would be there `restart_ms` after its death.
    """

    served: Served
    restart_ms: int


class Drain(msgspec.Struct, tag="drain"):
    """To a child: finish what has begun, and exit."""


class Ready(msgspec.Struct, tag="ready"):
    """From the engine: loaded and warm."""

    served: Served


class Cleared(msgspec.Struct, tag="cleared"):
    """From the engine: a suspect has run alone, and nothing happened."""

    digest: int


class Listening(msgspec.Struct, tag="listening"):
    """From a front: calls are answered."""


class Lost(msgspec.Struct, tag="lost"):
    """From a front: its connection to the engine has ended."""


class Failed(msgspec.Struct, tag="failed"):
    """From a child that ends because of an error that was to be expected; `kind` is the error's type."""

    kind: str
    message: str


Message = Setup | Attach | Drain | Ready | Cleared | Listening | Lost | Failed


@dataclass(frozen=True, slots=True)
class Control:
    """One end of a child's wire."""

    wire: socket.socket

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> None:
        """Sends a message and, along with it, duplicates of descriptors.

        Raises:
            OSError: the other end is gone.
        """
        data = msgspec.json.encode(message, enc_hook=_plain)
        socket.send_fds(self.wire, [data], list(descriptors), socket.MSG_NOSIGNAL)

    def tell(self, message: Message) -> None:
        """Sends, unless the other end is gone, which is noticed elsewhere."""
        with suppress(ConnectionError):
            self.send(message)

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors, which are the caller's now; None when the other end is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self.wire, MAX_MESSAGE_BYTES, MAX_DESCRIPTORS)
        except ConnectionError:
            return None
        if not data:
            return None
        return msgspec.json.decode(data, type=Message, dec_hook=_typed), descriptors


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of a new wire."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def begin_child() -> tuple[Control, Setup, list[int]]:
    """What a child process does first: takes up the wire that its command line names, and reads its setup.

    Signals to stop are for the supervisor, who tells the child in its turn, though an init system may send them to all
    of its processes.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with suppress(AttributeError, OSError):  # other systems; there the wire's end has to do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    control = Control(socket.socket(fileno=int(sys.argv[1])))
    received = control.receive()
    if received is None or not isinstance(received[0], Setup) or os.getppid() != received[0].supervisor:
        os._exit(1)  # the supervisor is gone already
    log_to_stderr(received[0].settings.log_level)
    return control, received[0], received[1]


def error_of(failed: Failed) -> NarrowsError:
    """What a child failed with."""
    made: NarrowsError = getattr(errors, failed.kind, NarrowsError)(failed.message)
    return made


def _plain(value: Any) -> Any:  # noqa: ANN401  (whatever msgspec does not know)
    return str(value)


def _typed(kind: type, value: Any) -> Any:  # noqa: ANN401
    return kind(value) if kind in (Path,) else value
