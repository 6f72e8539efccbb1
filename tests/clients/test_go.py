"""The client in Go."""

import pytest
from contract import CLIENTS, Contract, Program

pytestmark = pytest.mark.clients


class TestGo(Contract):
    @pytest.fixture
    def program(self) -> Program:
        # grpc-go retries by itself only when told so, before 1.40.
        return Program([str(CLIENTS / "go" / "build" / "narrows-go")], {"GRPC_GO_RETRY": "on"})
