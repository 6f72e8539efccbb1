"""Tuning: the recall that is asked for is measured on questions that took no part; a miss is an error that helps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from narrows.bundle import Bundle
from narrows.errors import IndexFileError
from narrows.index import filling
from narrows.index.approximate import ApproximateIndex
from narrows.index.flat import FlatIndex
from narrows.index.opened import open_index, open_vectors
from narrows.index.presets import Plan, SearchSettings, Wanted, plan
from narrows.index.progress import Progress
from narrows.index.store import VECTORS, Recall, read_manifest
from narrows.index.tuning import Exam, Tuning, measured
from narrows.index.vector_file import VectorFile, header
from narrows_export import corpus
from narrows_tools.cli.main import main

COUNT, DIM = 3000, 32
Vectors = npt.NDArray[np.float32]
Made = tuple[ApproximateIndex | FlatIndex, Plan, FlatIndex]


def random_vectors(count: int, seed: int) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)


def make(directory: Path, wanted: Wanted, vectors: Vectors) -> Made:
    """An index as it will be served, its plan, and the exact one."""
    count = len(vectors)
    (directory / VECTORS).write_bytes(header(DIM, count) + vectors.tobytes())
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    made = plan(wanted, count, DIM)
    filling.fill(directory, VectorFile(directory / VECTORS, DIM, count), made, max_norm, 1, Progress())
    id_rank = np.arange(count, dtype=np.uint32)
    exact = FlatIndex(directory / VECTORS, id_rank, max_norm, 1)
    return open_vectors(directory, made, DIM, max_norm, id_rank, 1), made, exact


def measure(made: Made, queries: Vectors, tuning: Tuning) -> tuple[SearchSettings, Recall]:
    index, planned, exact = made
    return measured(index, planned, Exam.of(exact, queries, tuning.k), tuning, lambda step: None)


def share_found(made: Made, queries: Vectors, k: int) -> float:
    """Recall, counted by rows: random vectors have no ties."""
    index, _, exact = made
    pairs = zip(index.search(queries, k).rows.tolist(), exact.search(queries, k).rows.tolist(), strict=True)
    return float(np.mean([len(set(found) & set(wanted)) / k for found, wanted in pairs]))


# --- the target


@pytest.mark.parametrize("preset", ["sq8", "hnsw", "hnsw-l2", "ivf-sq8", "ivfpq-fs", "rabitq"])
def test_the_target_is_reached_by_questions_that_took_no_part(tmp_path: Path, preset: str) -> None:
    made = make(tmp_path, Wanted(preset), random_vectors(COUNT, 1))
    queries = random_vectors(200, 2)
    settings, recall = measure(made, queries, Tuning([], k=10, target=0.9, cpu="a cpu"))
    assert (recall.k, recall.target, recall.questions, recall.tuned_on, recall.cpu) == (10, 0.9, 100, 100, "a cpu")
    assert 0.9 <= recall.recall <= 1
    assert 0 < recall.p50_ms <= recall.p99_ms
    index = made[0]
    assert isinstance(index, ApproximateIndex)
    assert index.settings == settings, "it searches as it was measured"
    assert share_found(made, queries[1::2], 10) == pytest.approx(recall.recall, abs=1e-9)


def test_a_higher_target_takes_more_effort(tmp_path: Path) -> None:
    made = make(tmp_path, Wanted("ivf-sq8"), random_vectors(COUNT, 1))
    efforts = []
    for target in (0.3, 0.7, 0.95):
        settings, _ = measure(made, random_vectors(200, 2), Tuning([], k=10, target=target))
        efforts.append(int(settings.parameters.removeprefix("nprobe=")))
    assert efforts == sorted(set(efforts))
    index, planned, _ = made
    assert isinstance(index, ApproximateIndex)
    index.use(SearchSettings(planned.effort(efforts[1] // 2), 1))
    assert share_found(made, random_vectors(200, 2), 10) < 0.7, "half of the effort is not enough"


def test_a_graph_that_a_small_view_leaves_short(tmp_path: Path) -> None:
    made = make(tmp_path, Wanted(factory="HNSW4,Flat"), random_vectors(COUNT, 1))
    queries = random_vectors(100, 2)
    index, planned, _ = made
    assert isinstance(index, ApproximateIndex)
    index.use(SearchSettings(planned.effort(16)))
    assert share_found(made, queries, 100) < 0.85
    settings, recall = measure(made, queries, Tuning([], k=100, target=0.95))
    assert recall.recall >= 0.95
    assert int(settings.parameters.removeprefix("efSearch=")) > 116


def test_the_best_alone_is_found_now_and_then(tmp_path: Path) -> None:
    """With few questions and k = 1, twice the lists may find no more, and four times as many may."""
    vectors = random_vectors(2048, 3)
    made = make(tmp_path, Wanted(factory="IVF32,Flat"), vectors)
    index, planned, exact = made
    assert isinstance(index, ApproximateIndex)
    best = exact.search(queries := random_vectors(400, 4), 1).rows[:, 0]

    def found_with(lists: int) -> npt.NDArray[np.bool_]:
        index.use(SearchSettings(planned.effort(lists)))
        rows: npt.NDArray[np.int64] = index.search(queries, 1).rows[:, 0]
        return np.equal(rows, best)

    near, far = found_with(1), ~found_with(4)
    chosen = np.concatenate([np.flatnonzero(near)[:10], np.flatnonzero(far)[:10]])
    mixed = queries[np.repeat(chosen, 2)]  # as many of each in both halves
    settings, recall = measure(made, mixed, Tuning([], k=1, target=1.0))
    assert recall.recall == 1
    assert int(settings.parameters.removeprefix("nprobe=")) > 4


# --- counting


def test_equal_scores_at_the_cut_count_as_found(tmp_path: Path) -> None:
    vectors = random_vectors(2000, 5)
    vectors[1000:] = vectors[:1000]  # each twice: at an odd k, one of two is cut off
    vectors[:400] = vectors[0] * np.float32(2)
    vectors[1000:1400] = vectors[0]
    made = make(tmp_path, Wanted("ivf-sq8"), vectors)
    _, recall = measure(made, vectors[:40], Tuning([], k=15, target=0.0))
    assert recall.tuned_on == 0
    index, planned, exact = made
    assert isinstance(index, ApproximateIndex)
    index.use(SearchSettings(planned.effort(planned.most_effort)))
    exam = Exam.of(exact, vectors[:1], 15)
    rows = index.search(vectors[:1], 15).rows[0]
    assert (exam.recalls(index) == [1.0]).all()
    assert len(set(vectors[rows][:, 0].tolist())) == 1


def test_recall_of_the_exact_index_is_whole(tmp_path: Path) -> None:
    index, planned, exact = make(tmp_path, Wanted("flat"), random_vectors(300, 1))
    settings, recall = measure((index, planned, exact), random_vectors(7, 2), Tuning([], k=100, target=1.0))
    assert (settings, recall.recall, recall.questions, recall.tuned_on) == (planned.search, 1.0, 7, 0)


def test_k_beyond_the_count(tmp_path: Path) -> None:
    made = make(tmp_path, Wanted("rabitq"), random_vectors(60, 1))
    _, recall = measure(made, random_vectors(20, 2), Tuning([], k=100, target=1.0))
    assert (recall.k, recall.recall) == (60, 1.0)


# --- misses


def test_a_target_out_of_reach_names_the_highest(tmp_path: Path) -> None:
    made = make(tmp_path, Wanted(factory="PQ8x4fs"), random_vectors(COUNT, 1))
    queries = random_vectors(100, 2)
    highest = share_found(made, queries[::2], 10)
    assert highest < 0.5
    with pytest.raises(IndexFileError, match=rf"no search of PQ8x4fs surely reaches .*highest was {highest:.4f}\. Ask"):
        measure(made, queries, Tuning([], k=10, target=0.9))


def test_a_target_that_only_the_questions_reach_which_tune(tmp_path: Path) -> None:
    """The even ones lie where two lists are enough, the odd ones between many."""
    centers = 8 * random_vectors(16, 5)
    vectors = np.concatenate([center + random_vectors(128, number) for number, center in enumerate(centers)])
    made = make(tmp_path, Wanted(factory="IVF64,Flat"), vectors)
    easy, hard = centers[np.arange(60) % 16], 0.3 * random_vectors(60, 7)
    queries = np.stack([easy, hard], axis=1).reshape(-1, DIM)
    with pytest.raises(IndexFileError, match=r"recall at 10 is 0\.\d+ on 60 questions, below 0\.95, though 60 others"):
        measure(made, queries, Tuning([], k=10, target=0.95))


def test_a_target_that_rounded_vectors_miss(tmp_path: Path) -> None:
    """flat-fp16 has nothing to tune: all questions measure it."""
    vectors = random_vectors(1, 1) + 1e-4 * random_vectors(COUNT, 2)  # nearer to one another than half precision tells
    made = make(tmp_path, Wanted("flat-fp16"), vectors)
    with pytest.raises(IndexFileError, match=r"recall at 10 is 0\.\d+ on 40 questions, below 0\.99$"):
        measure(made, random_vectors(40, 3), Tuning([], k=10, target=0.99))


def test_too_few_questions(tmp_path: Path) -> None:
    made = make(tmp_path, Wanted("sq8"), random_vectors(300, 1))
    with pytest.raises(IndexFileError, match="19 questions are too few to tune with; give 20"):
        measure(made, random_vectors(19, 2), Tuning([], k=10, target=0.5))
    _, recall = measure(made, random_vectors(19, 2), Tuning([], k=10))
    assert recall.questions == 19


# --- the command line


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Words of the passages, a line each."""
    lines = [" ".join(passage.text.split()[:6]) for passage in corpus.passages("en")][:60]
    file = tmp_path / "questions.txt"
    twice = [line for line in lines for _ in range(2)]  # what stands there twice counts once
    file.write_text("\n".join(twice) + "\n\n", "utf-8-sig")
    return file


