"""Approximate search: an answer is whole, in order, with true scores, and the same whoever else is asking."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import IndexFileError
from narrows.index import SearchHits, filling, structures
from narrows.index.approximate import ApproximateIndex
from narrows.index.flat import FlatIndex
from narrows.index.opened import open_vectors
from narrows.index.presets import PRESETS, Plan, SearchSettings, Store, Wanted, plan
from narrows.index.progress import Progress
from narrows.index.store import HALVES, STRUCTURE, VECTORS
from narrows.index.vector_file import VectorFile, header

COUNT, DIM, QUESTIONS = 3000, 64, 70
REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=40)
CUSTOM: tuple[tuple[str, Store], ...] = (
    ("HNSW16,SQ8", "none"),
    ("HNSW16,SQ8", "fp32"),
    ("IVF16,Flat", "none"),
    ("PQ16x4fs", "fp16"),
    ("RR64,IVF16,PQ16x4fs", "fp32"),
    ("RR64,IVF16,RaBitQ", "fp16"),
    ("SQ4", "none"),
    ("IVF16_HNSW8,SQ8", "none"),
    ("IVF16,PQ32x4fs", "none"),
)
ALL = {name: Wanted(name) for name in PRESETS} | {
    f"{factory} {store}": Wanted(factory=factory, store=store) for factory, store in CUSTOM
}
STRUCTURES = [name for name in ALL if not name.startswith("flat")]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A directory of a plan's files, and what they were made of."""

    directory: Path
    plan: Plan
    vectors: Vectors
    id_rank: npt.NDArray[np.uint32]
    max_norm: float

    def open(self, search: SearchSettings | None = None, threads: int = 1) -> FlatIndex | ApproximateIndex:
        made = replace(self.plan, search=search or self.plan.search)
        return open_vectors(self.directory, made, self.vectors.shape[1], self.max_norm, self.id_rank, threads)

    def effort(self, share: float, refine: float | None = None) -> SearchSettings:
        """A search of the least (0) to the most (1) effort."""
        least = 16 if self.plan.is_graph else 1
        most = min(self.plan.most_effort, 1000)
        effort = self.plan.effort(max(least, int(most * share))) if most else ""
        return SearchSettings(effort, self.plan.search.refine if refine is None else refine)


def make(directory: Path, wanted: Wanted, vectors: Vectors) -> Case:
    """Fills a directory with `vectors`, whose ids are in random order."""
    count, dim = vectors.shape
    directory.mkdir(exist_ok=True)
    (directory / VECTORS).write_bytes(header(dim, count) + vectors.tobytes())
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    made = plan(wanted, count, dim)
    filling.fill(directory, VectorFile(directory / VECTORS, dim, count), made, max_norm, 1, Progress())
    id_rank = np.random.default_rng(1).permutation(count).astype(np.uint32)
    return Case(directory, made, vectors, id_rank, max_norm)


