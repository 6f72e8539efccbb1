"""`narrows index verify`: a whole index passes; each thing that can be wrong is said, with exit status 1."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from building import build

from narrows import integrity
from narrows.bundle import Bundle
from narrows.errors import IndexFileError
from narrows.index import opened, store
from narrows.index.presets import FLAT_PLAN
from narrows.index.store import TRUNCATED, vector_files
from narrows.index.vector_file import header
from narrows.index.verify import VerifyReport, verify_index
from narrows.passages import FILES
from narrows_export import corpus
from narrows_tools.cli.main import main

DIM, COUNT = 64, 300
FLAT_FILES = (*vector_files(FLAT_PLAN), TRUNCATED, *FILES)


@pytest.fixture
def copy(tmp_path: Path, small_index: Path) -> Path:
    """An index to damage."""
    return shutil.copytree(small_index, tmp_path / "copy.index")


def verify(path: Path, bundle: Bundle, sample: int = 20) -> VerifyReport:
    return verify_index(path, bundle, sample, 0, 1, lambda what: None)


def seal(path: Path, **changes: Any) -> None:
    """Makes the manifest and CURRENT fit files that the test has changed: only what they hold can tell then."""
    directory = path / "g000001"
    manifest = json.loads((directory / "manifest.json").read_bytes()) | changes
    for name in FLAT_FILES:
        sha256 = integrity.hash_files([directory / name])[directory / name]
        manifest["files"][name] = {"size_bytes": (directory / name).stat().st_size, "sha256": sha256}
    data = json.dumps(manifest).encode()
    (directory / "manifest.json").write_bytes(data)
    (path / "CURRENT").write_text(f"g000001 {hashlib.sha256(data).hexdigest()}\n")


def change_vectors(path: Path, change: Callable[[np.ndarray], None]) -> None:
    file = path / "g000001" / "index.faiss"
    data = bytearray(file.read_bytes())
    vectors = np.frombuffer(data, dtype=np.float32, offset=len(header(DIM, COUNT))).reshape(COUNT, DIM)
    change(vectors)
    file.write_bytes(data)


def change_array(path: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    array = np.load(path / "g000001" / name)
    change(array)
    np.save(path / "g000001" / name, array)


def test_a_whole_index(copy: Path, small_bundle: Bundle) -> None:
    seal(copy)
    report = verify(copy, small_bundle)
    assert report.lowest_cosine == pytest.approx(1)
    assert replace(report, lowest_cosine=1.0) == VerifyReport(
        str(copy), "g000001", COUNT, [], sample=20, identical=20, max_abs_error=0.0, allowed="error up to 1e-04"
    )
    assert verify(copy, small_bundle, sample=10_000).sample == COUNT
    assert verify(copy, small_bundle, sample=0).sample == 0


@pytest.mark.parametrize("name", FLAT_FILES)
def test_every_changed_file_is_named(copy: Path, small_bundle: Bundle, name: str) -> None:
    file = copy / "g000001" / name
    file.write_bytes(file.read_bytes() + b"x")
    (copy / "g000001" / "id_rank.npy").write_bytes(b"y")
    failures = verify(copy, small_bundle).failures
    assert {failure.split()[0] for failure in failures} == {str(file), str(copy / "g000001" / "id_rank.npy")}
    assert all("does not match the manifest" in failure for failure in failures)


def test_missing_files_and_no_index(copy: Path, small_bundle: Bundle, tmp_path: Path) -> None:
    (copy / "g000001" / "truncated.jsonl").unlink()
    assert verify(copy, small_bundle).failures == [f"{copy / 'g000001' / 'truncated.jsonl'} is missing"]
    (copy / "CURRENT").write_bytes(b"?")
    assert "does not name a generation" in verify(copy, small_bundle).failures[0]
    assert "is not an index" in verify(tmp_path / "none", small_bundle).failures[0]


def zero_the_first(vectors: np.ndarray) -> None:
    vectors[:] = np.roll(vectors, 1, axis=0)


def not_a_number(vectors: np.ndarray) -> None:
    vectors[7, 3] = np.nan


def nudge(vectors: np.ndarray) -> None:
    vectors[:, 5] += 1e-3


def test_vectors_of_other_passages(copy: Path, small_bundle: Bundle) -> None:
    change_vectors(copy, zero_the_first)
    seal(copy)
    report = verify(copy, small_bundle)
    assert (report.sample, report.identical) == (20, 0)
    assert len(report.failures) == 20
    assert "encoded again, is off by" in report.failures[0]


def test_vectors_that_are_not_finite(copy: Path, small_bundle: Bundle) -> None:
    change_vectors(copy, not_a_number)
    seal(copy)
    assert "vectors that hold NaN or infinity: 1" in verify(copy, small_bundle, sample=0).failures


def test_vectors_that_are_off_by_a_little(copy: Path, small_bundle: Bundle) -> None:
    change_vectors(copy, nudge)
    seal(copy)
    report = verify(copy, small_bundle)
    assert report.max_abs_error == pytest.approx(1e-3, rel=0.01)
    assert any("the longest vector has the norm" in failure for failure in report.failures)
    assert sum("encoded again" in failure for failure in report.failures) == 20


def test_a_difference_within_the_tolerance_is_reported_and_passes(copy: Path, small_bundle: Bundle) -> None:
    def nudge_a_little(vectors: np.ndarray) -> None:
        vectors[:, 5] += 1e-5

    change_vectors(copy, nudge_a_little)
    norms = []
    change_vectors(copy, lambda vectors: norms.append(np.linalg.norm(vectors.astype(np.float64), axis=1).max()))
    seal(copy, max_norm=norms[0])
    report = verify(copy, small_bundle)
    assert (report.failures, report.identical) == ([], 0)
    assert 0 < report.max_abs_error < 1e-4


def test_an_index_filled_by_int8(tmp_path: Path, variants_bundle: Bundle) -> None:
    """Its vectors are the same bit for bit, though they were encoded in batches; those of other passages are not."""
    out = tmp_path / "int8.index"
    build(variants_bundle, corpus.passages_file("en"), out, variant="int8")
    report = verify(out, variants_bundle, sample=COUNT)
    assert (report.failures, report.identical) == ([], COUNT)
    change_vectors(out, zero_the_first)
    seal(out)
    assert len(verify(out, variants_bundle, sample=COUNT).failures) > COUNT * 0.9


@pytest.mark.parametrize(("module", "called"), [(store, "damages"), (opened, "open_generation")])
def test_an_index_that_is_replaced_meanwhile_is_not_called_damaged(
    copy: Path, small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, module: ModuleType, called: str
) -> None:
    real = getattr(module, called)

    def late(*arguments: Any) -> Any:
        (copy / "g000001").rename(copy / "g000002")
        (copy / "CURRENT").write_text((copy / "CURRENT").read_text().replace("g000001", "g000002"))
        return real(*arguments)

    monkeypatch.setattr(module, called, late)
    with pytest.raises(IndexFileError, match="was replaced by a build while it was checked"):
        verify(copy, small_bundle)


def test_a_file_that_the_disk_does_not_give_back(copy: Path, small_bundle: Bundle) -> None:
    file = copy / "g000001" / "index.faiss"
    file.unlink()
    file.symlink_to("/proc/self/mem")  # a file whose first byte cannot be read: EIO
    assert verify(copy, small_bundle).failures == [f"[Errno 5] Input/output error: '{file}'"]


def swap(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


def test_id_tables_that_contradict_each_other(copy: Path, small_bundle: Bundle) -> None:
    change_array(copy, "id_order.npy", swap)
    seal(copy)
    assert "not each other's inverse" in verify(copy, small_bundle, 0).failures[0]


def test_ids_out_of_order(copy: Path, small_bundle: Bundle) -> None:
    order = np.load(copy / "g000001" / "id_order.npy")
    swap(order)
    np.save(copy / "g000001" / "id_order.npy", order)
    np.save(copy / "g000001" / "id_rank.npy", np.argsort(order).astype(np.uint32))
    seal(copy)
    assert "the ids in" in verify(copy, small_bundle, 0).failures[0]
    assert "are not sorted and distinct" in verify(copy, small_bundle, 0).failures[0]


def test_an_id_twice(copy: Path, small_bundle: Bundle) -> None:
    blob = copy / "g000001" / "passages.blob"
    data = blob.read_bytes()
    assert data.count(b"en-002") == 1
    blob.write_bytes(data.replace(b"en-002", b"en-001"))
    seal(copy)
    assert "b'en-001' comes after b'en-001'" in verify(copy, small_bundle, 0).failures[0]


def test_strings_that_end_nowhere(copy: Path, small_bundle: Bundle) -> None:
    change_array(copy, "passages.ends.npy", lambda ends: swap(ends[1:]))
    seal(copy)
    assert "do not ascend from 0" in verify(copy, small_bundle, 0).failures[0]


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("id_order.npy", b"", "id_order.npy cannot be read by numpy"),
        ("passages.ends.npy", b"\x93NUMPY\x01\x00v\x00{'descr'", "passages.ends.npy cannot be read by numpy"),
        ("passages.blob", b"", "passages.blob is empty"),
        ("truncated.jsonl", b'{"id": "a", "tokens": 300}\n', "truncated.jsonl cannot be read"),
        ("truncated.jsonl", b"\xff\n", "truncated.jsonl cannot be read"),
    ],
)
def test_sealed_files_that_cannot_be_read(copy: Path, small_bundle: Bundle, name: str, data: bytes, what: str) -> None:
    (copy / "g000001" / name).write_bytes(data)
    seal(copy)
    assert what in verify(copy, small_bundle).failures[0]


def test_a_table_of_another_type(copy: Path, small_bundle: Bundle) -> None:
    file = copy / "g000001" / "id_rank.npy"
    np.save(file, np.load(file).astype(np.float32))
    seal(copy)
    assert verify(copy, small_bundle).failures == [f"{file} is not one row of uint32; build the index again"]


def test_passages_that_are_not_utf8(copy: Path, small_bundle: Bundle) -> None:
    blob = copy / "g000001" / "passages.blob"
    blob.write_bytes(blob.read_bytes().replace(b" the ", b" t\xff\xff "))
    seal(copy)
    assert "a passage of the sample is not UTF-8" in verify(copy, small_bundle).failures[0]


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("max_norm", 1.0, "the manifest says 1.0"),
        ("truncated_count", 3, "the manifest 3 and 0"),
        ("count", 299, "does not hold 299 x 64"),
    ],
)
def test_a_manifest_that_says_otherwise(copy: Path, small_bundle: Bundle, field: str, value: float, what: str) -> None:
    seal(copy, **{field: value})
    assert what in verify(copy, small_bundle, 0).failures[0]


def test_another_tower(copy: Path, small_bundle: Bundle) -> None:
    seal(copy, tower_id="other")
    report = verify(copy, small_bundle)
    assert "was filled by another context encoder" in report.failures[0]
    assert report.sample == 0


def test_cli(copy: Path, small_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["index", "verify", str(copy), "--bundle", str(small_bundle.path), "--sample", "5", "--threads", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == (
        "5 passages encoded again: 5 bit for bit as stored, max abs error 0.0e+00, lowest cosine 1.000000 "
        "(allowed: error up to 1e-04)\n"
        f"{copy} (g000001) is whole: 300 passages\n"
    )
    (copy / "g000001" / "passages.blob").write_bytes(b"")
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert printed.startswith(f"FAILED {copy / 'g000001' / 'passages.blob'} does not match the manifest")
    assert "is whole" not in printed
    assert main([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], len(report["failures"]), report["sample"]) == (False, 1, 0)
    with pytest.raises(SystemExit):
        main([*arguments, "--sample", "-1"])
