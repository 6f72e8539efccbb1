"""Everything the front answers with: the bundle's tokenizers, the index's passages, and an engine to submit to."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from narrows.bundle import Bundle
from narrows.errors import MismatchError, NotFoundError
from narrows.index.corpus import Corpus
from narrows.settings import ServerSettings
from narrows.tokenizer import TowerTokenizer, load_tokenizer
from narrows.work import Lane, Served, Work


class EngineHandle(Protocol):
    """The seam as the front sees it: an engine in this process, or the way to one in another process."""

    def submit(self, works: Sequence[Work]) -> None:
        """Queues the works of one call, all or none; each ends in an outcome that is delivered later."""
        ...

    def cancel(self, request_ids: Sequence[int]) -> None:
        """Drops works that nobody waits for."""
        ...

    def begins_s(self, lane: Lane) -> float:
        """The earliest time, on CLOCK_MONOTONIC, at which a call of its own (no stream's) that came now would run."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """An engine, what it computes with, and the passages that the rows it finds stand for."""

    engine: EngineHandle
    served: Served
    corpus: Corpus | None

    def named_corpus(self, name: str) -> Corpus:
        """The index of that name; empty means the only one.

        Raises:
            NotFoundError: there is none.
        """
        if self.corpus is None:
            raise NotFoundError("this server has no index: it was started without --index")
        if name not in ("", self.corpus.manifest.name):
            raise NotFoundError(f"corpus {name!r} is not served here; there is {self.corpus.manifest.name!r}")
        return self.corpus


@dataclass(frozen=True, slots=True)
class Application:
    """What stays the same while a front runs."""

    settings: ServerSettings
    bundle: Bundle
    questions: TowerTokenizer
    passages: TowerTokenizer
    reader: TowerTokenizer | None = None

    def check_bundle(self, expected: str) -> None:
        """Checks a request's expected_bundle.

        Raises:
            MismatchError: another bundle answers here.
        """
        question_tower_id = self.bundle.tower("question_encoder").tower_id
        if expected not in ("", self.bundle.manifest.name, question_tower_id):
            name = self.bundle.manifest.name
            raise MismatchError(
                f"bundle {expected!r} is expected, but {name!r} (tower_id {question_tower_id}) answers here"
            )


def load_application(settings: ServerSettings, bundle: Bundle) -> Application:
    """Loads the tokenizers; towers that share a directory share one.

    Raises:
        BundleError: a file is unreadable.
    """
    question, context = bundle.tower("question_encoder"), bundle.tower("context_encoder")
    questions = passages = load_tokenizer(bundle, question)
    if context.directory != question.directory:
        passages = load_tokenizer(bundle, context)
    reader = bundle.manifest.reader
    return Application(settings, bundle, questions, passages, load_tokenizer(bundle, reader) if reader else None)
