"""`narrows index import`: the vectors of DPR's and Pyserini's files become an index only if the encoder agrees."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from narrows.bundle import Bundle
from narrows.errors import EmbeddingFileError, IndexFileError, MismatchError, NarrowsError
from narrows.index.agreement import Agreement
from narrows.index.importing import ImportRequest, import_index
from narrows.index.merge import merge_indexes
from narrows.index.opened import open_index
from narrows.index.presets import FLAT, Wanted
from narrows.index.progress import Progress
from narrows.index.store import read_manifest
from narrows.index.target import BuildReport, Target
from narrows.index.verify import verify_index
from narrows_export import corpus
from narrows_tools.cli.main import main

Vectors = npt.NDArray[np.float32]
COUNT, DIM = 300, 64


@pytest.fixture
def made(small_index: Path, small_bundle: Bundle) -> tuple[list[str], Vectors]:
    """Ids and vectors as the bundle's own context encoder made them."""
    index = open_index(small_index, small_bundle, 1)
    ids = [passage.id for passage in index.passages.get(range(COUNT), with_text=False)]
    return ids, index.vectors.decode(np.arange(COUNT))


def pickles(directory: Path, ids: list[str], vectors: Vectors, prefix: str = "wiki:") -> list[Path]:
    """Two shards, as generate_dense_embeddings.py writes them."""
    files = []
    for shard, rows in enumerate((range(200), range(200, len(ids)))):
        files.append(directory / f"passages_{shard}")
        with files[-1].open("wb") as out:
            pickle.dump([(prefix + ids[row], vectors[row]) for row in rows], out)
    return files


def dpr_faiss(directory: Path, ids: list[str], vectors: Vectors) -> list[Path]:
    """DPR's index of a graph and its ids."""
    squared = (vectors.astype(np.float64) ** 2).sum(axis=1)
    index = faiss.IndexHNSWFlat(DIM + 1, 8)
    index.add(np.hstack([vectors, np.sqrt(squared.max() - squared)[:, None]]).astype(np.float32))
    faiss.write_index(index, str(directory / "index.dpr"))
    (directory / "index_meta.dpr").write_bytes(pickle.dumps(["wiki:" + passage_id for passage_id in ids]))
    return [directory]


def pyserini(directory: Path, ids: list[str], vectors: Vectors) -> list[Path]:
    """Pyserini's directory; in an order of its own."""
    order = np.random.default_rng(0).permutation(len(ids))
    index = faiss.IndexFlatIP(DIM)
    index.add(vectors[order])
    faiss.write_index(index, str(directory / "index"))
    (directory / "docid").write_text("".join(f"wiki:{ids[row]}\n" for row in order))
    return [directory]


def imported(
    bundle: Bundle,
    out: Path,
    embeddings: list[Path],
    wanted: Wanted = FLAT,
    **more: object,
) -> tuple[BuildReport, Agreement | None]:
    fields: dict[str, Any] = {"passages": corpus.passages_file("en"), "id_prefix": "wiki:"} | more
    request = ImportRequest(embeddings, **fields)
    return import_index(bundle, request, Target(out, "x", 1, wanted=wanted), Progress())


@pytest.mark.parametrize("write", [pickles, dpr_faiss, pyserini])
def test_every_layout_gives_the_index_that_a_build_gives(
    tmp_path: Path,
    small_bundle: Bundle,
    small_index: Path,
    made: tuple[list[str], Vectors],
    write: Callable[[Path, list[str], Vectors], list[Path]],
) -> None:
    out = tmp_path / "x.index"
    (tmp_path / "theirs").mkdir()
    report, agreement = imported(small_bundle, out, write(tmp_path / "theirs", *made))
    assert agreement
    assert (report.count, agreement.sample) == (COUNT, 200)
    assert agreement.lowest_cosine > 0.999999
    for name in ("index.faiss", "passages.blob", "id_rank.npy"):
        assert (out / "g000001" / name).read_bytes() == (small_index / "g000001" / name).read_bytes()
    mine, built = read_manifest(out)[1], read_manifest(small_index)[1]
    assert (mine.tower_id, mine.max_norm) == (built.tower_id, built.max_norm)


