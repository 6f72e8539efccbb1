"""Files of vectors that grow row by row, are read in blocks, and are searched by FAISS as they lie."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from narrows.errors import IndexFileError
from narrows.index import Precision

Vectors = npt.NDArray[np.float32] | npt.NDArray[np.float16]

DTYPE: dict[Precision, np.dtype[np.float32] | np.dtype[np.float16]] = {
    "fp32": np.dtype("<f4"),
    "fp16": np.dtype("<f2"),
}
LARGEST_HALF = 65504.0


@cache
def header(dim: int, count: int, precision: Precision = "fp32") -> bytes:
    """What comes before the vectors, (count, dim), in the file of a flat inner-product index.

    FAISS writes it itself, of an empty index that is told its size; only the last field, the length of what follows,
    is set here: in floats, or in bytes (FAISS, impl/index_write.cpp, codes `IxFI` and `IxSQ`).
    """
    index = _empty(dim, precision)
    index.ntotal = count
    written: bytes = faiss.serialize_index(index).tobytes()
    return written[:-8] + (count * dim * (1 if precision == "fp32" else 2)).to_bytes(8, "little")


def _empty(dim: int, precision: Precision) -> faiss.Index:
    if precision == "fp32":
        return faiss.IndexFlatIP(dim)
    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)


@dataclass(frozen=True, slots=True)
class VectorFile:
    """A file of `header` and vectors, float32 or float16 (count, dim)."""

    path: Path
    dim: int
    count: int
    precision: Precision = "fp32"

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows from `start` up to `stop`, float32, read and not mapped: no more memory is taken than they need.

        Raises:
            IndexFileError: the file ends before them.
        """
        stop = min(stop, self.count)
        dtype = DTYPE[self.precision]
        begin = len(header(self.dim, self.count, self.precision)) + start * self.dim * dtype.itemsize
        found = np.fromfile(self.path, dtype, count=(stop - start) * self.dim, offset=begin)
        if len(found) != (stop - start) * self.dim:
            raise IndexFileError(f"{self.path} ends before its {self.count} vectors of {self.dim}: build it again")
        return found.reshape(-1, self.dim).astype(np.float32, copy=False)

    def sample(self, count: int, seed: int) -> npt.NDArray[np.float32]:
        """So many rows, or all, drawn without repetition and in their order, float32 (rows, dim)."""
        if count >= self.count:
            return self.read(0, self.count)
        return self.rows(np.sort(np.random.default_rng(seed).choice(self.count, count, replace=False)))

    def rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Some rows, float32 (rows, dim), each read alone."""
        found = np.empty((len(rows), self.dim), dtype=np.float32)
        for place, row in enumerate(rows.tolist()):
            found[place] = self.read(row, row + 1)[0]
        return found


def open_mapped(file: Path, count: int, precision: Precision) -> tuple[Any, Vectors]:
    """Maps a file for searching: FAISS's index, and the vectors, (count, dim), as they lie.

    Raises:
        IndexFileError: FAISS cannot read the file, or it is not a flat inner-product index of so many vectors.
    """
    index = read_mapped(file, DTYPE[precision].itemsize * count)
    wanted = "a flat inner-product index" + (" of half precision" if precision == "fp16" else "")
    if not _is_flat(index, precision) or index.ntotal != count:
        raise IndexFileError(f"{file} is not {wanted} of {count} vectors; build it again")
    size = count * index.d
    if precision == "fp32":
        return index, faiss.rev_swig_ptr(index.get_xb(), size).reshape(count, index.d)
    halves = faiss.rev_swig_ptr(index.codes.data(), size * 2).view(DTYPE["fp16"])
    return index, halves.reshape(count, index.d)


def read_mapped(file: Path, least_bytes: int) -> Any:  # noqa: ANN401  (of a class that FAISS's stubs do not tell)
    """FAISS's index of a file, mapped where FAISS can.

    Raises:
        IndexFileError: FAISS cannot read the file, or it has fewer than `least_bytes`.
    """
    try:
        if file.stat().st_size < least_bytes:  # FAISS itself crashes on some files that are cut short
            raise OSError("too short")
        return faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    except (OSError, RuntimeError) as error:
        raise IndexFileError(f"{file} cannot be read by FAISS ({error}); build the index again") from None


def _is_flat(index: faiss.Index, precision: Precision) -> bool:
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return False
    if precision == "fp32":
        return isinstance(index, faiss.IndexFlatIP)
    return isinstance(index, faiss.IndexScalarQuantizer) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16
