"""Building an index, opening it, and everything that must not be opened."""

import csv
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from building import build
from checkpoints import write_dpr

from narrows.bundle import Bundle, open_bundle
from narrows.durable import locked, sha256_file
from narrows.errors import BundleError, IndexFileError, MismatchError, NarrowsError, PassageFileError
from narrows.index import build as builds
from narrows.index import store
from narrows.index.opened import open_index
from narrows.index.presets import FLAT_PLAN
from narrows.index.progress import Progress
from narrows.index.store import read_manifest
from narrows.passages import FILES, Passage
from narrows.towers import load_towers
from narrows_export import corpus
from narrows_export.export import ExportRequest, export_bundle
from narrows_tools.cli.main import main

if TYPE_CHECKING:
    from checkpoints import Pair

FILES_OF_A_GENERATION = ("index.faiss", *FILES)
SOME = [Passage(f"id-{n}", f"Title {n}", f"passage number {n} of some") for n in range(5)]


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory, small_pair: "Pair", vocabulary: list[str]) -> Bundle:
    """A bundle whose context encoder has other weights than that of `small_bundle`."""
    base = tmp_path_factory.mktemp("other")
    context = write_dpr(base / "context", "context_encoder", vocabulary, seed=3)
    request = ExportRequest(str(small_pair.question), str(context), base / "b", "other", allow_unpaired=True)
    export_bundle(request, step=lambda what: None)
    return open_bundle(base / "b")


@pytest.fixture
def copy(tmp_path: Path, small_index: Path) -> Path:
    """An index to damage."""
    return shutil.copytree(small_index, tmp_path / "copy.index", ignore=shutil.ignore_patterns(".*"))


def write_jsonl(file: Path, items: list[Passage]) -> Path:
    data = "".join(json.dumps(asdict(item)) + "\n" for item in items).encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def write_tsv(file: Path, items: list[Passage]) -> Path:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t")
        writer.writerow(["id", "text", "title"])
        writer.writerows([item.id, item.text, item.title] for item in items)
    return file


def tree(path: Path) -> dict[str, str] | None:
    """Every path below `path` with the hash of its bytes; None where there is no `path`."""
    if not path.exists():
        return None
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "directory"
        for p in sorted(path.rglob("*"))
    }


def vectors_of(index: Path) -> npt.NDArray[np.float32]:
    generation, _ = read_manifest(index)
    flat = faiss.read_index(str(index / generation / "index.faiss"))
    return flat.reconstruct_n(0, flat.ntotal)


def embeddings_of(bundle: Bundle, items: list[Passage]) -> npt.NDArray[np.float32]:
    """Each passage encoded alone by the context encoder."""
    tower = load_towers(bundle, "fp32", 1, ["context_encoder"])["context_encoder"]
    texts = tower.tokenizer.passages([(item.title, item.text) for item in items])
    return np.concatenate([tower.encoder.encode([text.ids]) for text in texts])


def demo_passages() -> list[Passage]:
    return [Passage(item.id, item.title, item.text) for item in corpus.passages("en")]


# --- what is built


def test_manifest_of_the_demo(small_bundle: Bundle, small_index: Path) -> None:
    generation, manifest = read_manifest(small_index)
    assert generation == "g000001"
    source = corpus.passages_file("en")
    expected = {
        "schema_version": 3,
        "name": "demo",
        "tower_id": small_bundle.tower("context_encoder").tower_id,
        "variant": "fp32",
        "bundle": "small",
        "metric": "inner_product",
        "plan": FLAT_PLAN,
        "recall": None,
        "dim": 64,
        "count": 300,
        "truncated_count": 0,
        "source": source.name,
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    assert {name: getattr(manifest, name) for name in expected} == expected
    norms = np.linalg.norm(vectors_of(small_index).astype(np.float64), axis=1)
    assert manifest.max_norm == pytest.approx(norms.max(), rel=1e-12)
    assert set(manifest.files) == {*FILES_OF_A_GENERATION, "truncated.jsonl"}
    for name, file in manifest.files.items():
        data = (small_index / generation / name).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(data), (hashlib.sha256(data).hexdigest(),))
    stamp = f".{generation}.verified"  # of a server that another test ran
    assert set(tree(small_index) or {}) - {stamp} == {
        "CURRENT", "g000001", "g000001/manifest.json", "g000001/truncated.jsonl",
        *(f"g000001/{name}" for name in FILES_OF_A_GENERATION),
    }  # fmt: skip


