"""Presets: structures that FAISS makes for any number of vectors, and the memory that decides between them."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import IndexFileError
from narrows.index import filling, presets, structures
from narrows.index.opened import open_vectors
from narrows.index.presets import EXACT, PRESETS, Plan, SearchSettings, Wanted, memory_bytes, plan, within
from narrows.index.progress import Progress
from narrows.index.store import VECTORS, vector_files
from narrows.index.vector_file import VectorFile, header
from narrows_tools.cli import index_vectors
from narrows_tools.cli.main import main

COUNTS = (1, 39, 300, 16_176, 10**5, 21_015_324)
DIMS = (1, 7, 64, 384, 768)
WIKIPEDIA = (21_015_324, 768)  # of DPR
REPRODUCIBLE = settings(derandomize=True, deadline=None)


# --- plans


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dim", DIMS)
def test_faiss_makes_every_preset(preset: str, dim: int) -> None:
    for count in COUNTS:
        made = plan(Wanted(preset), count, dim)
        index = structures.make(made, dim)
        assert (made.preset, index.d, index.ntotal) == (preset, dim + made.augmented, 0)
        structures.set_parameters(index, made.search.parameters)  # its own are its own
        assert made.is_exact == (preset in ("flat", "flat-fp16"))
        if "IVF" in made.factory:
            assert made.lists & (made.lists - 1) == 0
            assert made.lists == 1 or 39 * made.lists <= count
            assert made.lists <= 8 * count**0.5
        else:
            assert made.lists == 0


def test_plans_of_wikipedia() -> None:
    made = {name: plan(Wanted(name), *WIKIPEDIA) for name in PRESETS}
    assert {name: found.factory for name, found in made.items()} == {
        "flat": "Flat",
        "flat-fp16": "SQfp16",
        "sq8": "SQ8",
        "hnsw": "HNSW32,Flat",
        "hnsw-l2": "HNSW32,Flat",
        "ivf-sq8": "IVF16384_HNSW32,SQ8",
        "ivfpq-fs": "IVF16384_HNSW32,PQ192x4fs",
        "rabitq": "IVF16384_HNSW32,RaBitQ",
    }
    assert made["hnsw"].search == SearchSettings("efSearch=256")
    assert made["ivf-sq8"].search == SearchSettings("nprobe=64,quantizer_efSearch=128")
    assert made["ivfpq-fs"].search.refine == 8
    assert [made[name].most_effort for name in ("flat", "sq8", "hnsw", "rabitq")] == [0, 0, 2**14, 16_384]


@given(st.integers(1, 10**9), st.integers(1, 2000))
@REPRODUCIBLE
def test_any_number_of_vectors_has_a_plan(count: int, dim: int) -> None:
    for preset in PRESETS:
        made = plan(Wanted(preset), count, dim)
        assert "{" not in made.factory
        if "x4fs" in made.factory:
            parts = int(made.factory.rpartition("PQ")[2].removesuffix("x4fs"))
            assert dim % parts == 0
            assert parts <= max(1, dim // 4)


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(IndexFileError, match="there is no preset 'best'; there are flat, flat-fp16, sq8, hnsw, "):
        plan(Wanted("best"), 300, 64)


def test_vectors_to_score_again_are_the_presets_unless_others_are_asked_for() -> None:
    assert plan(Wanted("rabitq"), 300, 64).store == "fp16"
    assert plan(Wanted("rabitq", store="fp32"), 300, 64).store == "fp32"
    assert plan(Wanted("rabitq", store="none"), 300, 64).store == "none"
    assert plan(Wanted("hnsw", store="fp32"), 300, 64).store == "fp32"
    assert plan(Wanted(factory="IVF4,SQ8"), 300, 64) == Plan(
        "custom", "IVF4,SQ8", "none", search=SearchSettings("nprobe=4", 1)
    )
    assert plan(Wanted(factory="IVF4, SQ4", store="fp16"), 300, 64) == Plan(
        "custom", "IVF4,SQ4", "fp16", search=SearchSettings("nprobe=4", 8)
    )


def test_exact_vectors_are_what_is_stored() -> None:
    """There is nothing else of them."""
    for wanted in (Wanted("flat"), Wanted(factory="Flat"), Wanted("flat", store="fp32")):
        assert plan(wanted, 300, 64) == presets.FLAT_PLAN
    for wanted in (Wanted("flat-fp16"), Wanted(factory="SQfp16"), Wanted("flat-fp16", store="fp16")):
        assert plan(wanted, 300, 64) == Plan("flat-fp16", "SQfp16", "fp16")
    for preset, store in (("flat", "fp16"), ("flat", "none"), ("flat-fp16", "fp32")):
        with pytest.raises(IndexFileError, match=f"{preset} scans the vectors that it holds: it takes no --rescore"):
            plan(Wanted(preset, store=store), 300, 64)  # type: ignore[arg-type]


def test_a_factory_string_of_a_preset_is_that_preset() -> None:
    assert plan(Wanted(factory="SQ8"), 300, 64) == plan(Wanted("sq8"), 300, 64)
    assert plan(Wanted(factory="HNSW32, Flat"), 300, 64) == plan(Wanted("hnsw"), 300, 64)
    assert not plan(Wanted(factory="HNSW32,Flat"), 300, 64).augmented


# --- what is refused


@pytest.mark.parametrize("factory", ["bogus", "IVF16", "IVF16,PQ7", "IVF16,Flat,RFlt", "LSH", "HNSW16,PQ7", " "])
def test_factory_strings_that_faiss_does_not_know(factory: str) -> None:
    with pytest.raises(IndexFileError, match=r"FAISS makes no index of 64 dimensions from .* \(") as caught:
        structures.make(Plan("custom", factory, "none"), 64)
    assert repr(factory) in str(caught.value)
    assert "std::" not in str(caught.value)


@pytest.mark.parametrize(
    ("factory", "kind"),
    [
        ("NSG32,Flat", "IndexNSGFlat"),
        ("IDMap,Flat", "IndexIDMap"),
        ("IVF16,Flat,RFlat", "IndexRefineFlat"),
        ("PQ16x4fs,Refine(SQfp16)", "IndexRefine"),
        ("OPQ16,HNSW32", "IndexHNSWFlat"),
    ],
)
def test_kinds_that_are_not_served(factory: str, kind: str) -> None:
    with pytest.raises(
        IndexFileError, match=rf"{kind} is not served: give a factory string of inverted lists .*--resc"
    ):
        structures.make(Plan("custom", factory, "none"), 64)


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("L2norm,Flat", "NormalizationTransform changes inner products"),
        ("PCA16,Flat", "PCAMatrix changes inner products"),
        ("HNSW32,PQ16x4", "for Euclidean distances only"),
        ("HNSW0", "a graph has 2 to 512 links a node"),
        ("HNSW2000000000", "a graph has 2 to 512 links a node"),
        ("IVF0,Flat", "has no lists"),
    ],
)
def test_what_would_rank_otherwise_or_end_the_process_is_refused(factory: str, said: str) -> None:
    with pytest.raises(IndexFileError, match=said):
        structures.make(Plan("custom", factory, "none"), 64)


@pytest.mark.parametrize(
    ("factory", "least"), [("IVF64,SQ8", 64), ("PQ8", 256), ("IVF4,PQ8x4fs", 16), ("OPQ8,IVF4,PQ8x6", 64), ("SQ8", 1)]
)
def test_how_many_vectors_training_takes(factory: str, least: int) -> None:
    assert Plan("custom", factory, "none").least_count == least


@pytest.mark.parametrize("factory", ["IVF{x},SQ8", "IVF{},SQ8", "IVF{lists,SQ8", "{", "{lists.a}"])
def test_braces_that_mean_nothing(factory: str) -> None:
    with pytest.raises(IndexFileError, match=r"only \{lists\} and \{parts\} are filled in"):
        plan(Wanted(factory=factory), 300, 64)


def test_arguments_that_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["index", "convert", str(tmp_path / "a.index"), "--bundle", "b", "--out", str(tmp_path / "x.index")]
    for flags in (["--preset", "best"], ["--preset", "sq8", "--factory", "SQ8"], ["--rescore", "fp64"]):
        with pytest.raises(SystemExit) as caught:
            main([*arguments, *flags])
        assert caught.value.code == 2
        assert "usage: narrows index convert" in capsys.readouterr().err


# --- budgets


@pytest.mark.parametrize(
    ("count", "dim", "budget_bytes", "name"),
    [
        (16_176, 768, 2**30, "flat"),
        (16_176, 768, 30 * 2**20, "flat-fp16"),
        (16_176, 768, 20 * 2**20, "sq8"),
        (16_176, 768, 5 * 2**20, "ivfpq-fs"),
        (*WIKIPEDIA, 128 * 2**30, "hnsw"),
        (*WIKIPEDIA, 32 * 2**30, "ivf-sq8"),
        (*WIKIPEDIA, 8 * 2**30, "ivfpq-fs"),
        (*WIKIPEDIA, 2.34 * 2**30, "ivfpq-fs"),
    ],
)
def test_the_best_that_fits(count: int, dim: int, budget_bytes: float, name: str) -> None:
    chosen, reasons = within(int(budget_bytes), count, dim)
    assert chosen.name == name
    assert plan(Wanted(memory_budget_bytes=int(budget_bytes)), count, dim) == plan(Wanted(name), count, dim)
    assert [": " in line for line in reasons] == [True] * len(reasons)
    assert reasons[-1].startswith(f"{name}: ")
    assert " fits " in reasons[-1]
    assert all("is more than" in line for line in reasons[:-1])


def test_nothing_fits() -> None:
    with pytest.raises(
        IndexFileError, match=r"no preset holds 21,015,324 vectors of 768 in 1\.00 GiB \(hnsw: .*rabitq"
    ):
        plan(Wanted(memory_budget_bytes=2**30), *WIKIPEDIA)
    with pytest.raises(IndexFileError, match=r"give a larger --memory-budget, or serve parts"):
        within(1, 300, 64)


@given(st.integers(1, 10**8), st.sampled_from(DIMS), st.integers(1, 10**12), st.integers(0, 10**12))
@REPRODUCIBLE
def test_more_memory_never_gives_a_worse_preset(count: int, dim: int, budget_bytes: int, more: int) -> None:
    try:
        chosen, reasons = within(budget_bytes, count, dim)
    except IndexFileError:
        return
    assert memory_bytes(chosen, count, dim) <= budget_bytes
    _, fewer = within(budget_bytes + more, count, dim)
    assert len(fewer) <= len(reasons)


@pytest.mark.parametrize("preset", PRESETS)
def test_memory_is_what_the_files_have(preset: str, tmp_path: Path) -> None:
    count, dim = 6000, 128
    vectors = np.random.default_rng(1).standard_normal((count, dim)).astype(np.float32)
    (tmp_path / VECTORS).write_bytes(header(dim, count) + vectors.tobytes())
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    made = plan(Wanted(preset), count, dim)
    filling.fill(tmp_path, VectorFile(tmp_path / VECTORS, dim, count), made, max_norm, 2, Progress())
    name = vector_files(made)[-1]  # a structure comes last: what is before it stays on disk
    assert memory_bytes(PRESETS[preset], count, dim) == pytest.approx((tmp_path / name).stat().st_size, rel=0.25)
    opened = open_vectors(tmp_path, made, dim, max_norm, np.arange(count, dtype=np.uint32), 1)
    assert (opened.count, opened.dim) == (count, dim)


# --- the command line


def test_the_command_knows_the_same_presets() -> None:
    assert list(index_vectors.PRESETS) == list(PRESETS)
    assert {preset.factory for preset in PRESETS.values()} >= set(EXACT)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1", 1), ("17B", 17), ("8GiB", 8 * 2**30), ("8gib", 8 * 2**30), (" 8 GiB ", 8 * 2**30), ("1.5KiB", 1536),
        ("500MB", 500 * 10**6), ("500M", 500 * 10**6), ("2g", 2 * 10**9), ("3Ki", 3072), ("1TiB", 2**40),
        ("1TB", 10**12),
    ],
)  # fmt: skip
def test_sizes(text: str, size_bytes: int) -> None:
    assert index_vectors.size(text) == size_bytes


@pytest.mark.parametrize(
    "text", ["", "0", "0.4", "-1GiB", "GiB", "1e9", "8 elephants", "8iB", "8i", "8PiB", "nan", "1,5G"]
)
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no size, such as 8GiB or 500MB"):
        index_vectors.size(text)


@pytest.mark.parametrize(("text", "share"), [("1", 1.0), ("0.98", 0.98)])
def test_shares(text: str, share: float) -> None:
    assert index_vectors.share(text) == share
    for wrong in ("0", "-0.1", "1.01", "98%", "nan", "inf", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="is no share"):
            index_vectors.share(wrong)


def test_how_vectors_are_held_in_a_line() -> None:
    assert index_vectors.described(presets.FLAT_PLAN, 64) == "64 dimensions, flat (Flat)"
    assert index_vectors.described(plan(Wanted("flat-fp16"), 300, 64), 64) == "64 dimensions, flat-fp16 (SQfp16)"
    assert index_vectors.described(plan(Wanted("rabitq"), 300, 64), 64) == (
        "64 dimensions, rabitq (IVF4,RaBitQ, scored again with fp16 vectors), nprobe=4, 8 k candidates"
    )
    assert index_vectors.described_recall(None) == "not measured (give --questions when building)"
