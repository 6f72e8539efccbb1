"""Passage files: DPR's psgs_w100.tsv and JSON lines, plain or gzipped, read strictly and written so as to be read.

TSV: a header `id text title`, tab-separated, csv-quoted. Like the original DPR (CsvCtxSrc in its retriever data
sources) it strips the quotation marks that surround a text after csv has read it.
JSON lines: one object a line, with `id` (string or integer), `text` and, if it has one, `title`; other keys are left.

A row that is bad in itself (BadRow) ends the reading, or is skipped where the caller takes it. What leaves open where
the next row begins ends it always: damaged gzip data, an unreadable file, another header, and a malformed TSV row of
several lines, whose quotation mark may have swallowed any number of good rows.
"""

import csv
import gzip
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from narrows import durable
from narrows.errors import PassageFileError
from narrows.passages import Passage
from narrows.text_lines import TextLines, is_gzip, kind

MAX_ID_BYTES = 512
TSV_HEADER = ["id", "text", "title"]
_NEEDS_QUOTES = re.compile('[\t\r\n"]')


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
    suffix = _kind(file)
    first_line: dict[str, int] = {}
    with _Lines(file) as lines:
        for row in _read_tsv(lines) if suffix == ".tsv" else _read_jsonl(lines):
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


@contextmanager
def writer(file: Path) -> Iterator[Callable[[Passage], None]]:
    """Yields what writes one passage to a file that `read` takes; the file is there, whole, when the block ends.

    The bytes depend on the passages alone. A text's own quotation marks at its ends are lost to whoever reads a .tsv,
    as above; .jsonl keeps everything.

    Raises:
        PassageFileError: the name ends in none of the known suffixes, or a passage does not fit the format.
    """
    is_tsv = _kind(file) == ".tsv"
    with ExitStack() as files:
        raw = files.enter_context(durable.new_file(file))
        # No name and no time in the gzip header: the same passages give the same bytes.
        stream = files.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0)) if is_gzip(file) else raw
        if is_tsv:
            stream.write("\t".join(TSV_HEADER).encode() + b"\n")

        def write(passage: Passage) -> None:
            stream.write(_tsv_row(file, passage) if is_tsv else _jsonl_row(passage))

        yield write


def _kind(file: Path) -> str:
    suffix = kind(file)
    if suffix not in (".tsv", ".jsonl"):
        raise PassageFileError(f"{file}: expected a name ending in .tsv, .tsv.gz, .jsonl or .jsonl.gz")
    return suffix


class _Lines(TextLines):
    """The lines of a passage file; one of invalid UTF-8 is noted, because it makes a bad row."""

    def __init__(self, file: Path) -> None:
        super().__init__(file, PassageFileError, self._note)
        self._noted: BadRow | None = None

    def take_invalid(self) -> BadRow | None:
        """The first line of invalid UTF-8 since the last call."""
        noted, self._noted = self._noted, None
        return noted

    def _note(self, line: int, message: str) -> None:
        self._noted = self._noted or BadRow(line, "invalid UTF-8", message)


def _read_tsv(lines: _Lines) -> Iterator[Row | BadRow]:
    reader = csv.reader(lines, delimiter="\t", strict=True)
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


def _tsv_row(file: Path, passage: Passage) -> bytes:
    for value in (passage.text, passage.title):
        if len(value) > csv.field_size_limit():
            raise PassageFileError(
                f"{file}: passage {passage.id!r} has a text or title of {len(value)} characters, and a field of a .tsv "
                f"at most {csv.field_size_limit()}: write .jsonl"
            )
    if not passage.title.strip() and not passage.text.strip('"').strip():
        raise PassageFileError(
            f"{file}: passage {passage.id!r} has no title, and its text is quotation marks alone, which reading a .tsv "
            "drops: write .jsonl"
        )
    return ("\t".join(map(_quoted, (passage.id, passage.text, passage.title))) + "\n").encode()


def _quoted(field: str) -> str:
    """Quoted where it must be; csv.writer leaves a lone carriage return as it is, which csv.reader then refuses."""
    return '"' + field.replace('"', '""') + '"' if _NEEDS_QUOTES.search(field) else field


def _jsonl_row(passage: Passage) -> bytes:
    return msgspec.json.encode({"id": passage.id, "title": passage.title, "text": passage.text}) + b"\n"
