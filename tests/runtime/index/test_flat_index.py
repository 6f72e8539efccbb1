"""Exact search: the right scores in the right order, the same whoever else is asking."""

import math
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import IndexFileError
from narrows.index import SearchHits
from narrows.index.flat import FlatIndex
from narrows.index.vector_file import header

Vectors = npt.NDArray[np.float32]
REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=40)


@dataclass(frozen=True)
class Case:
    """Vectors, the index of them, and the places of their ids."""

    vectors: Vectors
    id_rank: npt.NDArray[np.uint32]
    file: Path
    max_norm: float

    def open(self, threads: int = 2) -> FlatIndex:
        return FlatIndex(self.file, self.id_rank, self.max_norm, threads)


def make(directory: Path, vectors: Vectors, seed: int = 0) -> Case:
    """Writes an index of `vectors` whose ids are in random order."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    directory.mkdir(exist_ok=True)
    faiss.write_index(index, str(directory / "index.faiss"))
    id_rank = np.random.default_rng(seed).permutation(len(vectors)).astype(np.uint32)
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    return Case(vectors, id_rank, directory / "index.faiss", max_norm)


def expected(case: Case, query: Vectors, k: int) -> tuple[list[float], list[int]]:
    """The oracle: exact inner products (fsum of exact float64 products), rounded to float32; then by id."""
    products = case.vectors.astype(np.float64) * query.astype(np.float64)
    scores = np.array([math.fsum(row) for row in products.tolist()]).astype(np.float32)
    order = sorted(range(len(scores)), key=lambda row: (-scores[row], case.id_rank[row]))[:k]
    return scores[order].tolist(), order


def assert_exact(case: Case, queries: Vectors, k: int) -> None:
    hits = case.open().search(queries, k)
    assert hits.scores.dtype == np.float32
    assert hits.rows.dtype == np.int64
    assert hits.scores.shape == hits.rows.shape == (len(queries), min(k, len(case.vectors)))
    for number, query in enumerate(queries):
        scores, rows = expected(case, query, k)
        assert hits.scores[number].tolist() == scores
        assert hits.rows[number].tolist() == rows


def same(one: SearchHits, other: SearchHits) -> bool:
    """Equal bit for bit."""
    return one.scores.tobytes() == other.scores.tobytes() and one.rows.tobytes() == other.rows.tobytes()


# --- exactness


def test_thousands_of_identical_vectors_at_the_cut(tmp_path: Path) -> None:
    random = np.random.default_rng(11)
    vectors = random.standard_normal((20_000, 8)).astype(np.float32)
    vectors[random.choice(20_000, 9000, replace=False)] = vectors[0]  # more than fetched candidates may be
    case = make(tmp_path, vectors)
    for query in (vectors[:1], np.zeros((1, 8), dtype=np.float32), np.full((1, 8), 1e-45, dtype=np.float32)):
        assert_exact(case, query, 30)


@pytest.mark.parametrize("dim", [1, 7, 64, 384])
@pytest.mark.parametrize("unit", [False, True])
def test_random_vectors(tmp_path: Path, dim: int, unit: bool) -> None:
    random = np.random.default_rng(dim)
    vectors = random.standard_normal((2000, dim)).astype(np.float32)
    if unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # dim 1: nothing but ties
    queries = random.standard_normal((6, dim)).astype(np.float32)
    case = make(tmp_path, vectors)
    for k in (1, 10, 100):
        assert_exact(case, queries, k)


@pytest.mark.parametrize("count", [1, 2, 15, 40])
@pytest.mark.parametrize("k", [1, 24, 39, 40, 41, 1000])
def test_k_around_and_beyond_the_count(tmp_path: Path, count: int, k: int) -> None:
    random = np.random.default_rng(3)
    case = make(tmp_path, random.standard_normal((count, 16)))
    assert_exact(case, random.standard_normal((3, 16)).astype(np.float32), k)


def test_identical_vectors_are_ranked_by_id(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    vectors = np.repeat(random.standard_normal((1, 64)), 500, axis=0)
    case = make(tmp_path, vectors)
    query = random.standard_normal((1, 64)).astype(np.float32)
    hits = case.open().search(query, 5)
    assert case.id_rank[hits.rows[0]].tolist() == [0, 1, 2, 3, 4]
    assert_exact(case, query, 5)


def test_groups_of_identical_vectors(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    vectors = random.permutation(np.repeat(random.standard_normal((8, 32)), 200, axis=0))
    case = make(tmp_path, vectors)
    for k in (1, 150, 200, 201, 350):
        assert_exact(case, random.standard_normal((4, 32)).astype(np.float32), k)


def test_a_query_of_zeros_gives_the_lowest_ids(tmp_path: Path) -> None:
    case = make(tmp_path, np.random.default_rng(6).standard_normal((700, 8)))
    hits = case.open().search(np.zeros((1, 8), dtype=np.float32), 9)
    assert case.id_rank[hits.rows[0]].tolist() == list(range(9))
    assert_exact(case, np.zeros((1, 8), dtype=np.float32), 9)


def test_scores_that_are_all_negative(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    case = make(tmp_path, -np.abs(random.standard_normal((600, 24))))
    assert_exact(case, np.abs(random.standard_normal((3, 24))).astype(np.float32), 20)


@pytest.fixture(scope="module")
def near_ties(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One vector, 1500 times, with some components moved by a unit in the last place."""
    random = np.random.default_rng(8)
    base = random.standard_normal(384).astype(np.float32)
    steps = random.integers(-1, 2, (1500, 384)).astype(np.float32)
    return make(tmp_path_factory.mktemp("near-ties"), np.nextafter(base, base + steps))


