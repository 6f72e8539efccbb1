"""A small hub over HTTP, spoken to by huggingface_hub itself."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "5e1f" * 10
NOT_NEEDED = ("README.md", "flax_model.msgpack", "onnx/model.onnx", "pytorch_model.bin", "tf_model.h5")


@dataclass
class Repository:
    """A model repository with one commit, which the branch `main` points to."""

    files: dict[str, bytes]
    card: dict[str, Any] | None = None

    @classmethod
    def of(cls, directory: Path, card: dict[str, Any] | None = None) -> "Repository":
        """The files of a checkpoint, and beside them what else published repositories hold."""
        files = {file.name: file.read_bytes() for file in directory.iterdir()}
        return cls(files | dict.fromkeys(NOT_NEEDED, b"not needed"), card)


@dataclass
class Hub:
    """What a test sees of the hub."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)  # "repository/file", in the order asked for
    endpoint: str = ""

    def downloaded(self, repository: str) -> set[str]:
        return {name.removeprefix(f"{repository}/") for name in self.downloads if name.startswith(f"{repository}/")}


class HubHandler(BaseHTTPRequestHandler):
    """The part of the hub's HTTP API that reading a model repository takes."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        path = self.path.strip("/").split("?")[0]
        name = "/".join(path.removeprefix("api/models/").split("/")[:2])
        repository = self.hub.repositories.get(name)
        if repository is None:
            self.refuse("RepoNotFound", "Repository not found")
        elif path.startswith("api/models/"):
            self.describe(name, repository, path.removeprefix(f"api/models/{name}").removeprefix("/revision/"))
        else:
            revision, _, file = path.removeprefix(f"{name}/resolve/").partition("/")
            assert revision == COMMIT, "files must be asked for by commit, not by branch"
            self.send_file(name, file, repository.files[file], with_body)

    def describe(self, name: str, repository: Repository, revision: str) -> None:
        if revision not in ("", "main", COMMIT):
            self.refuse("RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [{"rfilename": file} for file in sorted(repository.files)]
        info = {"_id": "0", "id": name, "sha": COMMIT, "siblings": siblings, "cardData": repository.card}
        self.reply(HTTPStatus.OK, json.dumps(info).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str, file: str, content: bytes, with_body: bool) -> None:
        if with_body:
            self.hub.downloads.append(f"{name}/{file}")
        etag = hashlib.sha256(content).hexdigest()
        self.reply(HTTPStatus.OK, content, {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}, with_body)

    def refuse(self, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Request-Id": "request-1"}
        self.reply(HTTPStatus.NOT_FOUND, b"", headers)

    def reply(self, status: HTTPStatus, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keeps the test's output clean."""


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serves a hub on a free port."""
    hub = Hub()
    handler = type("Handler", (HubHandler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield hub
        server.shutdown()
        thread.join()


def hub_environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process that asks this hub alone, and keeps what it downloads in `home`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    return environment | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
