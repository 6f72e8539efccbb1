"""Filling a structure: one pass over the vectors, that can be stopped at any moment, in little memory."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from narrows.errors import IndexFileError
from narrows.index import filling
from narrows.index.filling import fill
from narrows.index.presets import PRESETS, Plan, Wanted, plan
from narrows.index.progress import Progress
from narrows.index.store import HALVES, STRUCTURE, VECTORS
from narrows.index.vector_file import VectorFile, header

COUNT, DIM = 1000, 32
STRUCTURES = [name for name in PRESETS if not name.startswith("flat")]


class Watch(Progress):
    """Notes what is told; interrupts when training begins, or so many rows are in."""

    def __init__(self, stop_at: int | None = None, stop_training: bool = False) -> None:
        self.trained: list[int] = []
        self.filled: list[int] = []
        self._stop_at, self._stop_training = stop_at, stop_training

    def training(self, rows: int) -> None:
        self.trained.append(rows)
        if self._stop_training:
            raise KeyboardInterrupt

    def filling(self, rows: int, count: int) -> None:
        assert count == COUNT
        self.filled.append(rows)
        if self._stop_at is not None and rows >= self._stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 128 vectors, saved after each."""
    monkeypatch.setattr(filling, "BLOCK_ROWS", 128)
    monkeypatch.setattr(filling, "SAVED_EVERY_S", 0.0)


def vectors_in(directory: Path, scale: float = 1.0) -> VectorFile:
    directory.mkdir(exist_ok=True)
    vectors = (np.random.default_rng(1).standard_normal((COUNT, DIM)) * scale).astype(np.float32)
    (directory / VECTORS).write_bytes(header(DIM, COUNT) + vectors.tobytes())
    return VectorFile(directory / VECTORS, DIM, COUNT)


def run(directory: Path, made: Plan, progress: Progress | None = None, threads: int = 1) -> None:
    vectors = VectorFile(directory / VECTORS, DIM, COUNT)
    norms = np.linalg.norm(vectors.read(0, COUNT).astype(np.float64), axis=1)
    fill(directory, vectors, made, float(norms.max()), threads, progress or Progress())


def planned(preset: str) -> Plan:
    return plan(Wanted(preset), COUNT, DIM)