@pytest.fixture(scope="module")
def queries() -> Vectors:
    return np.random.default_rng(9).standard_normal((8, 384)).astype(np.float32)


def test_near_ties_are_ranked_right_where_faiss_alone_is_wrong(near_ties: Case, queries: Vectors) -> None:
    assert_exact(near_ties, queries, 10)
    plain = faiss.read_index(str(near_ties.file))
    scores, rows = plain.search(queries, 10)
    wanted = [expected(near_ties, query, 10) for query in queries]
    assert any(rows[number].tolist() != wanted[number][1] for number in range(8))
    assert any(scores[number].tolist() != wanted[number][0] for number in range(8))


# --- independence


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """400 vectors, each 50 times with components moved by a unit in the last place: so many that FAISS uses BLAS."""
    random = np.random.default_rng(15)
    base = np.repeat(random.standard_normal((400, 64)).astype(np.float32), 50, axis=0)
    steps = random.integers(-1, 2, base.shape).astype(np.float32)
    return make(tmp_path_factory.mktemp("groups"), random.permutation(np.nextafter(base, base + steps)))


@pytest.fixture(scope="module")
def short_queries() -> Vectors:
    return np.random.default_rng(16).standard_normal((64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def answers(groups: Case, short_queries: Vectors) -> dict[int, list[SearchHits]]:
    """For each k, what each query gets alone."""
    index = groups.open()
    return {k: [index.search(query[None], k) for query in short_queries] for k in (1, 10, 100)}


def test_the_groups_are_searched_right(groups: Case, short_queries: Vectors) -> None:
    assert_exact(groups, short_queries[:3], 60)


def test_faiss_alone_depends_on_the_batch(groups: Case, short_queries: Vectors) -> None:
    """Without this the next tests could not fail."""
    plain = faiss.read_index(str(groups.file))
    scores, rows = plain.search(short_queries, 10)
    alone = [plain.search(query[None], 10) for query in short_queries]
    assert any(alone[number][0][0].tolist() != scores[number].tolist() for number in range(64))
    assert any(alone[number][1][0].tolist() != rows[number].tolist() for number in range(64))


@given(batch=st.lists(st.integers(0, 63), min_size=2, max_size=64), k=st.sampled_from([1, 10, 100]))
@REPRODUCIBLE
def test_a_query_gets_the_same_in_any_batch(
    groups: Case, short_queries: Vectors, answers: dict[int, list[SearchHits]], batch: list[int], k: int
) -> None:
    together = groups.open().search(short_queries[batch], k)
    for place, query in enumerate(batch):
        assert same(answers[k][query], SearchHits(together.scores[place], together.rows[place]))


def test_every_batch_size(groups: Case, short_queries: Vectors, answers: dict[int, list[SearchHits]]) -> None:
    index = groups.open()
    for size in range(2, 65):
        together = index.search(short_queries[64 - size :], 10)
        for place in range(size):
            wanted = answers[10][64 - size + place]
            assert same(wanted, SearchHits(together.scores[place], together.rows[place]))


def test_number_of_threads_changes_nothing(
    groups: Case, short_queries: Vectors, answers: dict[int, list[SearchHits]]
) -> None:
    for threads in (1, 2, 3, 4):
        index = groups.open(threads)
        together = index.search(short_queries, 10)
        for place, query in enumerate(short_queries):
            assert same(answers[10][place], SearchHits(together.scores[place], together.rows[place]))
            assert same(answers[10][place], index.search(query[None], 10))


def test_order_in_memory_changes_nothing(groups: Case, short_queries: Vectors) -> None:
    index = groups.open()
    wanted = index.search(short_queries, 10)
    assert same(index.search(np.asfortranarray(short_queries), 10), wanted)
    turned = index.search(short_queries[::-1], 10)
    assert same(SearchHits(turned.scores[::-1], turned.rows[::-1]), wanted)


@given(small=st.integers(1, 60), more=st.integers(0, 300), query=st.integers(0, 63))
@REPRODUCIBLE
def test_a_larger_k_goes_on_where_a_smaller_ends(
    groups: Case, short_queries: Vectors, small: int, more: int, query: int
) -> None:
    index = groups.open()
    first, longer = (index.search(short_queries[query][None], k) for k in (small, small + more))
    assert same(first, SearchHits(longer.scores[:, :small], longer.rows[:, :small]))


def test_k_goes_on_to_the_very_last(near_ties: Case, queries: Vectors) -> None:
    index = near_ties.open()
    everything = index.search(queries[:2], 1500)
    for k in (1, 5, 400, 1483, 1484, 1499):
        first = index.search(queries[:2], k)
        assert same(first, SearchHits(everything.scores[:, :k], everything.rows[:, :k]))


def test_no_queries(near_ties: Case) -> None:
    hits = near_ties.open().search(np.empty((0, 384), dtype=np.float32), 10)
    assert hits.scores.shape == hits.rows.shape == (0, 10)


# --- files


def test_what_an_index_says_of_itself(near_ties: Case) -> None:
    index = near_ties.open()
    assert (index.count, index.dim, index.affinity, index.max_norm) == (1500, 384, "own", near_ties.max_norm)


@pytest.mark.parametrize(("count", "dim"), [(1, 1), (5, 64), (300, 768)])
def test_header_and_vectors_are_the_file_that_faiss_writes(tmp_path: Path, count: int, dim: int) -> None:
    vectors = np.random.default_rng(16).standard_normal((count, dim)).astype(np.float32)
    index = faiss.IndexFlatIP(dim)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    assert header(dim, count) + vectors.tobytes() == (tmp_path / "index.faiss").read_bytes()


def test_truncated_file(tmp_path: Path) -> None:
    case = make(tmp_path, np.random.default_rng(11).standard_normal((300, 16)))
    data = case.file.read_bytes()
    # FAISS's mapped reader crashes at 25 to 31 bytes, inside the header: only the hashes of open_index guard there.
    for size in (0, 3, 4, 10, 45, 46, 100, len(data) // 2, len(data) - 4, len(data) - 1):
        case.file.unlink()
        case.file.write_bytes(data[:size])
        with pytest.raises(IndexFileError, match=r"index\.faiss cannot be read by FAISS"):
            case.open()


def test_file_of_something_else(tmp_path: Path) -> None:
    case = make(tmp_path, np.random.default_rng(12).standard_normal((300, 16)))
    case.file.write_bytes(b"PK\x03\x04 this is no index" * 100)
    with pytest.raises(IndexFileError, match="cannot be read by FAISS"):
        case.open()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(IndexFileError, match="cannot be read by FAISS"):
        FlatIndex(tmp_path / "none", np.zeros(1, dtype=np.uint32), 1.0, 1)


@pytest.mark.parametrize("count", [0, 299, 301])
def test_another_number_of_passages(tmp_path: Path, count: int) -> None:
    case = make(tmp_path, np.random.default_rng(13).standard_normal((300, 16)))
    with pytest.raises(IndexFileError, match=f"is not a flat inner-product index of {count} vectors"):
        FlatIndex(case.file, np.arange(count, dtype=np.uint32), case.max_norm, 1)


@pytest.mark.parametrize("factory", ["L2", "SQ8", "HNSW"])
def test_another_kind_of_index(tmp_path: Path, factory: str) -> None:
    vectors = np.random.default_rng(14).standard_normal((300, 16)).astype(np.float32)
    metric = faiss.METRIC_L2 if factory == "L2" else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(16, {"L2": "Flat", "HNSW": "HNSW8"}.get(factory, factory), metric)
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "index.faiss"))
    with pytest.raises(IndexFileError, match="is not a flat inner-product index of 300 vectors"):
        FlatIndex(tmp_path / "index.faiss", np.arange(300, dtype=np.uint32), 1.0, 1)


def test_a_search_copies_its_candidates_alone(tmp_path: Path) -> None:
    """The vectors are not aligned in the mapped file, so that some of NumPy's functions would copy all of them."""
    random = np.random.default_rng(17)
    case = make(tmp_path, random.standard_normal((40_000, 64)))
    index, query = case.open(), random.standard_normal((1, 64)).astype(np.float32)
    index.search(query, 10)
    tracemalloc.start()
    try:
        index.search(query, 10)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < case.vectors.nbytes / 10