def test_half_precision_from_a_gpu_agrees(
    tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors]
) -> None:
    ids, vectors = made
    out, rounded = tmp_path / "x.index", vectors.astype(np.float16)
    _, agreement = imported(small_bundle, out, pickles(tmp_path, ids, rounded))
    assert agreement
    assert 0.9999 < agreement.lowest_cosine < 1
    assert read_manifest(out)[1].agreement == agreement
    merge_indexes(small_bundle, [out], Target(tmp_path / "y.index", "y", 1), Progress())
    assert np.abs(rounded - vectors).max() > 1e-4, "farther than the bundle's own may be"
    for index in (out, tmp_path / "y.index"):
        report = verify_index(index, small_bundle, COUNT, 0, 1, lambda what: None)
        assert (report.failures, report.identical) == ([], 0)
        assert report.allowed == "cosine from 0.999, length within 1%"


def test_an_imported_vector_that_is_another_passages_fails_a_verification(
    tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors]
) -> None:
    ids, vectors = made
    sampled = int(np.random.default_rng(0).permutation(COUNT)[0])
    other = (sampled + 1) % COUNT
    vectors[other] = vectors[sampled]
    out = tmp_path / "x.index"
    imported(small_bundle, out, pickles(tmp_path, ids, vectors), sample=1)
    report = verify_index(out, small_bundle, COUNT, 0, 1, lambda what: None)
    assert [failure.partition(",")[0] for failure in report.failures] == [f"passage {ids[other]!r} (row {other})"]
    assert report.lowest_cosine < 0.999


def refused(bundle: Bundle, tmp_path: Path, embeddings: list[Path], kind: type[NarrowsError], **more: object) -> str:
    """What the error says; nothing is left behind."""
    out = tmp_path / "x.index"
    with pytest.raises(kind) as error:
        imported(bundle, out, embeddings, **more)  # type: ignore[arg-type]
    assert not out.exists()
    return str(error.value)


def test_vectors_of_other_passages_are_refused(
    tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors]
) -> None:
    ids, vectors = made
    said = refused(small_bundle, tmp_path, pickles(tmp_path, ids, np.roll(vectors, 1, axis=0)), MismatchError)
    assert said.startswith("200 of 200 passages, encoded again, have another vector")


def test_a_few_wrong_vectors_are_refused_when_the_sample_holds_them(
    tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors]
) -> None:
    ids, vectors = made
    vectors[7] *= 1.5  # the direction is right
    said = refused(small_bundle, tmp_path, pickles(tmp_path, ids, vectors), MismatchError, sample=COUNT)
    assert (
        f"1 of 300 passages, encoded again, have another vector than the one to import (the first: '{ids[7]}'" in said
    )


def test_ids_that_do_not_fit(tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors]) -> None:
    ids, vectors = made
    files = pickles(tmp_path, ids, vectors)
    said = refused(small_bundle, tmp_path, files, EmbeddingFileError, id_prefix="")
    assert said.endswith("has no such id; where the ids have a prefix, give it: --id-prefix wiki:")
    assert "2 of 300 passages have no vector" not in said
    said = refused(small_bundle, tmp_path, pickles(tmp_path, ids[:-2], vectors), EmbeddingFileError)
    assert said.startswith(f"2 of 300 passages have no vector (the first: '{ids[-2]}', '{ids[-1]}')")
    said = refused(small_bundle, tmp_path, pickles(tmp_path, [*ids[:-1], ids[0]], vectors), EmbeddingFileError)
    assert said.startswith(f"the id '{ids[0]}' has two vectors")
    said = refused(small_bundle, tmp_path, pickles(tmp_path, [ids[0], *ids[:-1]], vectors), EmbeddingFileError)
    assert said.startswith(f"the id '{ids[0]}' has two vectors")


def test_vectors_of_rows_that_are_left_out_are_left_out(
    tmp_path: Path, small_bundle: Bundle, small_index: Path, made: tuple[list[str], Vectors]
) -> None:
    """DPR has encoded a row that is empty, and one whose id was there before; Narrows takes neither."""
    ids, vectors = made
    bad = [{"id": ids[3], "text": "its id was there before"}, {"id": "empty", "text": ""}]
    passages = tmp_path / "p.jsonl"
    passages.write_text(corpus.passages_file("en").read_text() + "".join(json.dumps(row) + "\n" for row in bad))
    files = pickles(tmp_path, [*ids, ids[3], "empty"], np.vstack([vectors, vectors[:2] + 1]))
    report, _ = imported(small_bundle, tmp_path / "x.index", files, passages=passages, skip_bad=True, sample=COUNT)
    assert (report.count, sum(rows.count for rows in report.skipped.values())) == (COUNT, 2)
    name = "g000001/index.faiss"
    assert (tmp_path / "x.index" / name).read_bytes() == (small_index / name).read_bytes()
    files = pickles(tmp_path, [*ids, "empty", "one too many", "another"], np.vstack([vectors, vectors[:3]]))
    with pytest.raises(EmbeddingFileError, match=r"'another', and .* has no such id, nor were so many of its"):
        imported(small_bundle, tmp_path / "y.index", files, passages=passages, skip_bad=True)


