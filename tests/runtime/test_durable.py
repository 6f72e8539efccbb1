"""Files appear whole or not at all, and are on the disk before their name says so."""

import os
import sys
from pathlib import Path

import pytest
from checkpoints import Pair
from server_process import NARROWS
from system_calls import traced

from narrows import durable


def tree(path: Path) -> dict[str, bytes | None]:
    """Every path below `path`, with the bytes of the files."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


# --- write_file


def test_write_file_makes_and_replaces(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "a", b"one")
    durable.write_file(tmp_path / "a", b"")
    durable.write_file(tmp_path / "a", b"two")
    assert tree(tmp_path) == {"a": b"two"}


def test_write_file_leaves_the_old_file_to_those_who_have_it_open(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "a", b"one")
    with (tmp_path / "a").open("rb") as file:
        durable.write_file(tmp_path / "a", b"two")
        assert file.read() == b"one"


def test_write_file_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory" / "inner").write_bytes(b"kept")
    before = tree(tmp_path)
    with pytest.raises(IsADirectoryError):  # the rename fails
        durable.write_file(tmp_path / "directory", b"data")
    with pytest.raises(TypeError):  # the write fails
        durable.write_file(tmp_path / "a", "no bytes")  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        durable.write_file(tmp_path / "none" / "a", b"data")
    assert tree(tmp_path) == before


def test_write_file_replaces_no_device(tmp_path: Path) -> None:
    (tmp_path / "device").symlink_to("/dev/null")
    with pytest.raises(FileExistsError, match=r"it exists and is not a file: .*device"):
        durable.write_file(tmp_path / "device", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["device"]
    assert (tmp_path / "device").is_symlink()


# --- new_directory


def test_new_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "made"
    with durable.new_directory(path) as inside:
        (inside / "a").write_bytes(b"A")
        (inside / "deep" / "er").mkdir(parents=True)
        (inside / "deep" / "er" / "b").write_bytes(b"B")
        assert not path.exists()
        assert inside.parent == path.parent
    assert tree(tmp_path / "parent") == {
        "made": None,
        "made/a": b"A",
        "made/deep": None,
        "made/deep/er": None,
        "made/deep/er/b": b"B",
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_new_directory_leaves_nothing_after_an_exception(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), durable.new_directory(tmp_path / "made") as inside:  # noqa: PT012
        (inside / "a").write_bytes(b"A")
        raise error
    assert tree(tmp_path) == {}


def test_new_directory_replaces_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with durable.new_directory(tmp_path / "made") as inside:
        (inside / "a").write_bytes(b"A")
    assert tree(tmp_path) == {"made": None, "made/a": b"A"}


def test_new_directory_keeps_an_empty_one_after_an_exception(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(RuntimeError), durable.new_directory(tmp_path / "made"):
        raise RuntimeError
    assert tree(tmp_path) == {"made": None}


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_new_directory_refuses_what_exists(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "made"
    if kind == "directory":
        path.mkdir()
        (path / "foreign").write_bytes(b"kept")
    else:
        path.write_bytes(b"kept")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError), durable.new_directory(path) as inside:
        (inside / "a").write_bytes(b"A")
    assert tree(tmp_path) == before


def test_new_directory_begins_empty_after_a_crash_of_the_same_process_number(tmp_path: Path) -> None:
    left = tmp_path / f".made.{os.getpid()}.partial"
    left.mkdir()
    (left / "half").write_bytes(b"half")
    with durable.new_directory(tmp_path / "made") as inside:
        (inside / "a").write_bytes(b"A")
    assert tree(tmp_path) == {"made": None, "made/a": b"A"}


def test_new_directory_removes_what_killed_processes_left_and_keeps_the_rest(tmp_path: Path) -> None:
    for name in (".made.1.partial", ".made.2.partial", ".other.1.partial"):
        (tmp_path / name).mkdir()
    with durable.locked(tmp_path / ".made.2.partial"), durable.new_directory(tmp_path / "made"):
        pass
    assert set(tree(tmp_path)) == {"made", ".made.2.partial", ".other.1.partial"}


def test_a_locked_directory_is_refused_to_others_until_it_is_let_go(tmp_path: Path) -> None:
    with durable.locked(tmp_path), pytest.raises(BlockingIOError), durable.locked(tmp_path):
        pass
    with durable.locked(tmp_path):
        pass


def test_make_directory_makes_parents_and_leaves_what_exists(tmp_path: Path) -> None:
    durable.make_directory(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "kept").write_bytes(b"kept")
    durable.make_directory(tmp_path / "a" / "b")
    assert tree(tmp_path) == {"a": None, "a/b": None, "a/b/kept": b"kept"}


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert durable.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- what the kernel is asked, in which order


def system_calls(tmp_path: Path, code: str) -> list[tuple[str, str]]:
    """Runs `code` with `base` set to an empty directory: what it asks of the kernel there."""
    base = tmp_path / "base"
    base.mkdir()
    program = f"from pathlib import Path\nbase = Path({str(base)!r})\n{code}"
    return traced([sys.executable, "-c", program], base, tmp_path / "calls")


def test_write_file_syncs_before_and_after_the_rename(tmp_path: Path) -> None:
    calls = system_calls(tmp_path, "from narrows import durable\ndurable.write_file(base / 'a', b'data')")
    assert calls == [("write", ".a.PID.tmp"), ("fsync", ".a.PID.tmp"), ("rename", ".a.PID.tmp"), ("fsync", ".")]


def test_new_directory_syncs_all_it_holds_before_the_rename(tmp_path: Path) -> None:
    code = """
