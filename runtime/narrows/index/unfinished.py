"""The build that is under way in an index: what it is made of, how far it is, and what it takes to go on.

    INDEX/.build/   the passages' files, whole; index.faiss and truncated.jsonl, growing; journal.json

The journal is written when the passages are stored, with the hashes of their files, and again after each chunk of
embeddings, always after what it counts is on the disk. Before the build goes on, the passages are checked against
their hashes, and what lies beyond the journal's counts is cut off. It stays in the directory when
that becomes a generation, and is deleted last, so that a build killed between any two steps is known for what it is.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from io import BufferedRandom
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import numpy as np

from narrows import durable, integrity, manifests
from narrows.encoder import Embeddings
from narrows.errors import IndexFileError
from narrows.index import store
from narrows.index.store import TRUNCATED, VECTORS, SkippedRows
from narrows.index.vector_file import header
from narrows.passages import FILES, Passages
from narrows.tokenizer import TokenizedText

JOURNAL_VERSION = 1
BUILD, JOURNAL = ".build", "journal.json"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What decides the vectors and the passages of a build; it goes on only with the same. The words are for errors."""

    program: str
    tower_id: str
    variant: str
    model_sha256: str
    source_sha256: str
    skip_bad: bool
    shard: str = ""

    def differences(self, other: "Inputs") -> str:
        """What is not the same, in words."""
        words = {
            "program": "command, device, or version of narrows, onnxruntime or tokenizers",
            "tower_id": "context encoder",
            "variant": "variant",
            "model_sha256": "model file",
            "source_sha256": "passages, embeddings or indexes that it is made of",
            "skip_bad": "--skip-bad",
            "shard": "--shard",
        }
        return ", ".join(words[f.name] for f in fields(self) if getattr(self, f.name) != getattr(other, f.name))


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is encoded and on the disk: the first so many rows, and what the manifest says of them."""

    rows: int = 0
    truncated_count: int = 0
    truncated_bytes: int = 0  # of truncated.jsonl
    token_count: int = 0
    cut_token_count: int = 0
    max_norm: float = 0.0


@dataclass(frozen=True, slots=True)
class Journal:
    """A build under way: its inputs, its passages and the hashes of their files, and how far it is."""

    schema_version: int
    inputs: Inputs
    dim: int
    count: int
    skipped: dict[str, SkippedRows]
    stored: dict[str, tuple[str, ...]]
    encoded: Encoded


def read_journal(directory: Path) -> Journal | None:
    """Reads a build's journal; None where there is none.

    Raises:
        IndexFileError: it cannot be read, or is of another version.
    """
    file = directory / JOURNAL
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return None
    return manifests.decode(data, Journal, JOURNAL_VERSION, file, IndexFileError)


def write_journal(directory: Path, journal: Journal) -> None:
    """Writes a build's journal, durably."""
    durable.write_file(directory / JOURNAL, manifests.encode(journal))


def find(path: Path, inputs: Inputs) -> Journal | None:
    """The journal of the build to go on with in INDEX/.build; None where there is nothing to keep.

    Raises:
        IndexFileError: what is there has other inputs, or is damaged.
    """
    directory, renamed = path / BUILD, path / store.next_generation(path)
    if renamed.is_dir() and not directory.exists() and (renamed / JOURNAL).exists():
        renamed.rename(directory)  # killed between the rename and CURRENT
    if renamed.exists():
        shutil.rmtree(renamed)
    advice = "give --restart to throw it away and begin anew"
    try:
        journal = read_journal(directory)
    except IndexFileError as error:
        raise IndexFileError(f"the unfinished build cannot go on: {error}; {advice}") from None
    if journal is None or (journal.inputs != inputs and journal.encoded.rows == 0):
        return None
    if journal.inputs != inputs:
        raise IndexFileError(
            f"{path} holds an unfinished build of other inputs (not the same: {inputs.differences(journal.inputs)}); "
            f"{journal.encoded.rows} of its {journal.count} passages are encoded. Finish it with its own inputs, or "
            f"{advice}"
        )
    sizes = dict.fromkeys(FILES, 0) | _lengths(journal)
    if any(not (directory / name).is_file() or (directory / name).stat().st_size < sizes[name] for name in sizes):
        raise IndexFileError(f"{directory} holds less than its journal says: {advice}")
    if _hash_passages(directory) != journal.stored:
        raise IndexFileError(f"the passages stored in {directory} were changed or damaged: {advice}")
    for half_written in directory.glob(".*.tmp"):
        half_written.unlink()
    return journal


