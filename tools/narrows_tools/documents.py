"""Documents -> passages of 100 words, each with its document's title, as DPR's Wikipedia was cut.

The DPR paper (section 4.1) cuts each article into disjoint blocks of 100 words, after Wang et al. 2019; its authors
say that a word is what lies between white space (issues 138 and 159 of their repository). What they did with the rest
at an article's end is not published: here it is a short passage of its own (`keep`), or filled up with the words that
the document begins with (`fill`), or left out (`drop`).
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

import msgspec

from narrows.errors import PassageFileError
from narrows.passage_files import MAX_ID_BYTES
from narrows.passages import Passage
from narrows.text_lines import TextLines, kind

WORDS = 100
Last = Literal["keep", "fill", "drop"]
Ids = Literal["document", "running"]

TEXT_SUFFIXES = (".md", ".txt")
_WORD = re.compile(r"\S+")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")


class _Object(msgspec.Struct):
    text: str
    id: str | int = ""
    title: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A text to cut up; `where` is its file, and its line if it is one of many, for messages."""

    id: str
    title: str
    text: str
    where: str


@dataclass(slots=True)
class Counts:
    """What a split has seen so far."""

    documents: int = 0
    empty_documents: int = 0
    passages: int = 0
    quote_ended: int = 0  # passages with a quotation mark at an end of the text, which a reader of .tsv drops


def read(source: Path) -> Iterator[Document]:
    """Yields the documents of a file of JSON lines, plain or gzipped, or of a directory of .txt and .md files.

    JSON lines: one object a line, with `text` and, if it has them, `id` (string or integer) and `title`; other keys
    are left. A directory is read with its subdirectories, hidden ones and hidden files left out, in the order of the
    paths; the id of a document is its path in it, its title the first heading of a .md file, else the file's name
    without suffix.

    Raises:
        PassageFileError: anything that breaks the format, with file and line; a directory without such files.
    """
    if source.is_dir():
        yield from _read_directory(source)
    elif kind(source) == ".jsonl":
        yield from _read_jsonl(source)
    elif not source.exists():
        raise PassageFileError(f"{source}: there is no such file or directory")
    else:
        raise PassageFileError(f"{source}: expected a directory, or a name ending in .jsonl or .jsonl.gz")


def split_text(text: str, words: int = WORDS, last: Last = "keep") -> list[str]:
    """Cuts a text into disjoint blocks of so many words, spacing and punctuation inside a block as they were.

    A text of fewer words is one short block, unless `last` is `drop`. `fill` takes what the last block lacks from the
    beginning of the text, after a space; a text of fewer words than one block stays short.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    blocks = [spans[first : first + words] for first in range(0, len(spans), words)]
    cut = [text[block[0][0] : block[-1][1]] for block in blocks]
    missing = words - len(blocks[-1]) if blocks else 0
    if missing and last == "drop":
        cut.pop()
    elif missing and last == "fill" and len(blocks) > 1:
        cut[-1] += " " + text[spans[0][0] : spans[missing - 1][1]]
    return cut


def split(source: Path, words: int, last: Last, ids: Ids, counts: Counts) -> Iterator[Passage]:
    """Yields the passages of all documents, in order, and keeps count.

    Ids are `<document's id>-<n>`, or running numbers over all documents; both begin with 1, as DPR's do. One document
    is in memory at a time; with ids of the first kind, the ids of all documents too, so that none occurs twice.

    Raises:
        PassageFileError: as `read`; an id that is missing, too long or used twice.
    """
    first_seen: dict[str, str] = {}
    for document in read(source):
        if ids == "document":
            _check_id(document, first_seen)
        counts.documents += 1
        blocks = split_text(document.text, words, last)
        counts.empty_documents += not blocks
        for number, text in enumerate(blocks, start=1):
            counts.passages += 1
            counts.quote_ended += text.startswith('"') or text.endswith('"')
            identifier = f"{document.id}-{number}" if ids == "document" else str(counts.passages)
            if len(identifier.encode()) > MAX_ID_BYTES:
                raise PassageFileError(
                    f"{document.where}: the id of its passage {number} would have more than {MAX_ID_BYTES} bytes; "
                    "--ids running numbers the passages instead"
                )
            yield Passage(identifier, document.title, text)


def _check_id(document: Document, first_seen: dict[str, str]) -> None:
    if not document.id:
        raise PassageFileError(f"{document.where}: the document has no id; --ids running numbers the passages instead")
    earlier = first_seen.setdefault(document.id, document.where)
    if earlier is not document.where:
        raise PassageFileError(f"{document.where}: the id {document.id!r} was used in {earlier} already")


def _read_jsonl(file: Path) -> Iterator[Document]:
    decoder = msgspec.json.Decoder(_Object)
    with TextLines(file, PassageFileError) as lines:
        for line in lines:
            if not line.strip():
                continue
            try:
                item = decoder.decode(line)
            except (msgspec.DecodeError, RecursionError) as error:
                raise lines.error(f'expected {{"id": ..., "title": ..., "text": ...}}: {error}') from None
            yield Document(str(item.id), item.title, item.text, f"{file}:{lines.number}")


def _read_directory(directory: Path) -> Iterator[Document]:
    found = (Path(where, name) for where, _, names in os.walk(directory, onerror=_unreadable) for name in names)
    files = sorted(
        file
        for file in found
        if file.suffix.lower() in TEXT_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(directory).parts)
    )
    if not files:
        raise PassageFileError(f"{directory}: no {' or '.join(TEXT_SUFFIXES)} file in it")
    for file in files:
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise PassageFileError(f"{file}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise PassageFileError(f"{file}: invalid UTF-8 at byte {error.start + 1}") from None
        name = file.relative_to(directory).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            raise PassageFileError(f"{file}: the name is not UTF-8; rename the file or its directory") from None
        title = file.stem
        if file.suffix.lower() == ".md":
            heading, text = _heading(text)
            title = heading or title
        yield Document(name, title, text, str(file))


def _unreadable(error: OSError) -> NoReturn:
    """os.walk, like Path.rglob, would leave a directory out without a word."""
    raise PassageFileError(f"{error.filename}: cannot be read: {error.strerror}")


def _heading(markdown: str) -> tuple[str, str]:
    """The first heading (`# ...`) outside fenced code, and the text; without that heading where it comes first."""
    fence, blank_so_far, lines = "", True, markdown.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if opened := _FENCE.match(line):
            fence = "" if fence == opened[1] else fence or opened[1]
        elif not fence and (match := _HEADING.fullmatch(line.rstrip("\r\n"))) and (match[1] or "").strip():
            return match[1].strip(), "".join(lines[number + 1 :]) if blank_so_far else markdown
        blank_so_far = blank_so_far and not line.strip()
    return "", markdown
