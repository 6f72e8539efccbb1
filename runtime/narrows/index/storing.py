"""A file of passages -> the passages' files of an index, each row checked."""

import sys
from collections.abc import Iterator
from pathlib import Path

from narrows import durable, passage_files
from narrows.errors import PassageFileError
from narrows.index.progress import Progress
from narrows.index.shard import Shard
from narrows.index.store import SkippedRows
from narrows.passage_files import BadRow
from narrows.passages import Passage, PassageWriter

NAMED_SKIPS = 5  # bad rows named for each reason
TOLD_EVERY = 1000


def fingerprint(file: Path) -> str:
    """The SHA-256 of a file of passages.

    Raises:
        PassageFileError: it cannot be read, or only once.
    """
    if file.is_fifo():
        raise PassageFileError(f"{file}:1: it is a pipe, and is read twice; write the passages to a file")
    try:
        return durable.sha256_file(file)
    except OSError as error:
        raise PassageFileError(f"{file}:1: cannot be read: {error.strerror or error}") from None


def store_passages(
    file: Path, directory: Path, skip_bad: bool, shard: Shard | None, progress: Progress
) -> tuple[int, dict[str, SkippedRows]]:
    """Stores a file's passages, or the part of them that a shard is; returns how many, and what was left out of these.

    Raises:
        PassageFileError: the file breaks its format, or holds no passage, or fewer than there are shards.
    """
    rows = None
    if shard:
        count = sum(1 for _ in _read(file, skip_bad, {}, progress, None))
        if count < shard.of:
            raise PassageFileError(f"{file}: it holds {count} passages, too few for {shard.of} shards")
        rows = shard.rows(count)
        if rows.stop == count:
            rows = range(rows.start, sys.maxsize)  # bad rows at the very end are the last shard's
    skipped: dict[str, SkippedRows] = {}
    stored = 0
    with PassageWriter(directory) as writer:
        for row, passage in enumerate(_read(file, skip_bad, skipped, progress, rows)):
            if rows is None or row in rows:
                writer.append(passage)
                stored += 1
        if not stored:
            all_bad = f" ({sum(bad.count for bad in skipped.values())} bad rows were skipped)" if skipped else ""
            raise PassageFileError(f"{file}: it holds no passages{all_bad}")
    return stored, skipped


def _read(
    file: Path, skip_bad: bool, skipped: dict[str, SkippedRows], progress: Progress, rows: range | None
) -> Iterator[Passage]:
    """Yields all passages; counts the bad rows among those that are wanted: a bad row goes with the next passage."""

    def skip(row: BadRow) -> None:
        if rows is not None and count not in rows:
            return
        found = skipped.get(row.reason, SkippedRows(0, ()))
        named = (*found.first, f"{row.line}: {row.message}")[:NAMED_SKIPS]
        skipped[row.reason] = SkippedRows(found.count + 1, named)

    count = 0
    for count, row in enumerate(passage_files.read(file, skip if skip_bad else None), start=1):
        yield row.passage
        if count % TOLD_EVERY == 0:
            progress.reading(count)
    progress.reading(count)