def clear(path: Path) -> None:
    """Deletes the unfinished build; its journal first, because half of a build is not one to go on with."""
    for directory in (path / BUILD, path / store.next_generation(path)):
        if directory.exists():
            (directory / JOURNAL).unlink(missing_ok=True)
            durable.fsync_path(directory)
            shutil.rmtree(directory)


def begin(path: Path, inputs: Inputs, dim: int, count: int, skipped: dict[str, SkippedRows]) -> Journal:
    """Starts the journal of an INDEX/.build that holds the files of its passages."""
    directory = path / BUILD
    (directory / VECTORS).write_bytes(header(dim, count))
    (directory / TRUNCATED).write_bytes(b"")
    durable.sync_tree(directory)
    durable.fsync_path(path)
    journal = Journal(JOURNAL_VERSION, inputs, dim, count, skipped, _hash_passages(directory), Encoded())
    write_journal(directory, journal)
    return journal


def adopt(path: Path, inputs: Inputs, dim: int, encoded: Encoded, skipped: dict[str, SkippedRows]) -> Journal:
    """Starts the journal of an INDEX/.build that holds passages and all their vectors."""
    directory = path / BUILD
    durable.sync_tree(directory)
    durable.fsync_path(path)
    journal = Journal(JOURNAL_VERSION, inputs, dim, encoded.rows, skipped, _hash_passages(directory), encoded)
    write_journal(directory, journal)
    return journal


def finish(path: Path, generation: str) -> None:
    """The last step of a build: deletes what others left and what only it needed, then the journal.

    Does nothing the second time.
    """
    store.remove_leftovers(path)
    directory = path / generation
    kept = {store.MANIFEST, JOURNAL, *store.read_manifest(path)[1].files}
    for file in directory.iterdir():
        if file.name not in kept:
            file.unlink()
    (directory / JOURNAL).unlink(missing_ok=True)
    durable.fsync_path(directory)


def _hash_passages(directory: Path) -> dict[str, tuple[str, ...]]:
    hashes = integrity.hash_files(directory / name for name in FILES)
    return {file.name: sha256 for file, sha256 in hashes.items()}


def _lengths(journal: Journal) -> dict[str, int]:
    """Bytes of the growing files that the journal counts."""
    header_bytes = len(header(journal.dim, journal.count))
    return {
        VECTORS: header_bytes + journal.encoded.rows * journal.dim * 4,
        TRUNCATED: journal.encoded.truncated_bytes,
    }


class Appender:
    """Appends chunks of encoded passages to a build; each is on the disk before the journal counts it."""

    def __init__(self, directory: Path, journal: Journal, passages: Passages) -> None:
        self._directory = directory
        self._passages = passages
        self.journal = journal
        self._files: dict[str, BufferedRandom] = {}
        for name, length in _lengths(journal).items():
            self._files[name] = (directory / name).open("r+b")
            self._files[name].truncate(length)
            self._files[name].seek(length)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()

    def append(self, embeddings: Embeddings, texts: Sequence[TokenizedText]) -> None:
        """Adds the next rows: float32 (rows, dim), and the texts that they are of."""
        done = self.journal.encoded
        cut = [number for number, text in enumerate(texts) if text.truncated]
        ids = [passage.id for passage in self._passages.get([done.rows + number for number in cut], with_text=False)]
        lines = [_truncated_line(ids[place], texts[number]) for place, number in enumerate(cut)]
        self._files[VECTORS].write(embeddings.tobytes())
        self._files[TRUNCATED].writelines(lines)
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        norms = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        encoded = Encoded(
            rows=done.rows + len(texts),
            truncated_count=done.truncated_count + len(cut),
            truncated_bytes=done.truncated_bytes + sum(map(len, lines)),
            token_count=done.token_count + sum(len(text.ids) + text.cut_tokens for text in texts),
            cut_token_count=done.cut_token_count + sum(text.cut_tokens for text in texts),
            max_norm=max(done.max_norm, float(norms.max())),
        )
        self.journal = replace(self.journal, encoded=encoded)
        write_journal(self._directory, self.journal)


def _truncated_line(passage_id: str, text: TokenizedText) -> bytes:
    kept = len(text.ids)
    return msgspec.json.encode({"id": passage_id, "tokens": kept + text.cut_tokens, "kept": kept}) + b"\n"