def test_another_dimension(tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors]) -> None:
    ids, vectors = made
    files = pickles(tmp_path, ids, np.ascontiguousarray(vectors[:, :32]))
    assert "has vectors of 32 dimensions, the bundle's context encoder makes 64" in refused(
        small_bundle, tmp_path, files, EmbeddingFileError
    )


def test_a_factory_string_that_is_wrong_is_found_before_vectors_are_copied(
    tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors]
) -> None:
    (tmp_path / "passages_0").write_bytes(b"never read")
    refused(small_bundle, tmp_path, [tmp_path / "passages_0"], IndexFileError, wanted=Wanted(factory="IVF4,Wrong"))


class Stop(Progress):
    """Interrupted when training begins: all vectors are in, and were checked."""

    def training(self, rows: int) -> None:
        raise KeyboardInterrupt


class Listening(Progress):
    """Which of the two went on."""

    def __init__(self) -> None:
        self.imported, self.resumed = 0, 0

    def importing(self, vectors: int, passages: int) -> None:
        self.imported = vectors

    def resuming(self, encoded: int, passages: int) -> None:
        self.resumed = encoded


@pytest.fixture
def stopped(small_bundle: Bundle, tmp_path: Path) -> Callable[[list[Path]], Callable[..., Any]]:
    """Stops an import of files after a sample of one passage; what it gives goes on with another sample."""

    def stop(files: list[Path]) -> Callable[..., Any]:
        request = ImportRequest(files, corpus.passages_file("en"), id_prefix="wiki:", sample=1)
        target = Target(tmp_path / "x.index", "x", 1, wanted=Wanted("sq8"))
        with pytest.raises(KeyboardInterrupt):
            import_index(small_bundle, request, target, Stop())
        return lambda sample, progress: import_index(small_bundle, replace(request, sample=sample), target, progress)

    return stop


def test_an_import_that_was_stopped_goes_on_and_checks_the_sample_that_is_asked_for(
    tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors], stopped: Callable[..., Callable[..., Any]]
) -> None:
    progress = Listening()
    report, agreement = stopped(pickles(tmp_path, *made))(COUNT, progress)
    assert (progress.imported, progress.resumed, report.resumed_at) == (0, COUNT, COUNT)
    assert agreement.sample == COUNT
    whole = tmp_path / "whole.index"
    imported(small_bundle, whole, pickles(tmp_path, *made), Wanted("sq8"))
    for name in ("structure.faiss", "passages.blob"):
        assert (tmp_path / "x.index" / "g000001" / name).read_bytes() == (whole / "g000001" / name).read_bytes()


def test_an_import_that_goes_on_is_refused_by_a_sample_that_disagrees(
    tmp_path: Path, made: tuple[list[str], Vectors], stopped: Callable[..., Callable[..., Any]]
) -> None:
    ids, vectors = made
    first = int(np.random.default_rng(0).permutation(COUNT)[0])  # what a sample of one holds
    vectors[(first + 1) % COUNT] *= 1.5
    with pytest.raises(MismatchError, match="1 of 300 passages, encoded again"):
        stopped(pickles(tmp_path, ids, vectors))(COUNT, Progress())
    assert not (tmp_path / "x.index" / ".build").exists()


def test_the_command(
    tmp_path: Path, small_bundle: Bundle, made: tuple[list[str], Vectors], capsys: pytest.CaptureFixture[str]
) -> None:
    files = pickles(tmp_path, *made)
    arguments = ["index", "import", "--bundle", str(small_bundle.path), "--passages", str(corpus.passages_file("en"))]
    arguments += ["--embeddings", *map(str, files), "--id-prefix", "wiki:", "--out", str(tmp_path / "x.index")]
    assert main([*arguments, "--preset", "sq8", "--verify-sample", "20", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["count"], printed["plan"]["factory"], printed["agreement"]["sample"]) == (COUNT, "SQ8", 20)
    assert main([*arguments, "--replace"]) == 0
    assert "200 passages encoded again agree: cosine 1.000000" in capsys.readouterr().out
    assert main(["index", "verify", str(tmp_path / "x.index"), "--bundle", str(small_bundle.path)]) == 0