def test_vectors_are_the_encoders_own_in_the_order_of_the_file(small_bundle: Bundle, small_index: Path) -> None:
    opened = open_index(small_index, small_bundle, threads=1)
    items = demo_passages()
    assert opened.passages.get(range(300)) == items
    expected = embeddings_of(small_bundle, items)
    assert np.abs(vectors_of(small_index) - expected).max() == 0
    # Every passage finds itself, at the score of its own embedding.
    hits = opened.vectors.search(expected, 300)
    assert all(row in hits.rows[row] for row in range(300))
    scores = (expected.astype(np.float64) @ expected.T.astype(np.float64)).max(axis=1)
    np.testing.assert_allclose(hits.scores[:, 0], scores, rtol=1e-6)


def test_truncated_passages_are_counted(tmp_path: Path, small_bundle: Bundle) -> None:
    longest = small_bundle.tower("context_encoder").max_tokens
    words = {"fits": longest - 2, "one-too-many": longest - 1, "long": 5 * longest, "short": 1}
    items = [Passage(name, "", " ".join(["the"] * count)) for name, count in words.items()]
    items += [Passage("titled-fits", "the", " ".join(["the"] * (longest - 4)))]  # [CLS] the [SEP] text [SEP]
    items += [Passage("titled", "the", " ".join(["the"] * (longest - 3)))]
    report = build(small_bundle, write_jsonl(tmp_path / "p.jsonl", items), tmp_path / "x.index")
    _, manifest = read_manifest(tmp_path / "x.index")
    assert report.truncated_count == manifest.truncated_count == 3
    cut = {"one-too-many": longest + 1, "long": 5 * longest + 2, "titled": longest + 1}
    lines = (tmp_path / "x.index" / "g000001" / "truncated.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"id": name, "tokens": tokens, "kept": longest} for name, tokens in cut.items()
    ]
    assert manifest.cut_token_count == report.cut_token_count == sum(cut.values()) - 3 * longest
    assert manifest.token_count == report.token_count == sum(cut.values()) + 2 * longest + 3  # "short" has three
    assert np.array_equal(vectors_of(tmp_path / "x.index"), embeddings_of(small_bundle, items))


class Recorder(Progress):
    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def reading(self, passages: int) -> None:
        self.events.append(("reading", passages))

    def estimated(self, passages: int, seconds: float) -> None:
        assert 0 < seconds < 3600
        self.events.append(("estimated", passages))

    def encoded(self, passages: int) -> None:
        self.events.append(("encoded", passages))


def test_progress_and_order_over_several_chunks(tmp_path: Path, small_bundle: Bundle) -> None:
    items = [Passage(str(n), "", " ".join(["word"] * (n % 7)) + f" {n * n % 1009}") for n in range(4500)]
    for n in (7, 4400):  # cut, in both chunks
        items[n] = Passage(str(n), "", "word " * 600)
    recorder = Recorder()
    report = build(small_bundle, write_jsonl(tmp_path / "p.jsonl.gz", items), tmp_path / "x.index", recorder)
    events = recorder.events
    assert events[:6] == [("reading", n) for n in (1000, 2000, 3000, 4000, 4500)] + [("estimated", 4500)]
    assert {what for what, _ in events[6:]} == {"encoded"}
    assert all(count > 0 for _, count in events[6:])
    assert sum(count for _, count in events[6:]) == 4500
    some = [0, 1, 1000, 4094, 4095, 4096, 4097, 4499]  # a chunk has 4096
    assert np.array_equal(vectors_of(tmp_path / "x.index")[some], embeddings_of(small_bundle, [items[n] for n in some]))
    assert (report.generation, report.count, report.dim, report.truncated_count) == ("g000001", 4500, 64, 2)
    _, manifest = read_manifest(tmp_path / "x.index")
    norms = np.linalg.norm(vectors_of(tmp_path / "x.index").astype(np.float64), axis=1)
    assert norms.argmax() < 4096  # not in the last chunk, or the next line says little
    assert manifest.max_norm == pytest.approx(norms.max(), rel=1e-12)
    assert report.size_bytes == sum(file.size_bytes for file in manifest.files.values())
    assert report.passages_per_s == pytest.approx(4500 / report.encode_s)


