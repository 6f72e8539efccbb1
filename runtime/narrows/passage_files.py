"""Passage files: DPR's psgs_w100.tsv and JSON lines, plain or gzipped, read strictly.

TSV: a header `id text title`, tab-separated, csv-quoted. Like the original DPR (CsvCtxSrc in its retriever data
sources) it strips the quotation marks that surround a text after csv has read it.
JSON lines: one object a line, with `id` (string or integer), `text` and, if it has one, `title`; other keys are left.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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


def read(file: Path) -> Iterator[Row]:
    """Yields the passages of a file, in order. Blank lines are skipped.

    Raises:
        PassageFileError: anything that breaks the format, with file and line: a bad row, invalid UTF-8, a duplicate
            id, an id that is empty or over 512 bytes, a passage without title and text, a damaged gzip file.
    """
    suffixes = [suffix.lower() for suffix in file.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes or [""])[-1]
    if kind not in (".tsv", ".jsonl"):
        raise PassageFileError(f"{file}: expected a name ending in .tsv, .tsv.gz, .jsonl or .jsonl.gz")
    first_line: dict[str, int] = {}
    lines = _Lines(file)
    try:
        for row in _read_tsv(lines) if kind == ".tsv" else _read_jsonl(lines):
            earlier = first_line.setdefault(row.passage.id, row.line)
            if earlier != row.line:
                raise lines.error(f"the id {row.passage.id!r} was used on line {earlier} already", row.line)
            yield row
    except OSError as error:  # gzip.BadGzipFile is one of them
        raise lines.error(f"cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise lines.error(f"the gzip data is damaged or cut off: {error}") from None


class _Lines:
    """The decoded lines of a file; counts them, so that an error can say where."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        with self._open() as stream:
            for raw in stream:
                self.number += 1
                try:
                    line = raw.decode()
                except UnicodeDecodeError as error:
                    raise self.error(f"invalid UTF-8 at byte {error.start + 1} of the line") from None
                yield line.removeprefix("\ufeff") if self.number == 1 else line

    def _open(self) -> BinaryIO:
        if self._file.suffix.lower() == ".gz":
            return gzip.open(self._file, "rb")  # type: ignore[return-value]
        return self._file.open("rb")

    def error(self, what: str, line: int | None = None) -> PassageFileError:
        return PassageFileError(f"{self._file}:{line or max(self.number, 1)}: {what}")


def _read_tsv(lines: _Lines) -> Iterator[Row]:
    reader = csv.reader(iter(lines), delimiter="\t", strict=True)
    start = 1  # the line that a row begins on: where an unclosed quotation mark is, too
    try:
        header = next(reader, [])
        if header != TSV_HEADER:
            raise lines.error(f"expected the header {TSV_HEADER}, tab-separated, but found {header}")
        start = lines.number + 1
        for fields in reader:
            if fields:
                if len(fields) != len(TSV_HEADER):
                    raise lines.error(f"expected 3 tab-separated fields (id, text, title), found {len(fields)}", start)
                identifier, text, title = fields
                yield _checked(lines, start, identifier, title, text.strip('"'))
            start = lines.number + 1
    except csv.Error as error:
        raise lines.error(f"malformed row: {error}", start) from None


def _read_jsonl(lines: _Lines) -> Iterator[Row]:
    decoder = msgspec.json.Decoder(_Object)
    for line in lines:
        if not line.strip():
            continue
        try:
            item = decoder.decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise lines.error(f'expected {{"id": ..., "title": ..., "text": ...}}: {error}') from None
        yield _checked(lines, lines.number, str(item.id), item.title, item.text)


def _checked(lines: _Lines, line: int, identifier: str, title: str, text: str) -> Row:
    if not identifier:
        raise lines.error("the id is empty", line)
    size = len(identifier.encode())
    if size > MAX_ID_BYTES:
        raise lines.error(f"the id has {size} bytes; at most {MAX_ID_BYTES} are allowed", line)
    if not title.strip() and not text.strip():
        raise lines.error(f"passage {identifier!r} has neither title nor text", line)
    return Row(line, Passage(identifier, title, text))
