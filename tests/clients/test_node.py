"""The client in TypeScript, on Node."""

import pytest
from contract import CLIENTS, Contract, Program

pytestmark = pytest.mark.clients


class TestNode(Contract):
    @pytest.fixture
    def program(self) -> Program:
        return Program(["node", str(CLIENTS / "node" / "dist" / "src" / "main.js")])
