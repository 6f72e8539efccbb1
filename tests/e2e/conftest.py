"""One server for the tests that do not harm it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess, server

from narrows import Client
from narrows.bundle import Bundle


@pytest.fixture(scope="session", params=["0", "2"], ids=["one-process", "two-fronts"])
def frontends(request: pytest.FixtureRequest) -> str:
    """How many front processes a server has."""
    return str(request.param)


@pytest.fixture(scope="session")
def running(small_bundle: Bundle, small_index: Path, frontends: str) -> Iterator[ServerProcess]:
    """A server over the small bundle and the English demo passages."""
    with server(small_bundle.path, small_index, frontends=frontends) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="session")
def client(running: ServerProcess) -> Iterator[Client]:
    """A client of it."""
    with Client(running.address, timeout_s=30.0) as made:
        yield made