from narrows import durable
with durable.new_directory(base / "made") as inside:
    (inside / "deep").mkdir()
    (inside / "deep" / "b").write_bytes(b"B")
    (inside / "a").write_bytes(b"A")
"""
    calls = system_calls(tmp_path, code)
    partial = ".made.PID.partial"
    assert calls[:2] == [("write", f"{partial}/deep/b"), ("write", f"{partial}/a")]
    assert sorted(calls[2:5]) == [
        ("fsync", f"{partial}/a"),
        ("fsync", f"{partial}/deep"),
        ("fsync", f"{partial}/deep/b"),
    ]
    assert calls[5:] == [("fsync", partial), ("rename", partial), ("fsync", ".")]


def test_make_directory_syncs_every_entry_it_makes(tmp_path: Path) -> None:
    calls = system_calls(tmp_path, "from narrows import durable\ndurable.make_directory(base / 'a' / 'b')")
    assert calls == [("fsync", "."), ("fsync", "a")]


@pytest.mark.slow
def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path: Path, small_pair: Pair) -> None:
    arguments = ["--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    command = [*NARROWS, "export", *arguments, "--allow-unpaired", "--out", str(tmp_path / "base" / "x.bundle")]
    calls = traced(command, tmp_path / "base", tmp_path / "calls")
    partial = ".x.bundle.PID.partial"
    renamed = calls.index(("rename", partial))
    towers = [f"{partial}/{role}_encoder" for role in ("question", "context")]
    files = [f"{tower}/{name}" for tower in towers for name in ("model.fp32.onnx", "tokenizer.json", "golden.fp32.npz")]
    for file in [*files, f"{partial}/.manifest.json.PID.tmp"]:
        last_write = max(number for number, call in enumerate(calls) if call == ("write", file))
        assert last_write < calls.index(("fsync", file), last_write) < renamed
    last_sync = {name: number for number, (call, name) in enumerate(calls[:renamed]) if call == "fsync"}
    assert all(last_sync[tower] > last_sync[f"{partial}/.manifest.json.PID.tmp"] for tower in [*towers, partial])
    assert f"{partial}/manifest.json" in last_sync
    assert calls[renamed + 1] == ("fsync", ".")
    assert renamed + 1 < max(number for number, call in enumerate(calls) if call == ("write", "stdout"))
    assert {call for call, name in calls[renamed + 1 :] if name != "stdout"} == {"fsync"}
