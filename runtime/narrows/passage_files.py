"""Passage files: DPR's psgs_w100.tsv and JSON lines, plain or gzipped, read strictly.

TSV: a header `id text title`, tab-separated, csv-quoted. Like the original DPR (CsvCtxSrc in its retriever data
sources) it strips the quotation marks that surround a text after csv has read it.
JSON lines: one object a line, with `id` (string or integer), `text` and, if it has one, `title`; other keys are left.

A row that is bad in itself (BadRow) ends the reading, or is skipped where the caller takes it. What leaves open where
the next row begins ends it always: damaged gzip data, an unreadable file, another header, and a malformed TSV row of
several lines, whose quotation mark may have swallowed any number of good rows.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import msgspec

from narrows.errors import PassageFileError
from narrows.passages import Passage

MAX_ID_BYTES = 512
TSV_HEADER = ["id", "text", "title"]


class _Object(msgspec.Struct):
    id: str | int
    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A passage and the line of the file that it starts on, counted from 1."""

    line: int
    passage: Passage


Reason = Literal[
    "wrong columns", "malformed quoting", "invalid UTF-8", "malformed JSON",
    "duplicate id", "empty id", "over-long id", "empty passage",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is no passage, and the line where it goes wrong, counted from 1."""

    line: int
    reason: Reason
    message: str


def read(file: Path, skip: Callable[[BadRow], None] | None = None) -> Iterator[Row]:
    """Yields the passages of a file, in order. Blank lines are skipped; bad rows too, if `skip` is there to be told.

    Raises:
        PassageFileError: anything that breaks the format, with file and line: a bad row (without `skip`), another
            header, a malformed row of several lines, a damaged gzip file, a file that cannot be read.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    if kind not in (".tsv", ".jsonl"):
        raise PassageFileError(f"{file}: expected a name ending in .tsv, .tsv.gz, .jsonl or .jsonl.gz")
    first_line: dict[str, int] = {}
    lines = _Lines(file)
    try:
        for row in _read_tsv(lines) if kind == ".tsv" else _read_jsonl(lines):
            if isinstance(row, Row):
                earlier = first_line.setdefault(row.passage.id, row.line)
                if earlier == row.line:
                    yield row
                    continue
                message = f"the id {row.passage.id!r} was used on line {earlier} already"
                row = BadRow(row.line, "duplicate id", message)
            if skip is None:
                raise lines.error(row.message, row.line)
            skip(row)
    except OSError as error:  # gzip.BadGzipFile is one of them
        raise lines.error(f"cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise lines.error(f"the gzip data is damaged or cut off: {error}") from None


class _Lines:
    """The decoded lines of a file; counts them, so that an error can say where.

    A line of invalid UTF-8 is decoded with replacements, so that a row of several lines keeps its end, and noted.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._invalid: BadRow | None = None
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        with self._open() as stream:
            for raw in stream:
                self.number += 1
                try:
                    line = raw.decode()
                except UnicodeDecodeError as error:
                    message = f"invalid UTF-8 at byte {error.start + 1} of the line"
                    self._invalid = self._invalid or BadRow(self.number, "invalid UTF-8", message)
                    line = raw.decode(errors="replace")
                yield line.removeprefix("\ufeff") if self.number == 1 else line

    def take_invalid(self) -> BadRow | None:
        """The first line of invalid UTF-8 since the last call."""
        invalid, self._invalid = self._invalid, None
        return invalid

    def _open(self) -> BinaryIO:
        if self._file.suffix.lower() == ".gz":
            return gzip.open(self._file, "rb")  # type: ignore[return-value]
        return self._file.open("rb")

    def error(self, what: str, line: int | None = None) -> PassageFileError:
        return PassageFileError(f"{self._file}:{line or max(self.number, 1)}: {what}")


def _read_tsv(lines: _Lines) -> Iterator[Row | BadRow]:
    reader = csv.reader(iter(lines), delimiter="\t", strict=True)
    is_header = True
    while True:
        start = lines.number + 1  # the line that a row begins on: where an unclosed quotation mark is, too
        malformed = None
        try:
            fields = next(reader, None)
        except csv.Error as error:
            fields, malformed = [], BadRow(start, "malformed quoting", f"malformed row: {error}")
        bad = lines.take_invalid() or malformed
        if bad and (is_header or (malformed and lines.number > start)):
            raise lines.error(bad.message, bad.line)
        if is_header and fields != TSV_HEADER:
            raise lines.error(f"expected the header {TSV_HEADER}, tab-separated, but found {fields or []}")
        if fields is None:
            return
        if bad:
            yield bad
        elif fields and len(fields) != len(TSV_HEADER):
            many = f" on lines {start} to {lines.number}" if lines.number > start else ""
            message = f"expected 3 tab-separated fields (id, text, title), found {len(fields)}{many}"
            yield BadRow(start, "wrong columns", message)
        elif fields and not is_header:
            identifier, text, title = fields
            yield _checked(start, identifier, title, text.strip('"'))
        is_header = False


def _read_jsonl(lines: _Lines) -> Iterator[Row | BadRow]:
    decoder = msgspec.json.Decoder(_Object)
    for line in lines:
        if invalid := lines.take_invalid():
            yield invalid
        elif line.strip():
            try:
                item = decoder.decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                message = f'expected {{"id": ..., "title": ..., "text": ...}}: {error}'
                yield BadRow(lines.number, "malformed JSON", message)
            else:
                yield _checked(lines.number, str(item.id), item.title, item.text)


def _checked(line: int, identifier: str, title: str, text: str) -> Row | BadRow:
    if not identifier:
        return BadRow(line, "empty id", "the id is empty")
    size = len(identifier.encode())
    if size > MAX_ID_BYTES:
        return BadRow(line, "over-long id", f"the id has {size} bytes; at most {MAX_ID_BYTES} are allowed")
    if not title.strip() and not text.strip():
        return BadRow(line, "empty passage", f"passage {identifier!r} has neither title nor text")
    return Row(line, Passage(identifier, title, text))
