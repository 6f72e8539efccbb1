"""The lines of a UTF-8 text file, plain or gzipped, counted so that an error can say where."""

import gzip
import zlib
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import BinaryIO, Self

from narrows.errors import NarrowsError

InvalidLine = Callable[[int, str], None]


def is_gzip(file: Path) -> bool:
    """Whether a file's name says that it is gzipped."""
    return file.suffix.lower() == ".gz"


def kind(file: Path) -> str:
    """The suffix that says what a file holds, in lower case: `.tsv` for both a.tsv and a.tsv.gz."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


class TextLines:
    """Iterates, once, over the decoded lines, ends of line included, without a byte order mark.

    The file is closed at its last line, and at the end of a `with` block, however much of it was read.

    A line of invalid UTF-8 is a failure, unless `invalid` is there to be told its number and what is wrong with it;
    the line then comes with replacement characters, so that a row of several lines keeps its end.

    Raises:
        failure: the file cannot be read, is damaged gzip, or has invalid UTF-8; the message starts with file and line.
    """

    def __init__(self, file: Path, failure: type[NarrowsError], invalid: InvalidLine | None = None) -> None:
        self._file = file
        self._failure = failure
        self._invalid = invalid
        self._texts = self._read()
        self.number = 0  # of the line read last, from 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._texts.close()

    def __iter__(self) -> Iterator[str]:
        return self._texts

    def error(self, what: str, line: int | None = None) -> NarrowsError:
        """The failure to raise for something wrong on a line, by default the one read last."""
        return self._failure(f"{self._file}:{line or max(self.number, 1)}: {what}")

    def _read(self) -> Generator[str, None, None]:
        try:
            with self._open() as stream:
                for raw in stream:
                    self.number += 1
                    line = self._decoded(raw)
                    yield line.removeprefix("\ufeff") if self.number == 1 else line
        except OSError as error:  # gzip.BadGzipFile is one of them
            raise self.error(f"cannot be read: {error.strerror or error}") from None
        except (EOFError, zlib.error) as error:
            raise self.error(f"the gzip data is damaged or cut off: {error}") from None

    def _open(self) -> BinaryIO:
        if is_gzip(self._file):
            return gzip.open(self._file, "rb")  # type: ignore[return-value]
        return self._file.open("rb")

    def _decoded(self, raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            message = f"invalid UTF-8 at byte {error.start + 1} of the line"
            if self._invalid is None:
                raise self.error(message) from None
            self._invalid(self.number, message)
            return raw.decode(errors="replace")
