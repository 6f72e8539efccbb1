"""Converting and merging: the same passages and vectors, held otherwise or together, and nothing lost on the way."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from building import build
from checkpoints import write_dpr

from narrows import integrity
from narrows.bundle import Bundle, open_bundle
from narrows.errors import IndexFileError, MismatchError
from narrows.index import unfinished
from narrows.index.merge import merge_indexes
from narrows.index.opened import open_index
from narrows.index.presets import PRESETS, Wanted
from narrows.index.progress import Progress
from narrows.index.shard import Shard
from narrows.index.store import read_manifest, vector_files
from narrows.index.target import BuildReport, Target
from narrows.index.vector_file import header
from narrows.passages import FILES
from narrows_export.export import ExportRequest, export_bundle
from narrows_tools.cli.main import main

if TYPE_CHECKING:
    from checkpoints import Pair

KILLS = Path(__file__).parent / "merge_kills.py"
COUNT, DIM = 300, 64
OTHERS = [name for name in PRESETS if name != "flat"]


def built(bundle: Bundle, passages: Path, out: Path, **more: Any) -> Path:
    build(bundle, passages, out, **more)
    return out


def merge(bundle: Bundle, out: Path, *sources: Path, **more: Any) -> BuildReport:
    return merge_indexes(bundle, sources, replace(Target(out, "x", 1), **more), Progress())


def write_passages(file: Path, first: int, count: int, bad_rows: tuple[int, ...] = ()) -> Path:
    """`count` passages; every seventh is too long for the tower."""
    with file.open("w", encoding="utf-8") as stream:
        for number in range(first, first + count):
            if number in bad_rows:
                stream.write('{"id": 7\n')
            text = f"{number} " + "word " * (300 if number % 7 == 3 else 3 + number % 5)
            stream.write(json.dumps({"id": f"id-{number}", "text": text}) + "\n")
    return file


def files_of(index: Path) -> dict[str, bytes]:
    generation, manifest = read_manifest(index)
    return {name: (index / generation / name).read_bytes() for name in manifest.files}


def seal(path: Path, generation: str = "g000001", **changes: object) -> None:
    """Makes the manifest and CURRENT fit files that the test has changed, and changes the manifest."""
    directory = path / generation
    manifest = json.loads((directory / "manifest.json").read_bytes()) | changes
    for name in manifest["files"]:
        sha256 = integrity.hash_files([directory / name])[directory / name]
        manifest["files"][name] = {"size_bytes": (directory / name).stat().st_size, "sha256": sha256}
    data = json.dumps(manifest).encode()
    (directory / "manifest.json").write_bytes(data)
    (path / "CURRENT").write_text(f"{generation} {hashlib.sha256(data).hexdigest()}\n")


@pytest.fixture
def source(tmp_path: Path, small_index: Path) -> Path:
    """A flat index of the test's own."""
    return shutil.copytree(small_index, tmp_path / "source.index", ignore=shutil.ignore_patterns(".*"))


# --- converting