def made_files(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


def whole(directory: Path, preset: str) -> dict[str, bytes]:
    """The files of a filling that nothing stopped."""
    vectors_in(directory)
    run(directory, planned(preset))
    return made_files(directory)


# --- going on


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("preset", STRUCTURES)
def test_a_stopped_filling_goes_on(tmp_path: Path, preset: str) -> None:
    expected = whole(tmp_path / "whole", preset)
    directory = tmp_path / "stopped"
    vectors_in(directory)
    needs_training = not planned(preset).is_graph
    trained: list[int] = []
    begun = 0
    for stop_at in (0, 128, 600, 1000):
        watch = Watch(stop_at)
        with pytest.raises(KeyboardInterrupt):
            run(directory, planned(preset), watch)
        assert watch.filled[0] == begun, "what was saved is kept"
        assert watch.filled[-1] == min(-(-stop_at // 128) * 128, COUNT)
        trained += watch.trained
        begun = max(0, min(-(-stop_at // 128) * 128, COUNT) - 128)  # the interrupt comes before the next save
        begun -= begun % 128
    watch = Watch()
    run(directory, planned(preset), watch)
    assert (watch.filled[-1], trained + watch.trained) == (COUNT, [COUNT] * needs_training), "trained once"
    found = made_files(directory)
    assert found.keys() == expected.keys()
    for name, data in expected.items():
        # FAISS draws the levels of a graph's nodes anew when it goes on.
        assert found[name] == data or (name == STRUCTURE and planned(preset).is_graph)
    assert len(found[STRUCTURE]) == pytest.approx(len(expected[STRUCTURE]), rel=0.05)
    run(directory, planned(preset), watch)
    assert made_files(directory) == found, "complete: nothing is done"


@pytest.mark.parametrize("preset", STRUCTURES)
def test_fillings_are_the_same_again(tmp_path: Path, preset: str) -> None:
    assert whole(tmp_path / "one", preset) == whole(tmp_path / "other", preset)


@pytest.mark.parametrize("preset", [name for name in STRUCTURES if not name.startswith("hnsw")])
def test_threads_change_nothing(tmp_path: Path, preset: str) -> None:
    expected = whole(tmp_path / "one", preset)
    vectors_in(tmp_path / "two")
    run(tmp_path / "two", planned(preset), threads=2)
    assert made_files(tmp_path / "two") == expected


def test_stopped_while_it_is_trained(tmp_path: Path) -> None:
    expected = whole(tmp_path / "whole", "rabitq")
    directory = tmp_path / "stopped"
    vectors_in(directory)
    with pytest.raises(KeyboardInterrupt):
        run(directory, planned("rabitq"), Watch(stop_training=True))
    assert not (directory / STRUCTURE).exists()
    run(directory, planned("rabitq"))
    assert made_files(directory) == expected


@pytest.mark.usefixtures("small_blocks")
def test_without_a_checkpoint_the_training_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filling, "SAVED_EVERY_S", 900.0)
    expected = whole(tmp_path / "whole", "ivf-sq8")
    directory = tmp_path / "stopped"
    vectors_in(directory)
    with pytest.raises(KeyboardInterrupt):
        run(directory, planned("ivf-sq8"), Watch(stop_at=900))
    watch = Watch()
    run(directory, planned("ivf-sq8"), watch)
    assert (watch.trained, watch.filled[0]) == ([], 0)
    assert made_files(directory) == expected


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("other", ["sq8", "rabitq", "hnsw"])
def test_another_plan_begins_anew(tmp_path: Path, other: str) -> None:
    directory = tmp_path / "stopped"
    vectors_in(directory)
    before = (directory / VECTORS).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(directory, planned("ivf-sq8"), Watch(stop_at=600))
    watch = Watch()
    run(directory, planned(other), watch)
    assert watch.filled[0] == 0
    assert made_files(directory) == whole(tmp_path / "whole", other)
    assert (directory / VECTORS).read_bytes() == before


@pytest.mark.usefixtures("small_blocks")
def test_a_wrong_plan_takes_nothing_away(tmp_path: Path) -> None:
    directory = tmp_path / "stopped"
    vectors_in(directory)
    with pytest.raises(KeyboardInterrupt):
        run(directory, planned("ivf-sq8"), Watch(stop_at=600))
    before = made_files(directory)
    with pytest.raises(IndexFileError, match="FAISS makes no index"):
        run(directory, Plan("custom", "bogus", "none"))
    assert made_files(directory) == before


@pytest.mark.parametrize("damage", [b"", b"{", b'{"schema_version": 9}'])
def test_a_note_that_cannot_be_read_begins_anew(tmp_path: Path, damage: bytes) -> None:
    expected = whole(tmp_path / "one", "sq8")
    (tmp_path / "one" / "filling.json").write_bytes(damage)
    (tmp_path / "one" / STRUCTURE).write_bytes(b"what is it of?")
    run(tmp_path / "one", planned("sq8"))
    assert made_files(tmp_path / "one") == expected


# --- what goes in


def test_halves_are_the_vectors_rounded(tmp_path: Path) -> None:
    vectors = vectors_in(tmp_path)
    run(tmp_path, planned("flat-fp16"))
    assert set(made_files(tmp_path)) == {VECTORS, HALVES}
    data = (tmp_path / HALVES).read_bytes()
    assert data == header(DIM, COUNT, "fp16") + vectors.read(0, COUNT).astype("<f2").tobytes()
    halves = VectorFile(tmp_path / HALVES, DIM, COUNT, "fp16")
    assert (halves.read(10, 20) == vectors.read(10, 20).astype(np.float16)).all()


@pytest.mark.parametrize("preset", PRESETS)
def test_norms_beyond_half_precision(tmp_path: Path, preset: str) -> None:
    vectors_in(tmp_path, scale=20_000)  # norms of some 113,000
    if planned(preset).store != "fp16":
        run(tmp_path, planned(preset))
        return
    with pytest.raises(IndexFileError, match=r"longest vector has the norm .*beyond half precision's 65504: choose"):
        run(tmp_path, planned(preset))
    assert set(made_files(tmp_path)) == {VECTORS}


def test_vectors_that_end_too_early(tmp_path: Path) -> None:
    vectors = vectors_in(tmp_path)
    data = (tmp_path / VECTORS).read_bytes()
    (tmp_path / VECTORS).write_bytes(data[:-1])
    for preset in ("sq8", "flat-fp16"):
        with pytest.raises(IndexFileError, match=rf"ends before its {COUNT} vectors of {DIM}"):
            fill(tmp_path, vectors, planned(preset), 9.0, 1, Progress())
    assert not (tmp_path / HALVES).exists()


def test_a_sample_is_of_distinct_rows(tmp_path: Path) -> None:
    vectors = vectors_in(tmp_path)
    every = vectors.read(0, COUNT)
    sample = vectors.sample(100, seed=3)
    rows = [int(np.flatnonzero((every == vector).all(axis=1))[0]) for vector in sample]
    assert rows == sorted(set(rows))
    assert rows[-1] > 500
    assert (sample == vectors.sample(100, seed=3)).all()
    assert not (sample == vectors.sample(100, seed=4)).all()
    assert (vectors.sample(COUNT + 1, seed=3) == every).all()


def test_a_graph_of_centroids_puts_every_vector_into_its_list(tmp_path: Path) -> None:
    vectors = vectors_in(tmp_path).read(0, COUNT)
    run(tmp_path, Plan("", "IVF256_HNSW8,Flat", "none"))
    lists: Any = faiss.read_index(str(tmp_path / STRUCTURE))
    centroids = faiss.downcast_index(lists.quantizer).reconstruct_n(0, 256)
    nearest = (vectors @ centroids.T).argmax(axis=1)
    stored = [
        faiss.rev_swig_ptr(lists.invlists.get_ids(number), lists.invlists.list_size(number)) for number in range(256)
    ]
    assert sum(np.isin(np.flatnonzero(nearest == number), rows).sum() for number, rows in enumerate(stored)) == COUNT


# --- memory


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from narrows.index.filling import fill
from narrows.index.presets import Plan
from narrows.index.progress import Progress
from narrows.index.vector_file import VectorFile, header
import faiss

faiss.omp_set_num_threads(1)
directory, count, dim, more_bytes = Path(sys.argv[1]), *map(int, sys.argv[2:])
block = np.random.default_rng(0).standard_normal((100_000, dim)).astype(np.float32)
with (directory / "index.faiss").open("wb") as out:
    out.write(header(dim, count))
    for start in range(0, count, len(block)):
        out.write(block.tobytes())
max_norm = float(np.linalg.norm(block, axis=1).max())
plan = Plan("ivfpq-fs", "IVF64,PQ8x4fs", "fp16")
few = directory / "few"  # libraries take their own memory when they are used first
few.mkdir()
(few / "index.faiss").write_bytes(header(dim, 5000) + block[:5000].tobytes())
fill(few, VectorFile(few / "index.faiss", dim, 5000), plan, max_norm, 1, Progress())
del block
used_pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = used_pages * resource.getpagesize() + more_bytes
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
fill(directory, VectorFile(directory / "index.faiss", dim, count), plan, max_norm, 1, Progress())
try:
    bytearray(int(sys.argv[2]) * dim * 4)
except MemoryError:
    print("filled, and the vectors would not have fitted")
"""


def test_memory_holds_the_structure_and_not_the_vectors(tmp_path: Path) -> None:
    count, dim = 1_000_000, 32
    arguments = [str(tmp_path), str(count), str(dim), str(80 * 2**20)]
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        assert done.returncode == 0, done.stderr
        assert "the vectors would not have fitted" in done.stdout
        assert (tmp_path / VECTORS).stat().st_size > 120 * 2**20
        assert (tmp_path / STRUCTURE).stat().st_size < 30 * 2**20
        halves: npt.NDArray[np.float32] = VectorFile(tmp_path / HALVES, dim, count, "fp16").read(count - 1, count)
        assert halves.any()
    finally:
        for name in (VECTORS, HALVES, STRUCTURE):  # large ones
            (tmp_path / name).unlink(missing_ok=True)
