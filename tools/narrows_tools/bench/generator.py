"""The load generator: a process of its own, with one open target, that runs loads."""

import asyncio
import selectors
from multiprocessing.connection import Connection

from narrows_tools.bench.load import Load, LoadReport
from narrows_tools.bench.pinned import Cores
from narrows_tools.bench.targets import TargetSpec
from narrows_tools.bench.workers import Worker

Generator = Worker[Load, LoadReport]


def generator(target: TargetSpec, cores: Cores) -> Generator:
    """Starts a load generator on these cores, its target open; `ask` runs a load.

    Raises:
        BenchmarkError: the target cannot be made, or does not answer.
    """
    return Worker(_serve, target, cores)


def _serve(connection: Connection, spec: TargetSpec) -> None:
    # select() takes its timeout in microseconds; epoll, the default, in whole milliseconds, rounded up: each request
    # would be sent up to 1 ms late.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        runner.run(_loads(connection, spec))


async def _loads(connection: Connection, spec: TargetSpec) -> None:
    target = spec.make()
    await target.open()
    connection.send((True, None))
    try:
        while (load := connection.recv()) is not None:
            connection.send((True, await load.run(target)))
    finally:
        await target.close()