@pytest.mark.parametrize("preset", OTHERS)
def test_every_preset_is_made_searched_described_and_verified(
    tmp_path: Path, small_bundle: Bundle, source: Path, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = files_of(source), tmp_path / "x.index"
    arguments = ["--bundle", str(small_bundle.path), "--threads", "1"]
    assert main(["index", "convert", str(source), "--out", str(out), "--preset", preset, *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {out} (g000001): 300 passages of 64 dimensions, {preset} (")
    generation, manifest = read_manifest(out)
    assert set(manifest.files) == {*vector_files(manifest.plan), "truncated.jsonl", *FILES}
    assert sorted(path.name for path in (out / generation).iterdir()) == sorted([*manifest.files, "manifest.json"])
    flat = open_index(source, small_bundle, 1)
    opened = open_index(out, small_bundle, 1)
    assert opened.manifest.source_sha256 == flat.manifest.source_sha256
    queries = flat.vectors.decode(np.arange(20))
    found = opened.vectors.search(queries, COUNT)
    assert (np.sort(found.rows, axis=1) == np.arange(COUNT)).all()
    assert found.scores == pytest.approx(
        np.take_along_axis(queries @ flat.vectors.decode(np.arange(COUNT)).T, found.rows, 1), rel=0.05
    )
    assert opened.passages.find("en-001") == 0
    assert main(["index", "info", str(out)]) == 0
    assert f"vectors     64 dimensions, {preset} (" in capsys.readouterr().out
    assert main(["index", "verify", str(out), "--sample", "50", *arguments]) == 0
    assert f"{out} (g000001) is whole: 300 passages" in capsys.readouterr().out
    assert files_of(source) == before


def test_files_are_linked_and_stay_the_sources(tmp_path: Path, small_bundle: Bundle, source: Path) -> None:
    merge(small_bundle, tmp_path / "x.index", source, wanted=Wanted("hnsw", store="fp32"))
    for name in ("index.faiss", "truncated.jsonl", *FILES):
        assert (tmp_path / "x.index" / "g000001" / name).samefile(source / "g000001" / name)
    shutil.rmtree(source)
    assert open_index(tmp_path / "x.index", small_bundle, 1).vectors.count == COUNT


def test_files_are_copied_where_they_cannot_be_linked(
    tmp_path: Path, small_bundle: Bundle, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge(small_bundle, tmp_path / "x.index", source)
    assert files_of(tmp_path / "x.index") == files_of(source)
    assert not (tmp_path / "x.index" / "g000001" / "index.faiss").samefile(source / "g000001" / "index.faiss")


@pytest.mark.parametrize("preset", ["flat-fp16", "ivf-sq8", "rabitq"])
def test_an_index_without_its_vectors_is_refused(
    tmp_path: Path, small_bundle: Bundle, source: Path, preset: str
) -> None:
    merge(small_bundle, tmp_path / "x.index", source, wanted=Wanted(preset))
    with pytest.raises(
        IndexFileError, match=f"x.index is {preset} and does not hold its vectors .*take the flat index"
    ):
        merge(small_bundle, tmp_path / "y.index", tmp_path / "x.index")
    assert not (tmp_path / "y.index").exists()


def test_vectors_that_are_kept_can_be_converted_on(tmp_path: Path, small_bundle: Bundle, source: Path) -> None:
    merge(small_bundle, tmp_path / "x.index", source, wanted=Wanted("rabitq", store="fp32"))
    merge(small_bundle, tmp_path / "y.index", tmp_path / "x.index")
    assert files_of(tmp_path / "y.index") == files_of(source)


def test_in_place(tmp_path: Path, small_bundle: Bundle, source: Path) -> None:
    with pytest.raises(IndexFileError, match="holds an index already: give --replace"):
        merge(small_bundle, source, source, wanted=Wanted("ivf-sq8"))
    report = merge(small_bundle, source, source, wanted=Wanted("ivf-sq8"), replace=True)
    assert (report.generation, report.plan.preset) == ("g000002", "ivf-sq8")
    assert sorted(path.name for path in source.iterdir() if "verified" not in path.name) == ["CURRENT", "g000002"]
    assert open_index(source, small_bundle, 1).vectors.count == COUNT


def test_a_swapped_row_of_halves_is_found(tmp_path: Path, small_bundle: Bundle, source: Path) -> None:
    out = tmp_path / "x.index"
    merge(small_bundle, out, source, wanted=Wanted("rabitq"))
    file = out / "g000001" / "index.fp16.faiss"
    data = bytearray(file.read_bytes())
    halves = np.frombuffer(data, np.float16, offset=len(header(DIM, COUNT, "fp16"))).reshape(COUNT, DIM)
    halves[[10, 200]] = halves[[200, 10]]
    file.write_bytes(data)
    seal(out)
    arguments = ["index", "verify", str(out), "--bundle", str(small_bundle.path), "--threads", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from narrows_tools.cli.main import main; sys.exit(main())", *arguments,
         "--sample", str(COUNT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    failures = json.loads(done.stdout)["failures"]
    assert done.returncode == 1
    assert [failure.partition(")")[0] for failure in failures] == [
        "passage 'en-011' (row 10",
        "passage 'en-201' (row 200",
    ]


@pytest.mark.parametrize(
    ("factory", "reason"), [("IVF8,RaBitQfs", "the lowest cosine with what was encoded is -"), ("IVF8,FlatDedup", "")]
)
def test_codes_that_cannot_be_decoded(
    tmp_path: Path, small_bundle: Bundle, source: Path, factory: str, reason: str
) -> None:
    out = tmp_path / "x.index"
    with pytest.raises(IndexFileError, match=f"FAISS cannot decode the vectors of .*{reason}.*--rescore fp16"):
        merge(small_bundle, out, source, wanted=Wanted(factory=factory))
    assert merge(small_bundle, out, source, wanted=Wanted(factory=factory, store="fp16")).count == COUNT


# --- merging


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_passages(tmp_path_factory.mktemp("passages") / "p.jsonl", 0, 40, bad_rows=(2, 20, 21))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, small_bundle: Bundle, passages: Path) -> list[Path]:
    base = tmp_path_factory.mktemp("shards")
    return [
        built(small_bundle, passages, base / f"{number}.index", shard=Shard(number, 3), skip_bad=True)
        for number in (1, 2, 3)
    ]


def test_shards_together_are_the_whole(
    tmp_path: Path, small_bundle: Bundle, passages: Path, shards: list[Path]
) -> None:
    whole = built(small_bundle, passages, tmp_path / "whole.index", skip_bad=True)
    counts = [read_manifest(shard)[1].count for shard in shards]
    assert (sum(counts), max(counts) - min(counts)) == (40, 1)
    report = merge(small_bundle, tmp_path / "x.index", *shards)
    assert files_of(tmp_path / "x.index") == files_of(whole)
    merged, expected = read_manifest(tmp_path / "x.index")[1], read_manifest(whole)[1]
    names = ("count", "dim", "truncated_count", "token_count", "cut_token_count", "max_norm", "tower_id", "variant")
    assert {name: getattr(merged, name) for name in names} == {name: getattr(expected, name) for name in names}
    assert expected.truncated_count == 6
    assert {reason: rows.count for reason, rows in merged.skipped.items()} == {
        reason: rows.count for reason, rows in expected.skipped.items()
    }, "each bad row is in one shard"
    assert merged.source == "p.jsonl [1/3] + p.jsonl [2/3] + p.jsonl [3/3]"
    assert report.count == 40
    merge(small_bundle, tmp_path / "y.index", *reversed(shards))
    assert files_of(tmp_path / "y.index") == files_of(whole), "in the order of the file, however they are given"


def test_a_missing_shard_is_said(tmp_path: Path, small_bundle: Bundle, shards: list[Path]) -> None:
    class Listening(Progress):
        lines: list[str]

        def noted(self, lines: Sequence[str]) -> None:
            self.lines = [*lines]

    listening = Listening()
    report = merge_indexes(small_bundle, [shards[2], shards[0]], Target(tmp_path / "x.index", "x", 1), listening)
    assert report.count == 27
    assert listening.lines == ["WARNING: these are not all shards of the passages; missing: 2/3"]


def test_a_passage_in_two_of_them(tmp_path: Path, small_bundle: Bundle, shards: list[Path]) -> None:
    with pytest.raises(IndexFileError, match=r"passage 'id-0' is in .*1\.index and in .*1\.index: give it once"):
        merge(small_bundle, tmp_path / "x.index", shards[0], shards[0])
    other = built(small_bundle, write_passages(tmp_path / "o.jsonl", 39, 5), tmp_path / "other.index")
    with pytest.raises(IndexFileError, match=r"passage 'id-39' is in .*3\.index and in .*other\.index: give it once"):
        merge(small_bundle, tmp_path / "x.index", shards[0], shards[2], other)
    assert not (tmp_path / "x.index").exists()


def test_a_part_of_another_tower(
    tmp_path: Path, small_bundle: Bundle, small_pair: "Pair", vocabulary: list[str], shards: list[Path]
) -> None:
    context = write_dpr(tmp_path / "context", "context_encoder", vocabulary, seed=3)
    request = ExportRequest(str(small_pair.question), str(context), tmp_path / "b", "other", allow_unpaired=True)
    export_bundle(request, step=lambda what: None)
    other = built(open_bundle(tmp_path / "b"), write_passages(tmp_path / "o.jsonl", 90, 5), tmp_path / "other.index")
    with pytest.raises(MismatchError, match=r"other\.index was filled by another context encoder"):
        merge(small_bundle, tmp_path / "x.index", shards[0], other)


def test_a_part_of_another_variant(tmp_path: Path, variants_bundle: Bundle, shards: list[Path]) -> None:
    passages = write_passages(tmp_path / "o.jsonl", 90, 5)
    other = built(variants_bundle, passages, tmp_path / "other.index", variant="int8")
    with pytest.raises(
        IndexFileError, match=r"other\.index holds 64 dimensions of variant int8, .*1\.index 64 of fp32"
    ):
        merge(variants_bundle, tmp_path / "x.index", shards[0], other)


def test_parts_of_different_files_of_a_variant(tmp_path: Path, variants_bundle: Bundle) -> None:
    """int8 twice, once as on a machine that has calibrated it otherwise."""
    parts = [tmp_path / "a.index", tmp_path / "b.index", tmp_path / "c.index"]
    for number, part in enumerate(parts):
        file = write_passages(tmp_path / f"{number}.jsonl", 10 * number, 5)
        built(variants_bundle, file, part, variant="int8")
    assert merge(variants_bundle, tmp_path / "x.index", *parts[:2]).count == 10
    made_by = [read_manifest(index)[1].model_sha256 for index in (parts[0], tmp_path / "x.index")]
    assert made_by == [variants_bundle.tower("context_encoder").variants["int8"].sha256] * 2
    seal(parts[2], model_sha256="0" * 64)
    with pytest.raises(IndexFileError, match=r"c\.index and .*a\.index were filled by different model files"):
        merge(variants_bundle, tmp_path / "y.index", parts[0], parts[2])


@pytest.mark.parametrize("name", ["index.faiss", "passages.blob", "truncated.jsonl", "manifest.json"])
def test_a_damaged_part(tmp_path: Path, small_bundle: Bundle, shards: list[Path], name: str) -> None:
    copy = shutil.copytree(shards[1], tmp_path / "copy.index", ignore=shutil.ignore_patterns(".*"))
    file = copy / "g000001" / name
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(IndexFileError, match=f"{file} does not match .*build the index again"):
        merge(small_bundle, tmp_path / "x.index", shards[0], copy)
    with pytest.raises(IndexFileError, match="is not an index"):
        merge(small_bundle, tmp_path / "x.index", shards[0], tmp_path / "none.index")
    assert not (tmp_path / "x.index").exists()


# --- stopped


def test_a_stopped_merge_goes_on(
    tmp_path: Path, small_bundle: Bundle, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.index"

    class Stop(Progress):
        def training(self, rows: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_indexes(small_bundle, shards, Target(out, "x", 1, wanted=Wanted("sq8")), Stop())
    assert [path.name for path in out.iterdir()] == [".build"]
    with pytest.raises(IndexFileError, match="an unfinished build of other inputs"):
        merge(small_bundle, out, *shards[:2])

    def again(*arguments: object) -> None:
        raise AssertionError("put together again")

    monkeypatch.setattr(unfinished, "adopt", again)
    assert merge(small_bundle, out, *shards, wanted=Wanted("sq8")).count == 40


def test_a_merge_in_place_that_was_stopped_at_its_very_end_is_no_other_merge(
    tmp_path: Path, small_bundle: Bundle, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(shards[0], tmp_path / "x.index", ignore=shutil.ignore_patterns(".*"))

    def stopped(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(unfinished, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            merge(small_bundle, out, out, shards[1], replace=True)
    stopped_there = shutil.copytree(out, tmp_path / "copy.index")
    again = merge(small_bundle, stopped_there, stopped_there, shards[1], replace=True)
    assert (again.generation, again.count) == ("g000002", 26), "the same merge is done"
    other = merge(small_bundle, out, out, shards[2], replace=True)
    assert (other.generation, other.count) == ("g000003", 40), "another is made"


@pytest.mark.parametrize(
    "what", [pytest.param("convert", marks=pytest.mark.slow), pytest.param("in place", marks=pytest.mark.slow), "merge"]
)
def test_killed_at_every_write_point(tmp_path: Path, small_bundle: Bundle, shards: list[Path], what: str) -> None:
    out = tmp_path / "x.index"
    ignore = shutil.ignore_patterns(".*")
    parts = [shutil.copytree(shard, tmp_path / shard.name, ignore=ignore) for shard in shards]
    replacing = what != "merge"
    if replacing:
        shutil.copytree(shards[1], out, ignore=ignore)
    chosen = {"convert": parts[:1], "in place": [out], "merge": parts}[what]
    preset = "flat" if what == "merge" else "ivf-sq8"
    sources = [str(source) for source in chosen]
    done = subprocess.run(
        [sys.executable, str(KILLS), str(small_bundle.path), str(out), preset, "1", str(int(replacing)), *sources],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kill["kill_at"] for kill in kills] == list(range(1, len(kills) + 1))
    assert len(kills) > 30
    old, new = ("g000001", "g000002") if replacing else ("", "g000001")
    serving = [kill["serving"] for kill in kills]
    assert serving == sorted(serving)  # first the old one, or none, then the new one
    assert set(serving) == {old, new}
    for kill in kills:
        assert kill["failures"] == [], kill
        assert kill["sources_intact"], kill
    for kill in kills[:-1]:
        assert kill["same"], kill
        assert (kill["again"]["generation"], kill["again"]["preset"]) == (new, preset), kill
    # Killed after everything but the sync of one deletion: it was done, and the command begins the next one.
    last = kills[-1]
    assert ("refused" in last["again"] and last["same"]) or last["again"]["generation"] == "g000003"
