"""Hashes by chunk, and the stamp: what changed is hashed again, and never passes."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from narrows import integrity
from narrows.bundle import Bundle, open_bundle
from narrows.errors import BundleError
from narrows.integrity import Fault, Sealed, faults, hash_files

CHUNK = 1000
DATA = bytes(range(256)) * 10  # 2560 bytes: three chunks


def sealed(directory: Path, manifest_sha256: str = "m1") -> Sealed:
    """Two files, described as they are now."""
    names = ("a", "deep/b")
    hashes = hash_files([directory / name for name in names], CHUNK)
    files = {name: hashes[directory / name] for name in names}
    return Sealed(directory, files, CHUNK, manifest_sha256, directory / ".verified")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "deep" / "b").write_bytes(b"B")
    return tmp_path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed from now on."""
    seen: list[Path] = []

    def spy(files: object, chunk_bytes: int) -> object:
        paths = list(files)  # type: ignore[call-overload]
        seen.extend(paths)
        return hash_files(paths, chunk_bytes)

    monkeypatch.setattr(integrity, "hash_files", spy)
    return seen


@given(data=st.binary(max_size=70), chunk_bytes=st.integers(1, 80))
@settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_chunk_has_its_hash(tmp_path: Path, data: bytes, chunk_bytes: int) -> None:
    (tmp_path / "a").write_bytes(data)
    parts = [data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes)] or [b""]
    expected = tuple(hashlib.sha256(part).hexdigest() for part in parts)
    assert hash_files([tmp_path / "a"], chunk_bytes) == {tmp_path / "a": expected}


def test_a_chunk_larger_than_one_read(tmp_path: Path) -> None:
    data = os.urandom(3 * integrity.READ_BYTES + 17)
    (tmp_path / "a").write_bytes(data)
    first = integrity.READ_BYTES * 2 + 5
    expected = (hashlib.sha256(data[:first]).hexdigest(), hashlib.sha256(data[first:]).hexdigest())
    assert hash_files([tmp_path / "a"], first)[tmp_path / "a"] == expected
    assert hash_files([tmp_path / "a"])[tmp_path / "a"] == (hashlib.sha256(data).hexdigest(),)


def at_a_later_tick(file: Path, change: Callable[[Path], object]) -> None:
    """Changes a file until the file system's clock, which moves in ticks, says that it was changed."""
    before = file.stat()
    while (file.stat().st_ctime_ns, file.stat().st_ino) == (before.st_ctime_ns, before.st_ino):
        change(file)


@pytest.mark.parametrize("verify", ["full", "stamp"])
@pytest.mark.parametrize("place", [0, 999, 1000, 2559])
def test_a_changed_byte_in_any_chunk(directory: Path, verify: integrity.Verify, place: int) -> None:
    expected = sealed(directory)
    assert faults(expected, verify) == []
    data = DATA[:place] + bytes([DATA[place] ^ 1]) + DATA[place + 1 :]
    at_a_later_tick(directory / "a", lambda file: file.write_bytes(data))
    assert faults(expected, verify) == [Fault(directory / "a", "changed")]


@pytest.mark.parametrize("data", [b"", DATA[:1000], DATA[:-1], DATA + b"\0", DATA + DATA])
def test_another_length(directory: Path, data: bytes) -> None:
    expected = sealed(directory)
    (directory / "a").write_bytes(data)
    assert faults(expected, "full") == [Fault(directory / "a", "changed")]


def test_missing_files_are_all_named(directory: Path) -> None:
    expected = sealed(directory)
    (directory / "a").unlink()
    (directory / "deep" / "b").unlink()
    (directory / "deep" / "b").mkdir()
    assert faults(expected, "stamp") == [Fault(directory / "a", "missing"), Fault(directory / "deep" / "b", "missing")]


def test_the_second_look_hashes_nothing(directory: Path, hashed: list[Path]) -> None:
    expected = sealed(directory)
    assert faults(expected, "stamp") == []
    assert hashed == [directory / "a", directory / "deep" / "b"]
    assert faults(expected, "stamp") == []
    assert len(hashed) == 2
    assert faults(expected, "full") == []
    assert len(hashed) == 4


def rewrite(file: Path) -> None:
    file.write_bytes(file.read_bytes())  # the same bytes, at another time


def replace_by_copy(file: Path) -> None:
    """Another file of the same bytes and mtime."""
    shutil.copy2(file, file.with_name("copy"))
    file.with_name("copy").rename(file)


def back_date(file: Path) -> None:
    """Other bytes of the same length in the same file, with the old mtime: ctime tells."""
    found = file.stat()
    file.write_bytes(bytes(len(file.read_bytes())))
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))


def set_mtime(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


@pytest.mark.parametrize("change", [rewrite, replace_by_copy, set_mtime, back_date])
def test_whatever_changes_size_time_or_inode_is_hashed(
    directory: Path, hashed: list[Path], change: Callable[[Path], None]
) -> None:
    expected = sealed(directory)
    assert faults(expected, "stamp") == []
    hashed.clear()
    at_a_later_tick(directory / "a", change)
    wrong = [Fault(directory / "a", "changed")] if change is back_date else []
    assert faults(expected, "stamp") == wrong
    assert hashed


def test_another_manifest_does_not_take_the_stamp(directory: Path, hashed: list[Path]) -> None:
    assert faults(sealed(directory, "m1"), "stamp") == []
    hashed.clear()
    assert faults(sealed(directory, "m2"), "stamp") == []
    assert hashed


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 100_000, b'{"manifest_sha256": "m1", "files": {}}', b"\xff"])
def test_a_damaged_stamp_counts_for_nothing(directory: Path, hashed: list[Path], data: bytes) -> None:
    expected = sealed(directory)
    expected.stamp.write_bytes(data)
    (directory / "a").write_bytes(b"other")
    assert faults(expected, "stamp") == [Fault(directory / "a", "changed")]
    assert hashed


def test_a_failed_check_in_full_takes_the_stamp_away(directory: Path) -> None:
    """Bit rot that only `full` can see: the next quick look must not pass it."""
    expected = sealed(directory)
    assert faults(expected, "stamp") == []
    rotten = Sealed(directory, {**expected.files, "a": ("0" * 64,)}, CHUNK, "m1", expected.stamp)
    assert faults(rotten, "stamp") == []  # the stamp vouches for it
    assert faults(rotten, "full") == [Fault(directory / "a", "changed")]
    assert not expected.stamp.exists()
    assert faults(rotten, "stamp") == [Fault(directory / "a", "changed")]


def test_without_a_place_for_the_stamp_every_look_is_in_full(
    directory: Path, hashed: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    found = sealed(directory)
    nowhere = Sealed(directory, found.files, CHUNK, "m1", directory / "a" / ".verified")  # below a file
    with caplog.at_level("DEBUG"):
        assert faults(nowhere, "stamp") == []
        assert faults(nowhere, "stamp") == []
    assert len(hashed) == 4
    assert "hashes every file again" in caplog.text


# --- the bundle


def test_a_bundle_opened_by_its_stamp_notices_a_changed_file(tmp_path: Path, small_bundle: Bundle) -> None:
    copy = shutil.copytree(small_bundle.path, tmp_path / "copy.bundle", ignore=shutil.ignore_patterns(".verified"))
    open_bundle(copy)
    assert not (copy / ".verified").exists()
    assert open_bundle(copy, "stamp") == open_bundle(copy, "stamp") == Bundle(copy, small_bundle.manifest)
    assert (copy / ".verified").exists()
    file = copy / "context_encoder" / "model.fp32.onnx"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx does not match the manifest's hash"):
        open_bundle(copy, "stamp")
