"""Candidates in half precision, as a GPU gives them: the answers are those of the float32 vectors all the same."""

import numpy as np
import numpy.typing as npt
import pytest
from half import Half
from hypothesis import given, settings
from hypothesis import strategies as st
from test_flat_index import Case, make, same

from narrows.errors import DeviceError
from narrows.index.candidates import CpuCandidates, error_bound
from narrows.index.flat import FlatIndex
from narrows.index.gpu import bytes_needed, storage

Vectors = npt.NDArray[np.float32]
REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=60)


def with_half(case: Case, max_fetch: int = 2048) -> tuple[FlatIndex, Half]:
    index, half = case.open(), Half(case.vectors, max_fetch)
    index.ask_first(half)
    return index, half


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Case:
    random = np.random.default_rng(0)
    return make(tmp_path_factory.mktemp("spread"), random.standard_normal((4000, 64)))


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Groups of 40 vectors that half precision cannot tell apart."""
    random = np.random.default_rng(1)
    base = np.repeat(random.standard_normal((100, 64)), 40, axis=0)
    return make(tmp_path_factory.mktemp("crowded"), base * (1 + 1e-6 * random.standard_normal(base.shape)))


@pytest.mark.parametrize("k", [1, 10, 100, 2500])
@pytest.mark.parametrize("which", ["spread", "crowded"])
def test_the_answers_are_those_of_float32(which: str, k: int, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(which)
    queries = np.random.default_rng(2).standard_normal((70, 64)).astype(np.float32)  # several threads re-score so many
    index, half = with_half(case)
    assert same(index.search(queries, k), case.open().search(queries, k))
    assert bool(half.asked) == (k < 2048)


def test_half_precision_alone_would_give_other_answers(crowded: Case) -> None:
    """Without this the test above could not fail."""
    queries = np.random.default_rng(2).standard_normal((20, 64)).astype(np.float32)
    _, rows = Half(crowded.vectors).search(queries, 10)
    assert (rows != crowded.open().search(queries, 10).rows).any()


def test_one_round_is_enough_where_scores_are_spread(spread: Case) -> None:
    queries = np.random.default_rng(3).standard_normal((50, 64)).astype(np.float32)
    index, half = with_half(spread)
    index.search(queries, 10)
    assert half.asked[0] == (50, 26)
    assert sum(queries for queries, _ in half.asked[1:]) <= 5  # few are asked again


def test_what_the_card_cannot_decide_the_cpu_does(crowded: Case) -> None:
    queries = np.random.default_rng(4).standard_normal((3, 64)).astype(np.float32)
    index, half = with_half(crowded, max_fetch=30)
    assert same(index.search(queries, 10), crowded.open().search(queries, 10))
    assert [fetch for _, fetch in half.asked] == [26, 30]


@pytest.mark.parametrize("scale", [1e5, 1e-7, 1e-30])
def test_queries_beyond_half_precision(spread: Case, scale: float) -> None:
    """Too large: they become infinite, and no score is a number. Too small: they become zero, and all scores do."""
    queries = (np.random.default_rng(5).standard_normal((4, 64)) * scale).astype(np.float32)
    index, _ = with_half(spread)
    assert same(index.search(queries, 10), spread.open().search(queries, 10))


@given(
    exponents=st.tuples(st.integers(-9, 3), st.integers(-9, 3)),
    dim=st.sampled_from([1, 8, 384, 768]),
    seed=st.integers(0, 2**16),
)
@REPRODUCIBLE
def test_no_error_is_beyond_the_bound(exponents: tuple[int, int], dim: int, seed: int) -> None:
    """Random signs and sizes, tiny ones among them, which half precision rounds to multiples of 2^-24."""
    random = np.random.default_rng(seed)
    query, *vectors = (random.standard_normal((21, dim)) * 10.0 ** random.uniform(-3, 0, (21, dim))).astype(np.float32)
    query, rows = query * np.float32(10.0 ** exponents[0]), np.array(vectors) * np.float32(10.0 ** exponents[1])
    exact = (rows.astype(np.float64) * query).sum(axis=1)
    half = rows.astype(np.float16).astype(np.float32) @ query.astype(np.float16).astype(np.float32)
    norms = [float(np.linalg.norm(values.astype(np.float64))) for values in (query, *rows)]
    assert (np.abs(half - exact) <= error_bound("fp16", dim, norms[0], max(norms[1:]))).all()
    assert (np.abs(rows @ query - exact) <= error_bound("fp32", dim, norms[0], max(norms[1:]))).all()


def test_the_bound_is_of_use() -> None:
    """For vectors of length one, a thousandth: the differences between neighbours' scores are of that size or more."""
    assert 5e-4 < error_bound("fp16", 768, 1.0, 1.0) < 2e-3
    assert error_bound("fp32", 768, 1.0, 1.0) < 1e-4


def test_memory_on_the_card() -> None:
    """10^7 x 768: 14.3 GiB in half precision, twice that in single, and a little for norms and for adding."""
    assert 14.3 < bytes_needed(10_000_000, 768, "fp16") / 2**30 < 14.8
    assert 28.6 < bytes_needed(10_000_000, 768, "fp32") / 2**30 < 29.1


def test_where_faiss_sees_no_gpu_vectors_stay_with_the_cpu_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("narrows.index.gpu.faiss_sees", lambda gpu: gpu == 1)
    assert storage("auto", 0, 1.0) is None
    assert storage("off", 1, 1.0) is None
    with pytest.raises(DeviceError, match=r"does not see GPU 0: .*narrows\[gpu\]', or .*--gpu-vectors off"):
        storage("fp16", 0, 1.0)
    assert (storage("auto", 1, 1.0), storage("fp32", 1, 1.0), storage("fp16", 1, 1e6)) == ("fp16", "fp32", "fp16")
    assert storage("auto", 1, 1e6) == "fp32"  # beyond half precision


@pytest.mark.parametrize("k", [490, 600, 1000, 2000])
def test_the_card_gives_all_that_it_can_before_the_cpu_is_asked(
    crowded: Case, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    scan = CpuCandidates.search
    monkeypatch.setattr(CpuCandidates, "search", lambda cpu, *given: asked.append(given[1]) or scan(cpu, *given))
    queries = np.random.default_rng(6).standard_normal((5, 64)).astype(np.float32)
    index, half = with_half(crowded)
    index.search(queries, k)
    fetched = [fetch for _, fetch in half.asked]
    assert fetched == sorted(fetched)
    assert not asked or fetched[-1] == half.max_fetch
