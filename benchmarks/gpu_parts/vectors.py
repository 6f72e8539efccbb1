"""Files of random vectors as a flat index has them, and whether there is room."""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from narrows.index.flat import FlatIndex
from narrows.index.vector_file import header
from narrows.process import available_cores

BLOCK_ROWS = 16_384
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (its files are in a folder of their own)
CGROUP = Path("/sys/fs/cgroup")
ROOM = 1.1  # of what the file takes


@dataclass(frozen=True, slots=True)
class VectorFile:
    """Normally distributed, norms about 1."""

    file: Path
    count: int
    dim: int
    max_norm: float

    def open(self) -> FlatIndex:
        """As an index whose ids ascend."""
        ranks = np.arange(self.count, dtype=np.uint32)
        return FlatIndex(self.file, ranks, self.max_norm, available_cores())

    def mapped(self) -> npt.NDArray[np.float32]:
        """The vectors, float32 (count, dim)."""
        return np.memmap(self.file, np.float32, "r", len(header(self.dim, self.count)), (self.count, self.dim))

    def half(self) -> npt.NDArray[np.float16]:
        """A copy in half precision."""
        vectors = self.mapped()
        copied = np.empty(vectors.shape, dtype=np.float16)
        with ThreadPoolExecutor(available_cores()) as pool:
            list(
                pool.map(lambda rows: np.copyto(copied[rows], vectors[rows], casting="same_kind"), _blocks(self.count))
            )
        return copied


def make(file: Path, count: int, dim: int) -> VectorFile:
    """Writes the file on all cores; the same numbers for the same size."""
    start = header(dim, count)
    with file.open("wb") as out:
        out.write(start)
        out.truncate(len(start) + 4 * count * dim)
    mapped = np.memmap(file, np.float32, "r+", len(start), (count, dim))

    def fill(rows: slice) -> float:
        block = np.random.default_rng(rows.start).standard_normal((rows.stop - rows.start, dim), dtype=np.float32)
        block *= np.float32(dim**-0.5)
        mapped[rows] = block
        return float(np.linalg.norm(block, axis=1).max())

    with ThreadPoolExecutor(available_cores()) as pool:
        max_norm = max(pool.map(fill, _blocks(count)))
    return VectorFile(file, count, dim, max_norm * 1.000_001)


def queries(count: int, dim: int) -> npt.NDArray[np.float32]:
    """Random ones, norms about 1."""
    return np.random.default_rng(7).standard_normal((count, dim), dtype=np.float32) * np.float32(dim**-0.5)


def available_memory_bytes() -> int:
    """Of the host, or of what a container may take, without swapping; the page cache counts as available."""
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    host = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    try:
        limit, used = (int((CGROUP / name).read_text("utf-8")) for name in ("memory.max", "memory.current"))
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text("utf-8").splitlines())
        return min(host, limit - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):  # no limit, or none that is told
        return host


def roomy_folder(size_bytes: float) -> Path:
    """Memory for a file of this size, where it is set up to be large enough; else the usual temporary folder."""
    if SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > size_bytes < available_memory_bytes() / 3:
        return SHARED_MEMORY
    return Path(tempfile.gettempdir())


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + BLOCK_ROWS, count)) for start in range(0, count, BLOCK_ROWS)]