def test_the_same_passages_give_the_same_files(tmp_path: Path, small_bundle: Bundle, small_index: Path) -> None:
    _, first = read_manifest(small_index)  # built with one thread, these with two
    sources = [
        corpus.passages_file("en"),
        write_tsv(tmp_path / "p.tsv", demo_passages()),
        write_jsonl(tmp_path / "p.jsonl.gz", demo_passages()),
    ]
    for number, source in enumerate(sources):
        build(small_bundle, source, tmp_path / f"{number}.index")
        _, manifest = read_manifest(tmp_path / f"{number}.index")
        assert manifest.files == first.files
        assert (manifest.max_norm, manifest.truncated_count) == (first.max_norm, first.truncated_count)


# --- builds that fail


BAD_ROW = b'{"id": "b", "text": 7}\n'


def failing_build(kind: str, bundle: Bundle, directory: Path, out: Path) -> None:
    """One of the builds that fail after the output has been begun."""
    good = b"".join(b'{"id": "%d", "text": "good"}\n' % n for n in range(1500))
    file = directory / "p.jsonl"
    file.write_bytes({"bad row": good + BAD_ROW + good, "no passages": b"\n\n"}[kind])
    with pytest.raises(PassageFileError, match=":1501: expected" if kind == "bad row" else "holds no passages"):
        build(bundle, file, out, replace=True)


FAILURES = ["bad row", "no passages"]


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_first_build_leaves_nothing(tmp_path: Path, small_bundle: Bundle, kind: str) -> None:
    failing_build(kind, small_bundle, tmp_path, tmp_path / "x.index")
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_first_build_leaves_an_empty_directory_empty(tmp_path: Path, small_bundle: Bundle, kind: str) -> None:
    (tmp_path / "x.index").mkdir()
    failing_build(kind, small_bundle, tmp_path, tmp_path / "x.index")
    assert tree(tmp_path / "x.index") == {}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_next_build_changes_nothing(tmp_path: Path, small_bundle: Bundle, copy: Path, kind: str) -> None:
    before = tree(copy)
    failing_build(kind, small_bundle, tmp_path, copy)
    assert tree(copy) == before
    open_index(copy, small_bundle, 1)


