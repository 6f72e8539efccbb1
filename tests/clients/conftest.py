"""One server for the clients' tests, and the Python client whose answers theirs must equal."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import ServerProcess, server

from narrows import Client
from narrows.bundle import Bundle

pytest.register_assert_rewrite("contract")


@pytest.fixture(scope="session")
def running(small_bundle: Bundle, small_index: Path) -> Iterator[ServerProcess]:
    """A server over the small bundle and the English demo passages."""
    with server(small_bundle.path, small_index) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="session")
def python(running: ServerProcess) -> Iterator[Client]:
    """The Python client of the same server."""
    with Client(running.address, timeout_s=30.0) as made:
        yield made
