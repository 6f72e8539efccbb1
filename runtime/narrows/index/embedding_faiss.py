"""The vectors of other people's FAISS files: flat, or in an HNSW graph that keeps them whole.

The files are mapped and looked at here, not opened by FAISS: its reader for mapped files takes a last item that is cut
off for a whole one, and then crashes on what it finds behind the end. Where the vectors are has not changed since FAISS
has written such files (FAISS, impl/index_write.cpp, codes `IxFI`, `IxF2` and `IHNf`).

DPR's HNSW index has no inner product, so DPR gives each vector v one more component, sqrt(phi - |v|^2) with phi the
greatest |v|^2 of all: then the nearest by L2 are the best by inner product. It is cut off again.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrows.errors import EmbeddingFileError

BLOCK_ROWS = 4096
LENGTH_TOLERANCE = 1e-3  # of phi, which DPR computes in float32
INNER_PRODUCT, L2 = 0, 1  # FAISS's numbers for metrics
FLAT_IP, FLAT_L2, HNSW_FLAT = b"IxFI", b"IxF2", b"IHNf"
NOT_READ = {
    FLAT_L2: "an IndexFlatL2, whose vectors are compared by L2 distance, not by inner product",
    b"IHNs": "an IndexHNSWSQ, which keeps its vectors in 8 bits a component",
    b"IxPq": "an IndexPQ, which keeps its vectors in codes",
    b"IwFl": "an IndexIVFFlat",
    b"IwPQ": "an IndexIVFPQ, which keeps its vectors in codes",
    b"IxMp": "an IndexIDMap",
}
_HEADER = struct.Struct("<4siqqqBi")  # what the file holds, dimensions, count, two that are not used, trained, metric
_SIZE = struct.Struct("<Q")
_GRAPH_ARRAYS = (8, 4, 4, 8, 4)  # bytes an item: assign_probas, cum_nneighbor_per_level, levels, offsets, neighbors
_GRAPH_END = 5 * 4  # entry_point, max_level, efConstruction, efSearch, and one that is not used any more
_ADVICE = "import the embeddings that it was made of, or a flat index of them (IndexFlatIP)"

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FaissVectors:
    """The vectors of a FAISS file, mapped."""

    file: Path
    stored: Vectors  # (count, dim), or (count, dim + 1) if DPR's additional component is in it
    is_augmented: bool

    def blocks(self) -> Iterator[Vectors]:
        """Yields them in row order, float32 (up to 4096, dim), as copies.

        Raises:
            EmbeddingFileError: vectors that should have DPR's additional component do not.
        """
        phi = None
        for start in range(0, len(self.stored), BLOCK_ROWS):
            block = np.array(self.stored[start : start + BLOCK_ROWS], dtype=np.float32)
            if not self.is_augmented:
                yield block
                continue
            lengths = np.einsum("ij,ij->i", block, block, dtype=np.float64)  # |v|^2 + (phi - |v|^2)
            phi = float(lengths[0]) if phi is None else phi
            with np.errstate(invalid="ignore"):  # vectors that are not finite are found by whoever gets them
                off = np.isfinite(lengths) & ((np.abs(lengths - phi) > LENGTH_TOLERANCE * phi) | (block[:, -1] < 0))
            if off.any():
                raise EmbeddingFileError(
                    f"{self.file}: entry {start + int(off.argmax()) + 1} lacks the additional component that DPR gives "
                    f"the vectors of an HNSW index for L2 distance, so DPR did not make this index: {_ADVICE}"
                )
            yield np.ascontiguousarray(block[:, :-1])


def open_vectors(file: Path, is_dpr: bool) -> FaissVectors:
    """Opens a FAISS file; `is_dpr`: an HNSW index for L2 distance in it is one that DPR made.

    Raises:
        EmbeddingFileError: it cannot be read, is cut short, or is not of a type whose vectors are whole and for inner
            product.
    """
    try:
        with file.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise EmbeddingFileError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError:
        raise EmbeddingFileError(f"{file} is empty: copy or write it again") from None
    kind = data[:4]
    if kind not in (FLAT_IP, HNSW_FLAT):
        what = NOT_READ.get(kind, f"neither an IndexFlatIP nor an IndexHNSWFlat of FAISS (it begins with {kind!r})")
        raise EmbeddingFileError(f"{file} is {what}: {_ADVICE}")
    try:
        _, dim, count, *_, metric = _HEADER.unpack_from(data)
        stored = _flat(data, _after_graph(data) if kind == HNSW_FLAT else 0)
        if stored.shape != (count, dim):
            raise ValueError("another index's vectors")
    except (struct.error, ValueError, OverflowError):
        raise EmbeddingFileError(f"{file} is damaged or cut short: copy or write it again") from None
    is_augmented = is_dpr and metric == L2 and dim > 1
    if metric != INNER_PRODUCT and not is_augmented:
        raise EmbeddingFileError(f"{file} compares its vectors by a distance, not by inner product: {_ADVICE}")
    return FaissVectors(file, stored, is_augmented)


def _after_graph(data: mmap.mmap) -> int:
    """Where the index begins that an HNSW index keeps its vectors in."""
    at = _HEADER.size
    for item_bytes in _GRAPH_ARRAYS:
        at += _SIZE.size + _SIZE.unpack_from(data, at)[0] * item_bytes
    return at + _GRAPH_END


def _flat(data: mmap.mmap, at: int) -> Vectors:
    """The vectors, (count, dim), of the flat index that begins there."""
    kind, dim, count, *_ = _HEADER.unpack_from(data, at)
    at += _HEADER.size
    size = _SIZE.unpack_from(data, at)[0]
    if kind not in (FLAT_IP, FLAT_L2) or dim < 1 or size != count * dim:
        raise ValueError("no flat index")
    return np.frombuffer(data, "<f4", size, at + _SIZE.size).reshape(count, dim)