def test_an_unknown_variant(tmp_path: Path, small_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no variant int4"):
        build(small_bundle, write_jsonl(tmp_path / "p.jsonl", SOME), tmp_path / "x.index", variant="int4")
    assert not (tmp_path / "x.index").exists()


def test_bad_rows_are_skipped_counted_and_named(
    tmp_path: Path, small_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "p.jsonl", tmp_path / "x.index"
    good = [b'{"id": "%d", "text": "good"}\n' % n for n in range(10)]
    file.write_bytes(b"".join([BAD_ROW, *good[:5], good[2], BAD_ROW * 6, *good[5:]]))
    report = build(small_bundle, file, out, skip_bad=True)
    _, manifest = read_manifest(out)
    assert report.skipped == manifest.skipped
    assert {reason: rows.count for reason, rows in manifest.skipped.items()} == {"malformed JSON": 7, "duplicate id": 1}
    assert [int(place.partition(":")[0]) for place in manifest.skipped["malformed JSON"].first] == [1, 8, 9, 10, 11]
    assert manifest.skipped["duplicate id"].first == ("7: the id '2' was used on line 4 already",)
    assert [passage.id for passage in open_index(out, small_bundle, 1).passages.get(range(10))] == [*"0123456789"]
    main(["index", "info", str(out)])
    printed = capsys.readouterr().out
    assert "skipped     7 rows: malformed JSON (at line 1, 8, 9, 10, 11, ...; the first: expected " in printed
    assert "skipped     1 row: duplicate id (at line 7; the first: the id '2' was used on line 4 already)" in printed


def test_nothing_but_bad_rows(tmp_path: Path, small_bundle: Bundle) -> None:
    (tmp_path / "p.jsonl").write_bytes(BAD_ROW * 3)
    with pytest.raises(PassageFileError, match=r"holds no passages \(3 bad rows were skipped\)"):
        build(small_bundle, tmp_path / "p.jsonl", tmp_path / "x.index", skip_bad=True)
    assert not (tmp_path / "x.index").exists()


# --- where an index may be built


def test_replace_makes_the_next_generation(tmp_path: Path, small_bundle: Bundle, copy: Path) -> None:
    opened = open_index(copy, small_bundle, 1)
    report = build(small_bundle, write_jsonl(tmp_path / "p.jsonl", SOME), copy, replace=True)
    assert report.generation == "g000002"
    assert (copy / "CURRENT").read_text().split() == ["g000002", sha256_file(copy / "g000002" / "manifest.json")]
    assert sorted(path.name for path in copy.iterdir()) == ["CURRENT", "g000002"]
    assert open_index(copy, small_bundle, 1).passages.get(range(5)) == SOME
    # Whoever has the old one open keeps it.
    assert opened.passages.get(range(300)) == demo_passages()
    assert opened.vectors.search(np.ones((1, 64), dtype=np.float32), 300).rows.max() == 299
    build(small_bundle, tmp_path / "p.jsonl", copy, replace=True)
    assert sorted(path.name for path in copy.iterdir()) == ["CURRENT", "g000003"]


def test_replace_of_nothing_makes_the_first_generation(tmp_path: Path, small_bundle: Bundle) -> None:
    report = build(small_bundle, write_jsonl(tmp_path / "p.jsonl", SOME), tmp_path / "a" / "x.index", replace=True)
    assert report.generation == "g000001"
    assert sorted(path.name for path in (tmp_path / "a" / "x.index").iterdir()) == ["CURRENT", "g000001"]


def test_an_existing_index_is_kept_without_replace(tmp_path: Path, small_bundle: Bundle, copy: Path) -> None:
    before = tree(copy)
    with pytest.raises(IndexFileError, match="holds an index already: give --replace"):
        build(small_bundle, write_jsonl(tmp_path / "p.jsonl", SOME), copy)
    assert tree(copy) == before


@pytest.mark.parametrize("replacing", [False, True])
def test_a_foreign_directory_or_file_is_kept(tmp_path: Path, small_bundle: Bundle, replacing: bool) -> None:
    passages = write_jsonl(tmp_path / "p.jsonl", SOME)
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.tex").write_bytes(b"years of work")
    before = tree(foreign)
    with pytest.raises(IndexFileError, match="thesis exists and is not an index"):
        build(small_bundle, passages, foreign, replace=replacing)
    assert tree(foreign) == before
    with pytest.raises(IndexFileError, match=r"p\.jsonl exists and is not an index"):
        build(small_bundle, passages, passages, replace=replacing)
    (foreign / "CURRENT").write_bytes(b"chapter1.tex")
    with pytest.raises(IndexFileError, match="does not name a generation"):
        build(small_bundle, passages, foreign, replace=replacing)


def test_what_crashes_left_is_built_over_and_removed(tmp_path: Path, small_bundle: Bundle, copy: Path) -> None:
    passages = write_jsonl(tmp_path / "p.jsonl", SOME)
    (copy / ".g000001.1.partial").mkdir()
    (copy / "CURRENT").unlink()  # killed after the rename of g000001, before CURRENT
    assert build(small_bundle, passages, copy).generation == "g000001"
    assert sorted(path.name for path in copy.iterdir()) == ["CURRENT", "g000001"]
    shutil.copytree(copy / "g000001", copy / "g000002")  # the same, at the second generation
    (copy / "g000002" / "half").write_bytes(b"")
    assert build(small_bundle, passages, copy, replace=True).generation == "g000002"
    shutil.copytree(copy / "g000002", copy / "g000001")  # killed before g000001 was deleted
    build(small_bundle, passages, copy, replace=True)
    assert sorted(path.name for path in copy.iterdir()) == ["CURRENT", "g000003"]
    open_index(copy, small_bundle, 1)


def test_stamps_of_other_generations_and_half_written_ones_go(tmp_path: Path, small_bundle: Bundle, copy: Path) -> None:
    open_index(copy, small_bundle, 1, "stamp")
    assert (copy / ".g000001.verified").exists()
    (copy / "..g000001.verified.17.tmp").write_bytes(b"half")
    (copy / ".CURRENT.17.tmp").write_bytes(b"half")
    build(small_bundle, write_jsonl(tmp_path / "p.jsonl", SOME), copy, replace=True)
    assert sorted(path.name for path in copy.iterdir()) == ["CURRENT", "g000002"]


# --- opening


def seal(path: Path, generation: str = "g000001") -> None:
    """Makes CURRENT fit a manifest that the test has changed."""
    digest = sha256_file(path / generation / "manifest.json")
    (path / "CURRENT").write_text(f"{generation} {digest}\n", "ascii")


def refusal(path: Path, bundle: Bundle, kind: type[NarrowsError] = IndexFileError) -> str:
    with pytest.raises(kind) as caught:
        open_index(path, bundle, threads=1)
    return str(caught.value)


def test_a_copy_opens(copy: Path, small_bundle: Bundle) -> None:
    opened = open_index(copy, small_bundle, threads=1)
    assert (opened.generation, opened.vectors.count, opened.vectors.dim, len(opened.passages)) == (
        "g000001",
        300,
        64,
        300,
    )
    assert opened.passages.find("en-001") == 0


@pytest.mark.parametrize("name", FILES_OF_A_GENERATION)
def test_flipped_byte(copy: Path, small_bundle: Bundle, name: str) -> None:
    file = copy / "g000001" / name
    good = file.read_bytes()
    for place in (0, 30, len(good) // 2, len(good) - 1):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert refusal(copy, small_bundle).startswith(f"{file} does not match the manifest")


@pytest.mark.parametrize("name", [*FILES_OF_A_GENERATION, "truncated.jsonl"])
def test_a_stamp_spares_the_hashing_until_a_file_changes(copy: Path, small_bundle: Bundle, name: str) -> None:
    assert open_index(copy, small_bundle, 1, "stamp").generation == "g000001"
    stamp = (copy / ".g000001.verified").read_bytes()
    open_index(copy, small_bundle, 1, "stamp")
    assert (copy / ".g000001.verified").read_bytes() == stamp
    file = copy / "g000001" / name
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(IndexFileError, match=f"{name} does not match the manifest"):
        open_index(copy, small_bundle, 1, "stamp")


@pytest.mark.parametrize("name", FILES_OF_A_GENERATION)
def test_cut_longer_and_missing_files(copy: Path, small_bundle: Bundle, name: str) -> None:
    file = copy / "g000001" / name
    good = file.read_bytes()
    for data in (b"", good[:28], good[:-1], good + b"\0"):
        file.write_bytes(data)
        assert refusal(copy, small_bundle).startswith(f"{file} does not match the manifest")
    file.unlink()
    assert refusal(copy, small_bundle).startswith(f"{file} is missing")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-2],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b'"name": "demo"', b'"name": "d\xff"'),
        lambda data: data.replace(b'"count": 300', b'"count": "300"'),
        lambda data: data.replace(b'"max_norm"', b'"max_norms"'),
    ],
)
def test_damaged_manifest(copy: Path, small_bundle: Bundle, damage: Callable[[bytes], bytes]) -> None:
    manifest = copy / "g000001" / "manifest.json"
    damaged = damage(manifest.read_bytes())
    assert damaged != manifest.read_bytes()
    manifest.write_bytes(damaged)
    assert refusal(copy, small_bundle).startswith(f"{manifest} does not match CURRENT")
    seal(copy)
    assert refusal(copy, small_bundle).startswith(f"{manifest} cannot be read: ")


