"""`narrows quickstart` against a local hub that holds small pairs under the published names."""

import io
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from checkpoints import write_matching_pair
from local_hub import Hub, Repository, hub_environment, running_hub
from server_process import NARROWS

from narrows import Client
from narrows.bundle import Bundle, TextPreset, open_bundle
from narrows.errors import StepError
from narrows.index.store import read_manifest
from narrows_export import corpus, demo
from narrows_export.pairs import PAIRS
from narrows_export.steps import BundleStep, Teller, have_index
from narrows_tools.cli import quickstart as command
from narrows_tools.cli.arguments import TEXT_PRESETS

TIMEOUT_S = 240
DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with both towers of every pair that is not from PyPI; no weights of theirs, but their names and terms."""
    small = write_matching_pair(tmp_path_factory.mktemp("matching"))
    with running_hub() as served:
        for pair in PAIRS.values():
            if pair.is_restricted:
                card = {"license": pair.license or None, "language": pair.language}
                served.repositories[pair.question_encoder] = Repository.of(small.question, card)
                served.repositories[pair.context_encoder] = Repository.of(small.context, card)
        yield served


@pytest.fixture(autouse=True)
def _forget_downloads(hub: Hub) -> None:
    hub.downloads.clear()


def quickstart(
    endpoint: str, home: Path, *arguments: str, answer: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs the command in `home`; with an answer on a terminal, else with nothing on its standard input."""
    ours, theirs = pty.openpty() if answer is not None else (None, subprocess.DEVNULL)
    try:
        if ours is not None:
            os.write(ours, f"{answer}\n".encode())
        return subprocess.run(
            [*NARROWS, "quickstart", *arguments],
            env=hub_environment(endpoint, home / "hf"),
            cwd=home,
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    finally:
        if ours is not None:
            os.close(ours)
            os.close(theirs)


def test_from_nothing_to_answers(hub: Hub, tmp_path: Path) -> None:
    """Asked on a terminal; the second run asks nothing, makes nothing, and serves."""
    flags = ("--pair", "single-nq", "--work", "w")
    first = quickstart(hub.endpoint, tmp_path, *flags, "--no-serve", "--json", answer="y")
    assert first.returncode == 0, first.stderr
    summary = json.loads(first.stdout)
    assert summary == {
        "pair": "single-nq",
        "license": "cc-by-nc-4.0",
        "bundle": "w/single-nq.hf.bundle",
        "index": "w/single-nq.hf.index",
        "text_preset": "hf",
        "bundle_reused": False,
        "index_reused": False,
        "serve": [
            *("narrows", "serve", "--bundle", "w/single-nq.hf.bundle", "--index", "w/single-nq.hf.index"),
            *("--listen", "127.0.0.1:50051"),
        ],
    }
    told = " ".join(first.stderr.split())
    pair = PAIRS["single-nq"]
    for expected in (
        pair.question_encoder,
        pair.context_encoder,
        pair.terms,
        *pair.limitations,
        "[y/N]",
        "eval presets",
    ):
        assert expected in told
    bundle = open_bundle(tmp_path / "w" / "single-nq.hf.bundle")
    source = bundle.tower("context_encoder").source
    assert (source.name, source.license) == ("facebook/dpr-ctx_encoder-single-nq-base", "cc-by-nc-4.0")
    assert read_manifest(tmp_path / "w" / "single-nq.hf.index")[1].count == 300

    hub.downloads.clear()
    process = subprocess.Popen(
        [*NARROWS, "quickstart", *flags, "--listen", "127.0.0.1:0"],
        env=hub_environment(hub.endpoint, tmp_path / "hf"),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            lines = []
            for line in process.stdout:
                lines.append(line)
                if line.startswith("narrows: serving on "):
                    break
            assert lines[-1].startswith("narrows: serving on "), lines
            with Client(lines[-1].split()[-1], timeout_s=30.0) as client:
                question = corpus.questions("en")[0]
                assert len(client.search([question.question], k=3)[0].hits) == 3
                assert client.server_info().license == "cc-by-nc-4.0"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    text = "".join(lines)
    assert "Using the bundle exported before: w/single-nq.hf.bundle" in text
    assert "using the index built before: w/single-nq.hf.index" in text
    assert "[y/N]" not in text
    assert hub.downloads == []


@pytest.mark.slow
def test_the_spanish_pair_with_another_preset(hub: Hub, tmp_path: Path) -> None:
    flags = ("--pair", "es-allqa", "--yes", "--no-serve", "--text-preset", "haystack")
    done = quickstart(hub.endpoint, tmp_path, *flags)
    assert done.returncode == 0, done.stderr
    told = " ".join(done.stdout.split())
    assert "card states none" in told
    assert "text preset `haystack`" in told
    work = tmp_path / "narrows-quickstart"
    tower = open_bundle(work / "es-allqa.haystack.bundle").tower("question_encoder")
    assert (tower.source.name, tower.source.license) == ("IIC/dpr-spanish-question_encoder-allqa-base", "")
    assert tower.tokenizer.text_preset == "haystack"
    assert read_manifest(work / "es-allqa.haystack.index")[1].source == "passages.es.jsonl"
    assert corpus.questions("es")[0].question in done.stdout


@pytest.mark.slow
def test_without_a_hub(tmp_path: Path) -> None:
    done = quickstart("http://127.0.0.1:9", tmp_path, "--pair", "minilm", "--no-serve")
    assert done.returncode == 0, done.stderr
    assert "[y/N]" not in done.stdout
    assert read_manifest(tmp_path / "narrows-quickstart" / "minilm.hf.index")[1].count == 300


@pytest.mark.parametrize("answer", ["n", "", "maybe"])
def test_not_accepted(hub: Hub, tmp_path: Path, answer: str) -> None:
    done = quickstart(hub.endpoint, tmp_path, "--pair", "multiset", "--no-serve", answer=answer)
    assert done.returncode == 1
    assert done.stderr == "narrows: not accepted: nothing was downloaded\n"
    assert "CuratedTREC" in done.stdout
    assert hub.downloads == []
    assert list(tmp_path.iterdir()) == []


def test_no_terminal_to_ask_on(hub: Hub, tmp_path: Path) -> None:
    done = quickstart(hub.endpoint, tmp_path, "--pair", "single-nq")
    assert done.returncode == 1
    assert "--yes says that you do. Nothing was downloaded" in done.stderr
    assert hub.downloads == []


def test_a_bad_address_is_known_before_anything_is_done(hub: Hub, tmp_path: Path) -> None:
    done = quickstart(hub.endpoint, tmp_path, "--pair", "single-nq", "--yes", "--listen", "here")
    assert done.returncode == 1
    assert done.stderr == "narrows: --listen must be HOST:PORT, such as 127.0.0.1:50051, not 'here'\n"
    assert hub.downloads == []


def test_an_unreachable_hub(tmp_path: Path) -> None:
    with socket.socket() as reserved:  # bound but not listening: connections are refused
        reserved.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        done = quickstart(endpoint, tmp_path, "--pair", "single-nq", "--yes", "--no-serve")
    assert done.returncode == 1
    assert "the hub did not deliver it (it cannot be reached)" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("narrows: `narrows export` failed; its message is above. If the hub cannot be reached")
    assert "`narrows quickstart --pair minilm`" in last
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in (tmp_path / "narrows-quickstart").iterdir()] == []


def test_what_is_in_the_way_stays(tmp_path: Path, small_bundle: Bundle) -> None:
    out = io.StringIO()
    step = BundleStep(tmp_path / "x.bundle", "a/question", "a/context")
    assert step.find(Teller(out)) is None
    assert out.getvalue() == ""

    (tmp_path / "x.bundle").mkdir()
    (tmp_path / "x.bundle" / "precious.txt").write_text("mine")
    with pytest.raises(StepError, match=r"x\.bundle is in the way: it is no bundle"):
        step.find(Teller(out))
    shutil.rmtree(tmp_path / "x.bundle")

    shutil.copytree(small_bundle.path, tmp_path / "x.bundle")
    with pytest.raises(StepError, match=r"x\.bundle holds .*: move it"):
        step.find(Teller(out))
    (tmp_path / "x.bundle" / "context_encoder" / "model.fp32.onnx").write_bytes(b"damaged")
    assert step.find(Teller(out)) is None
    assert "does not match the manifest's hash" in out.getvalue()
    assert "it will be exported again" in out.getvalue()


def test_an_index_that_is_not_whole_is_built_again(tmp_path: Path, small_bundle: Bundle) -> None:
    passages, out = corpus.passages_file("es"), tmp_path / "x.index"
    with (tmp_path / "out.txt").open("w+") as told:
        teller = Teller(told)
        (out / ".build").mkdir(parents=True)  # a build was stopped there
        (out / ".build" / "journal.json").write_text("{}")
        assert not have_index(teller, small_bundle, passages, out)
        assert have_index(teller, small_bundle, passages, out)
        (out / "g000001" / "index.faiss").write_bytes(b"damaged")
        assert not have_index(teller, small_bundle, passages, out)
        assert have_index(teller, small_bundle, passages, out)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "precious.txt").write_text("mine")
        with pytest.raises(StepError, match="`narrows index` failed"):
            have_index(teller, small_bundle, passages, tmp_path / "mine")
        assert (tmp_path / "mine" / "precious.txt").read_text() == "mine"
        told.seek(0)
        assert "index.faiss does not match the manifest" in told.read()


@pytest.mark.parametrize(
    ("stopped_by", "status", "said"),
    [(StepError("no"), 1, "no"), (OSError(28, "disk full", "x"), 1, "x"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_the_demo_says_why_it_stopped(
    stopped_by: BaseException,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(work: Path, listen: str | None) -> int:
        raise stopped_by

    monkeypatch.setattr(demo, "run", stop)
    monkeypatch.setattr("sys.argv", ["demo"])
    assert demo.main() == status
    assert said in capsys.readouterr().err


def test_command_line_and_document_know_the_same_pairs() -> None:
    assert tuple(PAIRS) == command.PAIRS
    assert get_args(TextPreset) == TEXT_PRESETS
    text = DOCUMENT.read_text("utf-8")
    for pair in PAIRS.values():
        assert f"`{pair.question_encoder}`" in text
        assert f"`{pair.context_encoder}`" in text
        assert re.search(rf"--pair {pair.name}\b", text)