@pytest.fixture
def convert(small_bundle: Bundle, small_index: Path, tmp_path: Path) -> Callable[..., int]:
    def run(*flags: object) -> int:
        fixed = ["--bundle", small_bundle.path, "--out", tmp_path / "x.index", "--threads", "1"]
        return main(list(map(str, ["index", "convert", small_index, *fixed, *flags])))

    return run


def test_cli_tunes_and_serves_what_it_tuned(
    tmp_path: Path,
    convert: Callable[..., int],
    small_bundle: Bundle,
    questions: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--preset", "ivf-sq8", "--questions", questions, "--target-recall", "0.5", "--recall-at", "10"]
    assert convert(*flags, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    _, manifest = read_manifest(tmp_path / "x.index")
    recall = manifest.recall
    assert recall is not None
    assert (recall.k, recall.target, recall.questions, recall.tuned_on) == (10, 0.5, 30, 30)
    assert recall.recall >= 0.5
    assert 0 < recall.p50_ms <= recall.p99_ms
    assert report["recall"]["recall"] == recall.recall
    opened = open_index(tmp_path / "x.index", small_bundle, 1)
    assert isinstance(opened.vectors, ApproximateIndex)
    assert opened.vectors.settings == manifest.plan.search
    assert main(["index", "info", str(tmp_path / "x.index")]) == 0
    shown = capsys.readouterr().out
    assert f"{recall.recall:.4f} at 10 on 30 questions, target 0.5; a question takes " in shown
    size_bytes = (tmp_path / "x.index" / "g000001" / "structure.faiss").stat().st_size
    assert manifest.vector_bytes == size_bytes / 300
    assert f", {manifest.vector_bytes:.0f} bytes each" in shown


def test_cli_a_miss_keeps_what_was_built(
    tmp_path: Path, convert: Callable[..., int], questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--factory", "IVF1,PQ1x4fs", "--questions", questions, "--recall-at", "1"]
    assert convert(*flags, "--target-recall", "1") == 1
    error = capsys.readouterr().err
    assert "training on 300 vectors" in error
    assert "surely reaches a recall at 1 of 1.0 on 30 questions; the highest was 0." in error
    assert not (tmp_path / "x.index" / "CURRENT").exists()
    assert convert(*flags) == 0
    captured = capsys.readouterr()
    assert "training" not in captured.err
    assert "recall: " in captured.out
    assert sorted(path.name for path in (tmp_path / "x.index").iterdir()) == ["CURRENT", "g000001"]
    recall = read_manifest(tmp_path / "x.index")[1].recall
    assert recall is not None
    assert (recall.target, recall.questions, recall.tuned_on) == (0.0, 60, 0)


def test_cli_a_target_without_questions(
    tmp_path: Path, convert: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert("--preset", "sq8", "--target-recall", "0.9") == 1
    assert "narrows: --target-recall is measured on questions: give --questions FILE" in capsys.readouterr().err
    assert not (tmp_path / "x.index").exists()


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"", " holds no questions"), (b" \n\n", " holds no questions"), (b"ok\n\xff", ":2: invalid UTF-8")],
)
def test_cli_questions_that_cannot_be_read(
    tmp_path: Path, convert: Callable[..., int], capsys: pytest.CaptureFixture[str], data: bytes, what: str
) -> None:
    (tmp_path / "q.txt").write_bytes(data)
    assert convert("--preset", "sq8", "--questions", tmp_path / "q.txt") == 1
    assert f"{tmp_path / 'q.txt'}{what}" in capsys.readouterr().err
    assert not (tmp_path / "x.index").exists()