def test_a_changed_number_in_the_manifest_is_noticed(copy: Path, small_bundle: Bundle) -> None:
    manifest = copy / "g000001" / "manifest.json"
    manifest.write_bytes(re.sub(rb'"max_norm": [0-9]', b'"max_norm": 0', manifest.read_bytes()))
    assert refusal(copy, small_bundle).startswith(f"{manifest} does not match CURRENT")


def test_a_manifest_that_leaves_a_file_out(copy: Path, small_bundle: Bundle) -> None:
    manifest = copy / "g000001" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"id_rank.npy"', b'"id_rank.old"'))
    seal(copy)
    assert "id_rank.npy does not match the manifest" in refusal(copy, small_bundle)


def test_missing_manifest(copy: Path, small_bundle: Bundle) -> None:
    (copy / "g000001" / "manifest.json").unlink()
    assert "manifest.json cannot be read: " in refusal(copy, small_bundle)


@pytest.mark.parametrize("version", [0, 1, 4])
def test_another_schema_version(copy: Path, small_bundle: Bundle, version: int) -> None:
    manifest = copy / "g000001" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"schema_version": 3', b'"schema_version": %d' % version))
    seal(copy)
    assert refusal(copy, small_bundle).startswith(
        f"{manifest} has schema version {version}; this program reads 2 and 3"
    )


