"""The passages of an index, in mapped files: row -> id, title, text, and id -> row.

passages.blob       id, title, text of row 0, of row 1, ..., UTF-8, nothing between them
passages.ends.npy   uint64 (3 * rows + 1,): where each of these strings ends, after a leading 0
id_order.npy        uint32 (rows,): rows by the UTF-8 bytes of their ids, ascending
id_rank.npy         uint32 (rows,): the inverse; a row's place in that order
"""

import mmap
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from narrows.errors import IndexFileError

BLOB, ENDS, ID_ORDER, ID_RANK = "passages.blob", "passages.ends.npy", "id_order.npy", "id_rank.npy"
FILES = (BLOB, ENDS, ID_ORDER, ID_RANK)


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage; title may be empty."""

    id: str
    title: str
    text: str


class PassageWriter:
    """Appends passages to a directory's files. Ids must be distinct; the caller has checked that."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blob = (directory / BLOB).open("wb")
        self._ends = array("Q", [0])
        self._ids: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._blob.close()
        if error is None:
            self._write_tables()

    def append(self, passage: Passage) -> None:
        """Adds the next row."""
        end = self._ends[-1]
        for string in (passage.id, passage.title, passage.text):
            data = string.encode()
            self._blob.write(data)
            end += len(data)
            self._ends.append(end)
        self._ids.append(passage.id.encode())

    def _write_tables(self) -> None:
        order = np.array(sorted(range(len(self._ids)), key=self._ids.__getitem__), dtype=np.uint32)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order), dtype=np.uint32)
        np.save(self._directory / ENDS, np.frombuffer(self._ends, dtype=np.uint64))
        np.save(self._directory / ID_ORDER, order)
        np.save(self._directory / ID_RANK, rank)


class Passages:
    """Read access to a directory written by PassageWriter. Thread-safe."""

    def __init__(self, directory: Path) -> None:
        """Maps the files.

        Raises:
            IndexFileError: one of them is not what PassageWriter writes.
            OSError: one cannot be read.
        """
        with (directory / BLOB).open("rb") as file:
            if not (directory / BLOB).stat().st_size:
                raise IndexFileError(f"{directory / BLOB} is empty; build the index again")
            self._blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.ends: npt.NDArray[np.uint64] = _table(directory / ENDS, np.uint64)
        self.id_order: npt.NDArray[np.uint32] = _table(directory / ID_ORDER, np.uint32)
        self.id_rank: npt.NDArray[np.uint32] = _table(directory / ID_RANK, np.uint32)

    def __len__(self) -> int:
        return len(self.id_order)

    def get(self, rows: Sequence[int] | npt.NDArray[np.int64], with_text: bool = True) -> list[Passage]:
        """The passages of these rows, in order; with empty texts unless `with_text`."""
        ends = self.ends[np.asarray(rows, dtype=np.int64)[:, None] * 3 + np.arange(4)].tolist()
        blob = self._blob
        return [
            Passage(blob[a:b].decode(), blob[b:c].decode(), blob[c:d].decode() if with_text else "")
            for a, b, c, d in ends
        ]

    def size_bytes(self, rows: npt.NDArray[np.int64], strings: int) -> int:
        """UTF-8 bytes of the first so many strings (id, title, text) of these rows together."""
        return int((self.ends[3 * rows + strings] - self.ends[3 * rows]).sum())

    def find(self, passage_id: str) -> int | None:
        """The row of an id, or None: a binary search over the mapped ids."""
        wanted = passage_id.encode()
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.id_bytes(int(self.id_order[middle])) < wanted:
                low = middle + 1
            else:
                high = middle
        if low == len(self):
            return None
        row = int(self.id_order[low])
        return row if self.id_bytes(row) == wanted else None

    def id_bytes(self, row: int) -> bytes:
        """The id of a row, as UTF-8."""
        return self._blob[int(self.ends[3 * row]) : int(self.ends[3 * row + 1])]


def _table(file: Path, kind: type[np.unsignedinteger[Any]]) -> npt.NDArray[Any]:
    try:
        table = np.asarray(np.load(file, mmap_mode="r"))
    except OSError:
        raise
    except Exception as error:  # numpy's reader raises many kinds
        raise IndexFileError(f"{file} cannot be read by numpy ({error}); build the index again") from None
    if table.dtype != kind or table.ndim != 1:
        raise IndexFileError(f"{file} is not one row of {np.dtype(kind)}; build the index again")
    return table
