"""Processes that measure, spawned on given cores: each keeps something open and answers one order after another."""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from narrows.errors import BenchmarkError, NarrowsError
from narrows_tools.bench.pinned import Cores, on_cores

Order = TypeVar("Order")
Answer = TypeVar("Answer")
STOP_S = 10.0


class Worker(Generic[Order, Answer]):
    """A process that runs `serve(connection, argument)` on these cores.

    `serve` sends None once it is ready, then an answer for each order that it receives, until None comes; what it
    raises reaches the caller as a BenchmarkError. Both must be importable: the process is spawned, not forked.
    """

    def __init__(self, serve: Callable[[Connection, Any], None], argument: object, cores: Cores) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(serve, theirs, argument), daemon=True)
        with on_cores(cores):
            self._process.start()
        theirs.close()
        try:
            self._received()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    def ask(self, order: Order) -> Answer:
        """Has one order done.

        Raises:
            BenchmarkError: it failed, or the process is gone.
        """
        with contextlib.suppress(BrokenPipeError):  # it is gone, as _received will find and say
            self._connection.send(order)
        answer: Answer = self._received()
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):  # it is gone already
            self._connection.send(None)
        self._process.join(STOP_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _received(self) -> Any:  # noqa: ANN401
        try:
            done, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(STOP_S)
            raise BenchmarkError(
                f"a measuring process ended by itself, with status {self._process.exitcode} (-9: killed, perhaps as "
                "memory ran out); if it said why, that is above"
            ) from None
        if not done:
            raise BenchmarkError(value)
        return value


def _run(serve: Callable[[Connection, Any], None], connection: Connection, argument: object) -> None:
    try:
        serve(connection, argument)
    except NarrowsError as error:
        connection.send((False, str(error)))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        pass  # the parent was interrupted, too, or is gone
    except Exception:
        connection.send((False, f"a measuring process failed:\n{traceback.format_exc()}"))