def test_an_index_of_schema_2_opens(copy: Path, small_bundle: Bundle) -> None:
    """It had no plan: only flat indexes."""
    file = copy / "g000001" / "manifest.json"
    manifest = json.loads(file.read_bytes())
    del manifest["plan"], manifest["recall"]
    file.write_text(json.dumps(manifest | {"schema_version": 2, "factory": "Flat"}))
    seal(copy)
    opened = open_index(copy, small_bundle, 1)
    assert opened.manifest.plan == FLAT_PLAN
    assert opened.vectors.search(np.ones((1, 64), dtype=np.float32), 300).rows.shape == (1, 300)


@pytest.mark.parametrize(("field", "value"), [("count", b"299"), ("dim", b"32")])
def test_a_manifest_that_contradicts_the_vectors(copy: Path, small_bundle: Bundle, field: str, value: bytes) -> None:
    manifest = copy / "g000001" / "manifest.json"
    changed = re.sub(b'"%s": [0-9]+' % field.encode(), b'"%s": %s' % (field.encode(), value), manifest.read_bytes())
    manifest.write_bytes(changed)
    seal(copy)
    assert "g000001 does not hold " in refusal(copy, small_bundle)


@pytest.mark.parametrize(
    "name",
    [b"", b"\n", b"../x", b"../copy.index/g000001", b"/etc", b"g1", b"g0000010", b"G000001", b"g00000x", b"."],
)  # fmt: skip
def test_current_that_names_no_generation(copy: Path, small_bundle: Bundle, name: bytes) -> None:
    digest = (copy / "CURRENT").read_bytes().split()[1]
    for line in (name, name + b"\n", name + b" " + digest + b"\n", b"g000001", b"g000001 " + digest[:-1] + b"\n"):
        (copy / "CURRENT").write_bytes(line)
        assert refusal(copy, small_bundle).startswith(f"{copy / 'CURRENT'} does not name a generation")


@pytest.mark.parametrize("name", [b"\xff\xfe", "g00000١".encode()])
def test_current_that_is_no_text(copy: Path, small_bundle: Bundle, name: bytes) -> None:
    (copy / "CURRENT").write_bytes(name)
    assert refusal(copy, small_bundle).startswith(f"{copy / 'CURRENT'} cannot be read: ")


def test_current_that_names_an_absent_generation(copy: Path, small_bundle: Bundle) -> None:
    (copy / "CURRENT").write_bytes(b"g000002 " + b"0" * 64 + b"\n")
    assert "g000002/manifest.json cannot be read" in refusal(copy, small_bundle)


def test_two_builds_at_once(tmp_path: Path, small_bundle: Bundle, copy: Path) -> None:
    passages = write_jsonl(tmp_path / "p.jsonl", SOME)
    with locked(copy), pytest.raises(IndexFileError, match="another process is building"):
        build(small_bundle, passages, copy, replace=True)
    assert open_index(copy, small_bundle, threads=1).generation == "g000001"


