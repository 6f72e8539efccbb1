"""Where the rankings come from: a running server, or towers and index opened here."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import narrows
from narrows.client import Client
from narrows.errors import OverloadedError
from narrows.messages import Hit
from narrows.passages import Passage, Passages

if TYPE_CHECKING:  # the rest needs no ONNX Runtime and no FAISS
    from narrows.index import Index
    from narrows.towers import Tower

Ranking = tuple[Hit, ...]

CHUNK_PASSAGES = 4096
OVERLOADED_TRIES = 10


@dataclass(frozen=True, slots=True)
class Searched:
    """What was searched. Tower ids and generation say whether two results are of the same system."""

    bundle: str
    variant: str  # of the question encoder
    passage_variant: str  # that filled the index
    index: str
    generation: str
    passage_count: int
    question_tower_id: str
    context_tower_id: str
    program: str


class Searcher(Protocol):
    """Finds the best passages of questions."""

    searched: Searched

    def search(self, questions: Sequence[str], depth: int) -> list[Ranking]:
        """One ranking a question, in order; each as long as `depth` or as the corpus."""
        ...


class ServerSearcher:
    """Asks a server, through narrows.Client alone."""

    def __init__(self, client: Client, corpus: str = "") -> None:
        info = client.server_info()
        index = corpus or next(iter(info.corpora), "")
        self.searched = Searched(
            info.bundle,
            info.variant,
            info.passage_variant,
            index,
            info.generation,
            info.passage_count,
            info.question_tower_id,
            info.context_tower_id,
            f"narrows {info.server_version}",
        )
        self._client = client
        self._corpus = corpus

    def search(self, questions: Sequence[str], depth: int) -> list[Ranking]:
        """One call for as many questions as the server takes; waits as told while it is overloaded."""
        for left in reversed(range(OVERLOADED_TRIES)):
            try:
                return [result.hits for result in self._client.search(questions, depth, corpus=self._corpus)]
            except OverloadedError as error:
                if not left or error.retry_after_ms < 0:
                    raise
                time.sleep(error.retry_after_ms / 1e3)
        raise AssertionError("unreachable")


class LocalSearcher:
    """Encodes and searches in this process, with the server's own tokenizer, encoder and index.

    `tower` is loaded with one thread, and `threads` texts are encoded at a time (narrows.offline).
    `warning` says what speaks against the pair of variants (narrows.variants); empty if nothing does.
    """

    def __init__(
        self,
        tower: "Tower",
        vectors: "Index",
        passages: Passages,
        searched: Searched,
        threads: int,
        warning: str = "",
    ) -> None:
        self.searched = searched
        self.warning = warning
        self._tower = tower
        self._vectors = vectors
        self._passages = passages
        self._threads = threads

    @classmethod
    def open(cls, bundle_path: Path, index_path: Path, variant: str, threads: int) -> "LocalSearcher":
        """Opens a bundle and an index, and checks that they belong together.

        `variant` is the question encoder's; empty means the most faithful that is sound with the index's own.

        Raises:
            BundleError, IndexFileError, MismatchError: as `narrows serve` would.
        """
        from narrows import variants
        from narrows.bundle import open_bundle
        from narrows.index.opened import open_index
        from narrows.towers import load_towers

        bundle = open_bundle(bundle_path)
        index = open_index(index_path, bundle, threads)
        choice = variants.choose(bundle.manifest, index.manifest.variant, variant)
        tower = load_towers(bundle, choice.question, 1, ["question_encoder"])["question_encoder"]
        return cls(
            tower,
            index.vectors,
            index.passages,
            Searched(
                bundle.manifest.name,
                choice.question,
                choice.passage,
                index.manifest.name,
                index.generation,
                index.manifest.count,
                tower.manifest.tower_id,
                index.manifest.tower_id,
                f"narrows {narrows.__version__}",
            ),
            threads,
            choice.warning,
        )

    def search(self, questions: Sequence[str], depth: int) -> list[Ranking]:
        """Encodes and searches all at once."""
        from narrows.offline import embed

        embeddings = embed(self._tower, self._tower.tokenizer.questions(questions), self._threads)
        found = self._vectors.search(embeddings, depth)
        return [
            tuple(
                Hit(passage.id, passage.title, passage.text, float(score))
                for passage, score in zip(self._passages.get(rows), scores, strict=True)
            )
            for rows, scores in zip(found.rows, found.scores, strict=True)
        ]

    def corpus(self) -> Iterator[Passage]:
        """All passages of the index."""
        return in_order(self._passages)


def in_order(passages: Passages) -> Iterator[Passage]:
    """All of an index's passages, by row."""
    for start in range(0, len(passages), CHUNK_PASSAGES):
        yield from passages.get(range(start, min(start + CHUNK_PASSAGES, len(passages))))
