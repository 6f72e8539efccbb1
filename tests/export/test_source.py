"""Checkpoints from directories and from a hub: a real one, served here, spoken to by huggingface_hub itself."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import Pair
from local_hub import COMMIT, NOT_NEEDED, Hub, Repository, hub_environment, running_hub

from narrows import durable
from narrows.bundle import open_bundle
from narrows.errors import CheckpointError
from narrows_export.source import resolve

RESOLVE = """
import json, sys
from narrows.errors import CheckpointError
from narrows_export.source import resolve
try:
    files = resolve(sys.argv[1], sys.argv[2] or None)
except CheckpointError as error:
    print(json.dumps({"error": str(error)}))
else:
    found = {name: getattr(files, name) for name in ("name", "revision", "kind", "license", "language")}
    print(json.dumps({**found, "weights": str(files.weights), "directory": str(files.directory)}))
"""
COMMAND_LINE = "import sys; from narrows_tools.cli.main import main; raise SystemExit(main(sys.argv[1:]))"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as served:
        yield served


def run_python(code: str, *arguments: str, endpoint: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    environment = hub_environment(endpoint, home)
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=home, capture_output=True, text=True, timeout=240
    )


def resolve_from(endpoint: str, home: Path, repository: str, revision: str = "") -> dict[str, str]:
    done = run_python(RESOLVE, repository, revision, endpoint=endpoint, home=home)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


# From a hub


@pytest.mark.parametrize("revision", ["", "main", COMMIT])
def test_only_the_needed_files_are_downloaded(hub: Hub, small_pair: Pair, tmp_path: Path, revision: str):
    card = {"license": "cc-by-nc-4.0", "language": "en"}
    hub.repositories["lab/question-tower"] = Repository.of(small_pair.question, card)

    found = resolve_from(hub.endpoint, tmp_path, "lab/question-tower", revision)

    needed = {"config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}
    assert hub.downloaded("lab/question-tower") == needed
    assert len(hub.downloads) == len(needed), "each file once"
    directory = Path(found.pop("directory"))
    assert found == {
        "name": "lab/question-tower",
        "revision": COMMIT,
        "kind": "dpr",
        "license": "cc-by-nc-4.0",
        "language": "en",
        "weights": str(directory / "model.safetensors"),
    }
    for name in needed:
        assert (directory / name).read_bytes() == (small_pair.question / name).read_bytes()


def test_what_is_in_the_cache_is_not_downloaded_again(hub: Hub, small_pair: Pair, tmp_path: Path):
    hub.repositories["lab/question-tower"] = Repository.of(small_pair.question)
    first = resolve_from(hub.endpoint, tmp_path, "lab/question-tower")
    hub.downloads.clear()
    assert resolve_from(hub.endpoint, tmp_path, "lab/question-tower") == first
    assert hub.downloads == []


def test_bin_weights_are_downloaded_where_there_are_no_others(hub: Hub, small_pair: Pair, tmp_path: Path):
    repository = Repository.of(small_pair.question)
    del repository.files["model.safetensors"]
    hub.repositories["lab/old"] = repository
    found = resolve_from(hub.endpoint, tmp_path, "lab/old")
    assert Path(found["weights"]).name == "pytorch_model.bin"
    assert hub.downloaded("lab/old") == {"config.json", "pytorch_model.bin", "tokenizer_config.json", "vocab.txt"}


def test_a_sentence_transformers_repository_brings_its_modules(hub: Hub, small_pair: Pair, tmp_path: Path):
    repository = Repository.of(small_pair.question, {"language": ["en", "es"]})
    repository.files |= {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "sentence_bert_config.json": b"{}"}
    hub.repositories["lab/sentences"] = repository
    found = resolve_from(hub.endpoint, tmp_path, "lab/sentences")
    assert (found["kind"], found["license"], found["language"]) == ("sentence-transformers", "", "en,es")
    assert hub.downloaded("lab/sentences").isdisjoint(NOT_NEEDED)
    assert (Path(found["directory"]) / "1_Pooling" / "config.json").read_bytes() == b"{}"


def test_a_repository_without_weights_is_refused(hub: Hub, small_pair: Pair, tmp_path: Path):
    repository = Repository.of(small_pair.question)
    del repository.files["model.safetensors"], repository.files["pytorch_model.bin"]
    hub.repositories["lab/tensorflow"] = repository
    error = resolve_from(hub.endpoint, tmp_path, "lab/tensorflow")["error"]
    assert error == ("hub repository lab/tensorflow holds no weights: expected model.safetensors or pytorch_model.bin")
    assert hub.downloads == []


def test_a_repository_without_config_is_refused(hub: Hub, small_pair: Pair, tmp_path: Path):
    repository = Repository.of(small_pair.question)
    del repository.files["config.json"]
    hub.repositories["lab/bare"] = repository
    error = resolve_from(hub.endpoint, tmp_path, "lab/bare")["error"]
    assert error == "lab/bare has no config.json, so it is not a Hugging Face checkpoint"


def test_an_unknown_repository_is_refused(hub: Hub, tmp_path: Path):
    error = resolve_from(hub.endpoint, tmp_path, "lab/misspelt")["error"]
    assert error.startswith("lab/misspelt is not a directory here, and the hub did not deliver it (404 Client Error")
    assert f"Repository Not Found for url: {hub.endpoint}/api/models/lab/misspelt" in error
    assert "Check the spelling" in error
    assert "\n" not in error


def test_an_unknown_revision_is_refused(hub: Hub, small_pair: Pair, tmp_path: Path):
    hub.repositories["lab/question-tower"] = Repository.of(small_pair.question)
    error = resolve_from(hub.endpoint, tmp_path, "lab/question-tower", "v9")["error"]
    assert "Revision Not Found for url" in error
    assert hub.downloads == []


def test_an_unreachable_hub_is_named(tmp_path: Path):
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        error = resolve_from(endpoint, tmp_path, "lab/question-tower")["error"]
    assert error == (
        "lab/question-tower is not a directory here, and the hub did not deliver it (it cannot be reached). "
        "Check the spelling and the connection, or download the files and give their directory"
    )


def test_export_from_a_hub(hub: Hub, small_pair: Pair, tmp_path: Path):
    """The whole program: `narrows export` with hub ids."""
    hub.repositories = {
        "lab/question-tower": Repository.of(small_pair.question, {"license": "apache-2.0", "language": "en"}),
        "lab/context-tower": Repository.of(small_pair.context, {"license": "mit", "language": ["en", "es"]}),
    }
    out = tmp_path / "hub.bundle"
    arguments = ["--question-encoder", "lab/question-tower", "--context-encoder", "lab/context-tower"]
    arguments += ["--out", str(out), "--revision", "main", "--allow-unpaired", "--json"]
    done = run_python(COMMAND_LINE, "export", *arguments, endpoint=hub.endpoint, home=tmp_path)
    assert done.returncode == 0, done.stderr

    manifest = open_bundle(out).manifest
    for role, name, license_, language, directory in (
        ("question_encoder", "lab/question-tower", "apache-2.0", "en", small_pair.question),
        ("context_encoder", "lab/context-tower", "mit", "en,es", small_pair.context),
    ):
        source = manifest.towers[role].source
        assert (source.name, source.revision, source.kind) == (name, COMMIT, "dpr")
        assert (source.license, source.language) == (license_, language)
        assert source.weights_file == "model.safetensors"
        assert source.weights_sha256 == durable.sha256_file(directory / "model.safetensors")
        assert hub.downloaded(name).isdisjoint(NOT_NEEDED)
    report = json.loads(done.stdout)
    assert [tower["source"] for tower in report["towers"]] == ["lab/question-tower", "lab/context-tower"]
    assert manifest.name == "hub"
    assert "NOT A PAIR" in done.stderr


# From a directory


def test_a_directory_is_read_in_place(small_pair: Pair):
    files = resolve(str(small_pair.question))
    assert files.directory == small_pair.question
    assert files.name == "/".join(small_pair.question.parts[-2:])
    assert (files.revision, files.license, files.language, files.kind) == ("", "", "", "dpr")


def test_a_directory_comes_before_a_hub_id_of_the_same_name(
    small_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(small_pair.question, tmp_path / "lab" / "question-tower")
    monkeypatch.chdir(tmp_path)
    files = resolve("lab/question-tower")
    assert files.name == "lab/question-tower"
    assert files.weights.read_bytes() == (small_pair.question / "model.safetensors").read_bytes()


def test_a_revision_of_a_directory_is_refused(small_pair: Pair):
    with pytest.raises(CheckpointError, match=r"--revision main was given, but .* is a local directory, not a hub id"):
        resolve(str(small_pair.question), "main")


def test_a_file_is_refused(small_pair: Pair):
    with pytest.raises(CheckpointError, match=r"is a file; give the checkpoint's directory or a hub id"):
        resolve(str(small_pair.question / "model.safetensors"))


@pytest.mark.parametrize("source", ["./no-such-directory", "/no/such/directory", "a/b/c", "lab/..", "two words"])
def test_what_is_neither_directory_nor_id_is_refused(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"is neither a directory here nor a hub id such as facebook/dpr-"):
        resolve(source)