def clustered(count: int, seed: int) -> Vectors:
    """Vectors around 60 centers, as embeddings of passages are, of several lengths."""
    random = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((60, DIM))
    found = centers[random.integers(0, 60, count)] + 0.7 * random.standard_normal((count, DIM))
    return (found * random.uniform(0.8, 1.2, (count, 1))).astype(np.float32)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Makes the case of a name, once."""
    base, vectors = tmp_path_factory.mktemp("approximate"), clustered(COUNT, 2)

    def made(name: str) -> Case:
        factory, _, store = name.partition(" ")
        return make(base / name, ALL.get(name) or Wanted(factory=factory, store=cast(Store, store)), vectors)

    return cache(made)


@pytest.fixture(scope="module")
def queries() -> Vectors:
    return clustered(QUESTIONS, 3)


def same(one: SearchHits, other: SearchHits) -> bool:
    """Equal bit for bit."""
    return one.scores.tobytes() == other.scores.tobytes() and one.rows.tobytes() == other.rows.tobytes()


def taken(hits: SearchHits, which: list[int] | slice) -> SearchHits:
    return SearchHits(hits.scores[which], hits.rows[which])


def assert_whole(case: Case, hits: SearchHits, queries: int, k: int) -> None:
    """min(k, count) distinct hits of each query, by score, then by id."""
    assert hits.scores.shape == hits.rows.shape == (queries, min(k, len(case.vectors)))
    assert hits.scores.dtype == np.float32
    assert hits.rows.dtype == np.int64
    for scores, rows in zip(hits.scores, hits.rows, strict=True):
        assert len(set(rows.tolist())) == len(rows)
        keys = list(zip((-scores).tolist(), case.id_rank[rows].tolist(), strict=True))
        assert keys == sorted(keys)


def exact_products(vectors: Vectors, query: Vectors) -> npt.NDArray[np.float64]:
    products = vectors.astype(np.float64) * query.astype(np.float64)
    return np.array([math.fsum(row) for row in products.tolist()])


# --- who else is asking


@pytest.mark.parametrize("name", ALL)
def test_a_query_gets_the_same_in_any_company(case: Callable[[str], Case], queries: Vectors, name: str) -> None:
    alone = case(name).open()
    wanted = [alone.search(query[None], 10) for query in queries]
    order = np.random.default_rng(4).permutation(QUESTIONS)
    for threads in (1, 2):
        index = case(name).open(threads=threads)
        for size in (1, 2, 7, 33, 64):
            for which in (np.arange(QUESTIONS)[-size:], order[:size]):
                together = index.search(queries[which], 10)
                for place, query in enumerate(which):
                    assert same(taken(together, slice(place, place + 1)), wanted[query]), (threads, size, query)


# --- whole answers


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("k", [1, 10, 100, 1000, COUNT, COUNT + 1])
def test_as_many_as_are_asked_for(case: Callable[[str], Case], queries: Vectors, name: str, k: int) -> None:
    found = case(name)
    some = queries[:2]
    for share in (0, 0.5):  # few lists hold too few for a large k
        assert_whole(found, found.open(found.effort(share)).search(some, k), 2, k)


@pytest.mark.parametrize("name", [*ALL, "PQ16x4fs none"])
def test_queries_that_tell_nothing_apart(case: Callable[[str], Case], name: str) -> None:
    found = case(name)
    index = found.open(found.effort(0), threads=2)
    queries = np.outer([0, 1e-45, 1e-38, 1e-30, 1e30], np.ones(DIM)).astype(np.float32)
    for k in (1, 100, COUNT):
        hits = index.search(queries, k)
        assert_whole(found, hits, 5, k)
        assert not hits.scores[0].any()


@pytest.mark.parametrize("name", ["ivf-sq8", "ivfpq-fs", "rabitq"])
def test_a_search_of_few_lists_finds_no_more_than_one_of_more(
    case: Callable[[str], Case], queries: Vectors, name: str
) -> None:
    """Where lists hold fewer than k, ever more are searched: no leap to all of them, which tuning could not follow."""
    found = case(name)
    exact = np.sort(queries.astype(np.float64) @ found.vectors.astype(np.float64).T, axis=1)[:, -100]
    recalls = []
    for lists in (1, 2, 4, 8, 16, found.plan.lists):
        hits = found.open(SearchSettings(found.plan.effort(lists), 8)).search(queries, 100)
        products = np.einsum("qkd,qd->qk", found.vectors[hits.rows].astype(np.float64), queries.astype(np.float64))
        recalls.append(float((products >= exact[:, None] - 1e-9).mean()))
    assert all(after >= before - 0.02 for before, after in pairwise(recalls))
    assert recalls[-1] > 0.9


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_query_so_long_that_codes_overflow_harms_no_other(
    case: Callable[[str], Case], queries: Vectors, name: str
) -> None:
    index = case(name).open()
    long = queries[:1] / np.linalg.norm(queries[0]) * np.float32(1e30)
    together = index.search(np.vstack([queries[1:3], long]), 10)
    assert together.rows.shape == (3, 10)
    assert same(taken(together, [0, 1]), index.search(queries[1:3], 10))
    assert same(taken(together, [2]), index.search(long, 10))


@pytest.mark.parametrize("count", [1, 2, 17, 40])
@pytest.mark.parametrize("preset", PRESETS)
def test_few_vectors(tmp_path: Path, preset: str, count: int) -> None:
    if preset == "ivfpq-fs" and count < 16:
        with pytest.raises(IndexFileError, match=rf"cannot train IVF1,PQ16x4fs on {count} vectors .*: choose another "):
            make(tmp_path / "few", Wanted(preset), clustered(count, 5))
        return
    found = make(tmp_path / "few", Wanted(preset), clustered(count, 5))
    for k in (1, count, count + 1, 100):
        assert_whole(found, found.open().search(clustered(3, 6), k), 3, k)


@pytest.mark.parametrize("name", ALL)
def test_no_queries(case: Callable[[str], Case], name: str) -> None:
    hits = case(name).open().search(np.empty((0, DIM), dtype=np.float32), 10)
    assert hits.scores.shape == hits.rows.shape == (0, 10)


# --- scores


def held(case: Case) -> Vectors | None:
    """The vectors that scores are of; None where a structure knows only codes."""
    if case.plan.store == "fp16":
        return case.vectors.astype(np.float16).astype(np.float32)
    if case.plan.store == "fp32" or case.plan.factory.endswith("Flat"):
        return case.vectors
    return None


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("k", [10, 1500])
def test_scores_are_inner_products(case: Callable[[str], Case], queries: Vectors, name: str, k: int) -> None:
    """Of the vectors that are held, to the last bits of float32; of codes, of what these stand for."""
    found = case(name)
    vectors = held(found)
    index = found.open(found.effort(0))
    for query in queries[:3]:
        hits = index.search(query[None], k)
        rows = hits.rows[0]
        if vectors is None:
            tolerance = 0.02 if "SQ8" in name or name == "sq8" else 0.2
            vectors_found = found.vectors[rows]
        else:
            tolerance = DIM * 2.0**-23
            vectors_found = vectors[rows]
        norms = np.linalg.norm(query.astype(np.float64)) * np.linalg.norm(vectors_found.astype(np.float64), axis=1)
        errors = np.abs(hits.scores[0] - exact_products(vectors_found, query))
        assert (errors <= tolerance * norms).all()
        if vectors is not None:
            assert (index.decode(rows[:50]) == vectors_found[:50]).all()


@pytest.mark.parametrize("name", ALL)
def test_what_a_structure_decodes_is_near_what_went_in(case: Callable[[str], Case], name: str) -> None:
    found = case(name)
    index = found.open()
    rows = np.random.default_rng(7).permutation(COUNT)[:200]
    decoded, given_vectors = index.decode(rows), found.vectors[rows]
    assert decoded.shape == (200, DIM)
    assert decoded.dtype == np.float32
    cosines = (decoded * given_vectors).sum(axis=1)
    cosines /= np.linalg.norm(decoded, axis=1) * np.linalg.norm(given_vectors, axis=1)
    assert cosines.min() > (0.8 if "PQ32" in name else 0.98 if "SQ4" in name else 0.999)
    assert index.fidelity == {"fp16": "fp16", "fp32": "fp32"}.get(
        found.plan.store, "fp32" if name.startswith("hnsw") else "coded"
    )


LEAST_RECALL = {"SQ4 none": 0.85, "IVF16,PQ32x4fs none": 0.5}  # at 10, of all lists or a wide view; sq8 and finer: 0.97


@pytest.mark.parametrize("name", ALL)
def test_recall_of_a_search_that_spares_no_effort(case: Callable[[str], Case], queries: Vectors, name: str) -> None:
    found = case(name)
    exact = np.argsort(-(queries @ found.vectors.T), axis=1, kind="stable")[:, :10]
    recalls = []
    for share in (0, 1):
        rows = found.open(found.effort(share, refine=32 if found.plan.store != "none" else 1)).search(queries, 10).rows
        recalls.append(np.mean([len(set(a) & set(b)) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)]) / 10)
    assert recalls[1] >= LEAST_RECALL.get(name, 0.97)
    assert recalls[1] >= recalls[0]


# --- exact halves, and ties


@pytest.mark.parametrize("k", [1, 10, 100])
def test_flat_fp16_is_exact_over_its_vectors(case: Callable[[str], Case], queries: Vectors, k: int) -> None:
    found = case("flat-fp16")
    rounded = found.vectors.astype(np.float16).astype(np.float32)
    hits = found.open(threads=2).search(queries[:6], k)
    for number, query in enumerate(queries[:6]):
        scores = exact_products(rounded, query).astype(np.float32)
        order = sorted(range(COUNT), key=lambda row: (-scores[row], found.id_rank[row]))[:k]
        assert hits.rows[number].tolist() == order
        assert hits.scores[number].tolist() == scores[order].tolist()


@pytest.mark.parametrize("preset", PRESETS)
def test_identical_vectors_come_by_id(tmp_path: Path, preset: str) -> None:
    vectors = clustered(1000, 8)
    vectors[np.random.default_rng(9).permutation(1000)[:400]] = vectors[0] * np.float32(3)  # the best of its direction
    found = make(tmp_path / "ties", Wanted(preset), vectors)
    index = found.open(found.effort(1))
    hits = index.search(vectors[:1], 400)
    assert_whole(found, hits, 1, 400)
    best = (hits.scores[0] == hits.scores[0][0]).sum()
    if not found.plan.is_graph:  # the neighbours of one of many equal vectors lead a graph only to some of them
        assert best == 400, "equal vectors have equal scores"
    ranks = found.id_rank[hits.rows[0][:best]].tolist()
    assert ranks == sorted(ranks)
    if found.plan.is_exact:
        assert index.search(vectors[:1], 5).rows.tolist() == hits.rows[:, :5].tolist()


# --- files and parameters


@pytest.fixture(params=["hnsw", "ivf-sq8", "rabitq"])
def copy(request: pytest.FixtureRequest, case: Callable[[str], Case], tmp_path: Path) -> Case:
    """A case to damage."""
    found = case(request.param)
    for file in found.directory.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return replace(found, directory=tmp_path)


def test_files_that_are_cut_short(copy: Case) -> None:
    file = copy.directory / STRUCTURE
    data = file.read_bytes()
    for size in (0, 3, 60, len(data) // 2, len(data) - 5000):
        file.unlink()
        file.write_bytes(data[:size])
        with pytest.raises(IndexFileError, match=r"structure\.faiss cannot be read by FAISS"):
            copy.open()
    file.unlink()
    with pytest.raises(IndexFileError, match=r"structure\.faiss cannot be read by FAISS"):
        copy.open()


def test_files_of_something_else(copy: Case, case: Callable[[str], Case]) -> None:
    file = copy.directory / STRUCTURE
    with pytest.raises(IndexFileError, match=rf"structure\.faiss does not hold {COUNT} vectors of 63"):
        ApproximateIndex(file, DIM - 1, None, copy.id_rank, copy.max_norm, SearchSettings(), 1)
    with pytest.raises(IndexFileError, match=rf"structure\.faiss does not hold {COUNT - 1} vectors of 64"):
        ApproximateIndex(file, DIM, None, copy.id_rank[1:], copy.max_norm, SearchSettings(), 1)
    file.write_bytes((case("sq8").directory / STRUCTURE).read_bytes())
    with pytest.raises(IndexFileError, match="are no search parameters of this index"):
        copy.open()


def test_stored_vectors_of_another_index(case: Callable[[str], Case], tmp_path: Path) -> None:
    found = case("rabitq")
    (tmp_path / STRUCTURE).write_bytes((found.directory / STRUCTURE).read_bytes())
    (tmp_path / HALVES).write_bytes(header(DIM, COUNT - 1, "fp16") + bytes(2 * DIM * (COUNT - 1)))
    with pytest.raises(IndexFileError, match=rf"index\.fp16\.faiss .*{COUNT}"):
        replace(found, directory=tmp_path).open()


@pytest.mark.parametrize("name", STRUCTURES)
def test_parameters_that_do_not_belong(case: Callable[[str], Case], name: str) -> None:
    found = case(name)
    index = found.open()
    assert isinstance(index, ApproximateIndex)
    for parameters in ("efSearch=4" if found.plan.lists else "nprobe=4", "effort=3", "nprobe=", "nprobe=x"):
        if parameters == "efSearch=4" and "_HNSW" in name:
            continue  # FAISS takes it as the graph's over the centroids
        with pytest.raises(IndexFileError, match=f"{parameters!r} are no search parameters of this index"):
            index.use(SearchSettings(parameters))


# --- a graph of Euclidean distances


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 8))
@REPRODUCIBLE
def test_nearest_is_the_largest_inner_product(seed: int, count: int, dim: int) -> None:
    random = np.random.default_rng(seed)
    vectors = (random.standard_normal((count, dim)) * random.uniform(0, 3, (count, 1))).astype(np.float32)
    query = random.standard_normal(dim).astype(np.float32)
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    found = structures.augmented(vectors, max_norm)
    assert found.shape == (count, dim + 1)
    assert found.dtype == np.float32
    assert (found[:, :dim] == vectors).all()
    assert np.linalg.norm(found.astype(np.float64), axis=1) == pytest.approx(max_norm, rel=1e-6)
    distances = ((found.astype(np.float64) - np.append(query, 0)) ** 2).sum(axis=1)
    products = vectors.astype(np.float64) @ query
    assert distances == pytest.approx(float(query.astype(np.float64) @ query) + max_norm**2 - 2 * products, abs=1e-4)


def test_a_vector_that_is_longer_than_the_longest() -> None:
    vectors = np.array([[3, 4], [0, 1], [6, 8]], dtype=np.float32)
    found = structures.augmented(vectors, 5.0)
    assert found[:, 2].tolist() == [0, pytest.approx(math.sqrt(24)), 0]
    query = np.array([1, 0, 0])
    farther = ((found - query) ** 2).sum(axis=1) - (1 + 25 - 2 * vectors[:, 0])
    assert farther == pytest.approx([0, 0, 100 - 25], abs=1e-5)


def test_a_graph_with_vectors_that_are_too_long_scores_all_right(tmp_path: Path) -> None:
    vectors = clustered(500, 10)
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    vectors[::100] *= 4
    (tmp_path / VECTORS).write_bytes(header(DIM, 500) + vectors.tobytes())
    made = plan(Wanted("hnsw-l2"), 500, DIM)
    filling.fill(tmp_path, VectorFile(tmp_path / VECTORS, DIM, 500), made, max_norm, 1, Progress())
    found = Case(tmp_path, made, vectors, np.arange(500, dtype=np.uint32), max_norm)
    for query in clustered(3, 11):
        hits = found.open().search(query[None], 500)
        assert_whole(found, hits, 1, 500)
        assert hits.scores[0].tolist() == exact_products(vectors[hits.rows[0]], query).astype(np.float32).tolist()