def test_two_first_builds_at_once(tmp_path: Path, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes too late leaves the other's directory alone, though it is empty as yet."""
    out, make = tmp_path / "x.index", store.durable.make_directory
    with ExitStack() as held:

        def other_is_quicker(path: Path) -> None:
            make(path)
            held.enter_context(locked(path))

        monkeypatch.setattr(store.durable, "make_directory", other_is_quicker)
        with pytest.raises(IndexFileError, match="another process is building"):
            build(small_bundle, write_jsonl(tmp_path / "p.jsonl", SOME), out)
        assert out.is_dir()


def test_an_index_that_another_build_made_meanwhile_is_kept(
    tmp_path: Path, small_bundle: Bundle, small_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.index"

    def slow_load(*arguments: object, **named: object) -> object:
        shutil.copytree(small_index, out)
        return load_towers(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builds, "load_towers", slow_load)
    with pytest.raises(IndexFileError, match="give --replace"):
        build(small_bundle, write_jsonl(tmp_path / "p.jsonl", SOME), out)
    assert read_manifest(out)[1].count == 300


def test_no_index_there(tmp_path: Path, copy: Path, small_bundle: Bundle) -> None:
    assert "is not an index (it has no CURRENT)" in refusal(tmp_path / "none", small_bundle)
    assert "is not an index (it has no CURRENT)" in refusal(tmp_path, small_bundle)
    refusal(copy / "CURRENT", small_bundle)  # a file
    (copy / "CURRENT").unlink()
    (copy / "CURRENT").mkdir()
    assert "CURRENT cannot be read" in refusal(copy, small_bundle)


def test_a_manifest_is_read_though_a_build_replaces_it(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = read_manifest(copy)[1]
    read = store._read_current

    def read_and_replace(path: Path) -> tuple[str, str] | None:
        found = read(path)
        if (path / "g000001").exists():
            (path / "g000001").rename(path / "g000002")
            seal(path, "g000002")
        return found

    monkeypatch.setattr(store, "_read_current", read_and_replace)
    assert read_manifest(copy) == ("g000002", expected)


def test_an_index_of_another_tower(small_index: Path, small_bundle: Bundle, other_bundle: Bundle) -> None:
    message = refusal(small_index, other_bundle, MismatchError)
    own, other = (bundle.tower("context_encoder").tower_id for bundle in (small_bundle, other_bundle))
    assert own != other
    assert own in message
    assert other in message
    assert str(small_index) in message
    assert str(other_bundle.path) in message


# --- the command line


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_cli_build_and_info(tmp_path: Path, small_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    passages, out = write_tsv(tmp_path / "p.tsv", SOME), tmp_path / "wiki.index"
    arguments = (
        "index",
        "build",
        "--bundle",
        small_bundle.path,
        "--passages",
        passages,
        "--out",
        out,
        "--threads",
        "1",
    )

    status, printed, progress = run(capsys, *arguments, "--json")
    assert status == 0
    report = json.loads(printed)
    assert {name: report[name] for name in ("index", "generation", "count", "dim", "truncated_count")} == {
        "index": str(out), "generation": "g000001", "count": 5, "dim": 64, "truncated_count": 0
    }  # fmt: skip
    assert report["passages_per_s"] > 0
    assert "encoding 5 passages should take about 0 min" in progress

    status, printed, error = run(capsys, *arguments)
    assert (status, printed) == (1, "")
    assert f"narrows: {out} holds an index already: give --replace" in error

    status, printed, _ = run(capsys, *arguments, "--replace", "--name", "english")
    assert status == 0
    assert printed.startswith(f"wrote {out} (g000002): 5 passages of 64 dimensions, ")
    assert "; 0 passages were cut to the tower's length" in printed

    status, printed, _ = run(capsys, "index", "info", out, "--json")
    assert status == 0
    generation, manifest = read_manifest(out)
    assert json.loads(printed) == json.loads(json.dumps({"generation": generation, **asdict(manifest)}))
    assert (generation, manifest.name) == ("g000002", "english")

    status, printed, _ = run(capsys, "index", "info", out)
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in printed.splitlines() if not line.startswith(("filled", "made")))
    assert (lines["name"], lines["generation"]) == ("english", "g000002")
    assert lines["passages"] == "5 from p.tsv"
    assert lines["cut"] == "0 passages were cut to the tower's length (0.00% of all tokens)"
    assert (
        lines["vectors"] == "64 dimensions, flat (Flat), inner_product, 265 bytes each"
    )  # with a share of the file's header
    assert f"tower_id {manifest.tower_id}" in printed


def test_cli_name_comes_from_the_output(
    tmp_path: Path, small_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    passages, out = write_jsonl(tmp_path / "p.jsonl", SOME), tmp_path / "wiki.index"
    status, _, _ = run(capsys, "index", "build", "--bundle", small_bundle.path, "--passages", passages, "--out", out)
    assert status == 0
    assert read_manifest(out)[1].name == "wiki"


def test_cli_says_what_is_wrong(tmp_path: Path, small_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"id": "a", "text": "A"}\n' + BAD_ROW)
    out = tmp_path / "x.index"
    status, printed, error = run(
        capsys, "index", "build", "--bundle", small_bundle.path, "--passages", bad, "--out", out, "--json"
    )
    assert (status, printed) == (1, "")
    assert error.rpartition("narrows: ")[2].startswith(f"{bad}:2: expected ")
    assert not out.exists()

    status, printed, error = run(capsys, "index", "info", out)
    assert (status, printed) == (1, "")
    assert error.startswith(f"narrows: {out} is not an index")

    status, _, error = run(capsys, "index", "build", "--bundle", tmp_path, "--passages", bad, "--out", out)
    assert status == 1
    assert f"narrows: {tmp_path} is not a bundle" in error


@pytest.mark.parametrize(
    "arguments", [["index"], ["index", "build"], ["index", "info"], ["index", "build", "--bundle", "b"]]
)
def test_cli_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: narrows index" in capsys.readouterr().err
