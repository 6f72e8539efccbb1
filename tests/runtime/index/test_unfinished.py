"""A build that is stopped at any moment goes on where it was, to the same bytes; and nothing half-written opens."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import build
from server_process import NARROWS, environment, run_narrows
from system_calls import traced

from narrows.bundle import Bundle
from narrows.errors import IndexFileError, PassageFileError
from narrows.index import chunks, unfinished
from narrows.index.opened import open_index
from narrows.index.progress import Progress
from narrows.index.store import read_manifest
from narrows_tools.cli.main import main

KILLS = Path(__file__).parent / "kills.py"
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


def write_passages(file: Path, count: int, words: int = 1) -> Path:
    """`count` passages; every seventh is too long for the tower."""
    with file.open("w", encoding="utf-8") as stream:
        for number in range(count):
            length = 300 if number % 7 == 3 else words + number % 5
            stream.write(json.dumps({"id": f"id-{number}", "text": f"{number} " + "word " * length}) + "\n")
    return file


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    return write_passages(tmp_path / "p.jsonl", 30)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 8 passages."""
    monkeypatch.setattr(chunks, "CHUNK_PASSAGES", 8)


class Stop(Progress):
    """Interrupts a build when so many passages are encoded; notes where it began."""

    def __init__(self, at: int | None = None) -> None:
        self.left = at
        self.resumed: tuple[int, int] | None = None
        self.to_encode = 0
        self.read = 0

    def reading(self, passages: int) -> None:
        self.read = passages

    def resuming(self, encoded: int, passages: int) -> None:
        self.resumed = (encoded, passages)

    def estimated(self, passages: int, seconds: float) -> None:
        self.to_encode = passages

    def encoded(self, passages: int) -> None:
        if self.left is not None:
            self.left -= passages
            if self.left <= 0:
                raise KeyboardInterrupt


def stopped(bundle: Bundle, passages: Path, out: Path, at: int, **more: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(bundle, passages, out, Stop(at), **more)


def tree(path: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}


# --- going on


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("at", "kept"), [(1, 0), (9, 8), (24, 16), (30, 24)])
def test_a_stopped_build_goes_on_to_the_same_bytes(
    tmp_path: Path, small_bundle: Bundle, passages: Path, at: int, kept: int
) -> None:
    build(small_bundle, passages, tmp_path / "whole.index")
    out = tmp_path / "x.index"
    stopped(small_bundle, passages, out, at)
    assert [path.name for path in out.iterdir()] == [".build"]
    progress = Stop()
    report = build(small_bundle, passages, out, progress)
    assert (progress.resumed, progress.to_encode, progress.read) == ((kept, 30), 30 - kept, 0)
    assert (report.resumed_at, report.generation, report.count) == (kept, "g000001", 30)
    assert report.passages_per_s == pytest.approx((30 - kept) / report.encode_s)
    assert tree(out) == tree(tmp_path / "whole.index")


@pytest.mark.usefixtures("small_chunks")
def test_what_the_journal_does_not_count_is_cut_off(tmp_path: Path, small_bundle: Bundle, passages: Path) -> None:
    build(small_bundle, passages, tmp_path / "whole.index")
    out = tmp_path / "x.index"
    stopped(small_bundle, passages, out, 9)
    for name in ("index.faiss", "truncated.jsonl"):
        with (out / ".build" / name).open("ab") as file:
            file.write(b"half of a chunk" * 2000)
    build(small_bundle, passages, out)
    assert tree(out) == tree(tmp_path / "whole.index")


@pytest.mark.usefixtures("small_chunks")
def test_a_build_may_be_stopped_again_and_again(tmp_path: Path, small_bundle: Bundle, passages: Path) -> None:
    build(small_bundle, passages, tmp_path / "whole.index")
    out = tmp_path / "x.index"
    for _ in range(3):
        stopped(small_bundle, passages, out, 9)  # one chunk more each time
    assert build(small_bundle, passages, out).resumed_at == 24
    assert tree(out) == tree(tmp_path / "whole.index")


@pytest.mark.usefixtures("small_chunks")
def test_threads_name_and_chunks_may_change_in_between(
    tmp_path: Path, small_bundle: Bundle, passages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(small_bundle, passages, tmp_path / "whole.index", name="other")
    out = tmp_path / "x.index"
    stopped(small_bundle, passages, out, 9)
    monkeypatch.setattr(chunks, "CHUNK_PASSAGES", 5)
    assert build(small_bundle, passages, out, threads=2, name="other").resumed_at == 8
    assert tree(out) == tree(tmp_path / "whole.index")


@pytest.mark.usefixtures("small_chunks")
def test_the_next_generation_goes_on_too(
    tmp_path: Path, small_bundle: Bundle, passages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.index"
    build(small_bundle, write_passages(tmp_path / "old.jsonl", 5), out)
    before = tree(out)
    stopped(small_bundle, passages, out, 9, replace=True)
    assert {name: data for name, data in tree(out).items() if not name.startswith(".build")} == before
    assert open_index(out, small_bundle, 1).generation == "g000001"
    with pytest.raises(IndexFileError, match="give --replace"):
        build(small_bundle, passages, out)
    assert main(["index", "info", str(out)]) == 0
    assert "unfinished  8 of 30 passages of the next generation are encoded" in capsys.readouterr().out
    journal = out / ".build" / "journal.json"
    whole = journal.read_bytes()
    journal.write_bytes(b"{")
    assert main(["index", "info", str(out)]) == 0
    assert "unfinished  the next generation, and it cannot go on: " in capsys.readouterr().out
    journal.write_bytes(whole)
    report = build(small_bundle, passages, out, replace=True)
    assert (report.generation, report.resumed_at) == ("g000002", 8)
    assert sorted(path.name for path in out.iterdir()) == ["CURRENT", "g000002"]


# --- other inputs


@pytest.mark.usefixtures("small_chunks")
def test_other_passages_are_refused_and_never_mixed(tmp_path: Path, small_bundle: Bundle, passages: Path) -> None:
    out = tmp_path / "x.index"
    stopped(small_bundle, passages, out, 9)
    before = tree(out)
    other = write_passages(tmp_path / "other.jsonl", 30, words=2)
    message = re.escape(
        f"{out} holds an unfinished build of other inputs (not the same: passages, embeddings or indexes that it is "
        "made of); 8 of its 30 "
    )
    with pytest.raises(IndexFileError, match=f"{message}.*--restart"):
        build(small_bundle, other, out)
    with pytest.raises(IndexFileError, match="not the same: --skip-bad"):
        build(small_bundle, passages, out, skip_bad=True)
    assert tree(out) == before
    report = build(small_bundle, other, out, restart=True)
    assert report.resumed_at == 0
    build(small_bundle, other, tmp_path / "whole.index")
    assert tree(out) == tree(tmp_path / "whole.index")


@pytest.mark.usefixtures("small_chunks")
def test_a_build_with_nothing_encoded_gives_way_to_another(
    tmp_path: Path, small_bundle: Bundle, passages: Path
) -> None:
    out = tmp_path / "x.index"
    stopped(small_bundle, passages, out, 1)
    other = write_passages(tmp_path / "other.jsonl", 4)
    assert build(small_bundle, other, out).count == 4
    assert sorted(path.name for path in out.iterdir()) == ["CURRENT", "g000001"]


def cut(file: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        (directory / file).write_bytes((directory / file).read_bytes()[:-1])

    return damage


def empty(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).write_bytes(b"")


def flip(file: str) -> Callable[[Path], None]:
    """Changes one bit in the middle."""

    def damage(directory: Path) -> None:
        data = bytearray((directory / file).read_bytes())
        data[len(data) // 2] ^= 1
        (directory / file).write_bytes(data)

    return damage


def remove(file: str) -> Callable[[Path], None]:
    return lambda directory: (directory / file).unlink()


def another_version(directory: Path) -> None:
    journal = directory / "journal.json"
    journal.write_bytes(journal.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 9'))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (cut("index.faiss"), "holds less than its journal says"),
        (cut("truncated.jsonl"), "holds less than its journal says"),
        (remove("index.faiss"), "holds less than its journal says"),
        (remove("id_rank.npy"), "holds less than its journal says"),
        (cut("id_rank.npy"), "the passages stored in .* were changed or damaged"),
        (cut("passages.blob"), "the passages stored in .* were changed or damaged"),
        (empty("passages.blob"), "the passages stored in .* were changed or damaged"),
        (flip("passages.blob"), "the passages stored in .* were changed or damaged"),
        (lambda directory: (directory / "journal.json").write_bytes(b"{"), "the unfinished build cannot go on"),
        (another_version, "schema version 9"),
    ],
)
def test_a_damaged_build_is_refused(
    tmp_path: Path, small_bundle: Bundle, passages: Path, damage: Callable[[Path], None], what: str
) -> None:
    out = tmp_path / "x.index"
    stopped(small_bundle, passages, out, 9)
    damage(out / ".build")
    with pytest.raises(IndexFileError, match=f"{what}.*--restart"):
        build(small_bundle, passages, out)
    assert build(small_bundle, passages, out, restart=True).count == 30


def test_a_passage_file_that_cannot_be_read(tmp_path: Path, small_bundle: Bundle) -> None:
    with pytest.raises(PassageFileError, match=r"none\.tsv:1: cannot be read: No such file"):
        build(small_bundle, tmp_path / "none.tsv", tmp_path / "x.index")
    os.mkfifo(tmp_path / "pipe.tsv")
    with pytest.raises(PassageFileError, match="it is a pipe, and is read twice"):
        build(small_bundle, tmp_path / "pipe.tsv", tmp_path / "x.index")
    assert not (tmp_path / "x.index").exists()


# --- kills


def test_a_build_killed_at_its_end_under_another_name(
    tmp_path: Path, small_bundle: Bundle, passages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.index"

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            build(small_bundle, passages, out)
    shutil.copytree(out, tmp_path / "y.index")
    report = build(small_bundle, passages, out)
    assert (report.generation, report.resumed_at) == ("g000001", 30)
    report = build(small_bundle, passages, tmp_path / "y.index", replace=True, name="other")
    assert (report.generation, report.resumed_at) == ("g000002", 0)
    assert read_manifest(tmp_path / "y.index")[1].name == "other"


@pytest.mark.parametrize(
    ("torn", "replacing"),
    [
        pytest.param(0, 0, marks=pytest.mark.slow),
        pytest.param(0, 1, marks=pytest.mark.slow),
        pytest.param(1, 0, marks=pytest.mark.slow),
        (1, 1),
    ],
)
def test_killed_at_every_write_point(tmp_path: Path, small_bundle: Bundle, torn: int, replacing: int) -> None:
    out, old = tmp_path / "x.index", "g000001" if replacing else ""
    if replacing:
        build(small_bundle, write_passages(tmp_path / "old.jsonl", 5), out)
    passages = write_passages(tmp_path / "p.jsonl", 10)
    done = subprocess.run(
        [sys.executable, str(KILLS), str(small_bundle.path), str(passages), str(out), str(torn), "1", "1"],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = [json.loads(line) for line in done.stdout.splitlines()]
    assert [kill["kill_at"] for kill in kills] == list(range(1, kills[0]["of"] + 1))
    assert len(kills) > 40
    new = "g000002" if replacing else "g000001"
    serving = [kill["serving"] for kill in kills]
    assert serving == sorted(serving)  # first the old one, or none, then the new one
    assert set(serving) == {old, new}
    for kill in kills[:-1]:
        assert kill["same"], kill
        assert kill["generation"] == new
        assert kill["resumed_at"] == kill["encoded"], "work that was on the disk was thrown away"
    assert {kill["encoded"] for kill in kills} == {0, 4, 8, 10}
    # Killed after everything but the sync of one deletion: the build was done, and the command begins the next one.
    last = kills[-1]
    assert ("refused" in last and last["same"]) or (replacing and last["generation"] == "g000003")


def command(bundle: Bundle, passages: Path, out: Path, *flags: str) -> list[str]:
    arguments = ["--bundle", str(bundle.path), "--passages", str(passages), "--out", str(out), "--threads", "1"]
    return ["index", "build", *arguments, *flags]


@pytest.fixture(scope="module")
def many_passages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_passages(tmp_path_factory.mktemp("many") / "p.jsonl", 3000, words=60)


# The real command, which gets a signal as soon as its journal counts the first chunk.
SIGNALLED = """
import os, signal, sys
from narrows.index import unfinished
from narrows_tools.cli.main import main

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits one that is ignored
number, write_journal = int(sys.argv[1]), unfinished.write_journal

def write_and_signal(directory, journal):
    write_journal(directory, journal)
    if journal.encoded.rows:
        os.kill(os.getpid(), number)

unfinished.write_journal = write_and_signal
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_command_stopped_by_a_signal_goes_on(
    tmp_path: Path, small_bundle: Bundle, many_passages: Path, number: signal.Signals
) -> None:
    out = tmp_path / "x.index"
    arguments = command(small_bundle, many_passages, out)
    program = [sys.executable, "-W", "error", "-c", SIGNALLED, str(int(number)), *arguments]
    stopped = subprocess.run(program, capture_output=True, check=False, env=environment())
    kept = json.loads((out / ".build" / "journal.json").read_bytes())["encoded"]["rows"]
    assert 0 < kept < 3000
    if number == signal.SIGINT:
        assert stopped.returncode == 130
        assert f"{kept} of 3000 passages are encoded and kept: the same command goes on".encode() in stopped.stderr
        assert stopped.stderr.endswith(b"narrows: interrupted\n")
    else:
        assert stopped.returncode == -number
    done = run_narrows(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert f"resuming at {kept} of 3000 passages" in done.stderr
    assert json.loads(done.stdout)["resumed_at"] == kept
    opened = open_index(out, small_bundle, 1)
    assert opened.vectors.count == 3000
    assert np.isfinite(opened.vectors.vectors).all()


def test_a_full_disk_keeps_what_is_encoded(tmp_path: Path, small_bundle: Bundle) -> None:
    passages, out = tmp_path / "p.jsonl", tmp_path / "x.index"
    passages.write_text("".join(f'{{"id": {number}, "text": "short"}}\n' for number in range(2500)), "utf-8")
    arguments = command(small_bundle, passages, out)
    limit_bytes = 2 * 512 * 64 * 4 + 100_000  # two chunks of vectors fit, the third does not
    # Not by preexec_fn: that forks this process, and gRPC's threads in it, if other tests began some, abort the child.
    limited = [sys.executable, "-c", LIMITED, str(limit_bytes), *NARROWS, *arguments]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "1024 of 2500 passages are encoded and kept: the same command goes on" in done.stderr
    assert done.stderr.endswith("narrows: [Errno 27] File too large\n")
    report = build(small_bundle, passages, out)
    assert (report.resumed_at, report.count) == (1024, 2500)


# --- what the kernel is asked, in which order


def test_the_command_syncs_before_it_promises(tmp_path: Path, small_bundle: Bundle, passages: Path) -> None:
    out = tmp_path / "x.index"
    found = traced([*NARROWS, *command(small_bundle, passages, out)], tmp_path, tmp_path / "calls")
    calls = [(call, name.removeprefix("x.index/")) for call, name in found]
    journal = [
        ("write", ".build/.journal.json.PID.tmp"), ("fsync", ".build/.journal.json.PID.tmp"),
        ("rename", ".build/.journal.json.PID.tmp"), ("fsync", ".build"),
    ]  # fmt: skip
    stored = {"passages.blob", "passages.ends.npy", "id_order.npy", "id_rank.npy", "index.faiss", "truncated.jsonl"}

    def up_to(last: tuple[str, str]) -> list[tuple[str, str]]:
        """Takes the calls up to one."""
        place = calls.index(last) + 1
        taken, calls[:] = calls[:place], calls[place:]
        return taken

    # The passages: each file, their directory, then the journal that vouches for them.
    first = up_to(("rename", ".build/.journal.json.PID.tmp"))
    assert first[-3:] == journal[:3]
    synced = [name for call, name in first if call == "fsync"]
    assert {f".build/{name}" for name in stored} <= set(synced[: synced.index(".build")])
    for name in stored - {"truncated.jsonl"}:
        assert first.index(("write", f".build/{name}")) < first.index(("fsync", f".build/{name}"))
    assert up_to(("fsync", ".build")) == journal[3:]
    # A chunk: vectors and cut passages, then the journal that counts them.
    chunk = up_to(("fsync", ".build"))
    assert chunk[-4:] == journal
    vectors, truncated = ".build/index.faiss", ".build/truncated.jsonl"
    assert chunk[:-4] == [("write", vectors), ("fsync", vectors), ("write", truncated), ("fsync", truncated)]
    # The generation: every file and the directory, the rename, then CURRENT, then the last of the build, then success.
    sealed = up_to(("rename", ".build"))
    assert sealed[0] == ("write", ".build/manifest.json")
    names = {f".build/{name}" for name in (*stored, "manifest.json", "journal.json")}
    assert {name for call, name in sealed[1:-2] if call == "fsync"} == names
    assert sealed[-2:] == [("fsync", ".build"), ("rename", ".build")]
    pointer = ".CURRENT.PID.tmp"
    assert calls == [
        ("fsync", "x.index"),
        ("write", pointer), ("fsync", pointer), ("rename", pointer), ("fsync", "x.index"),
        ("unlink", "g000001/journal.json"), ("fsync", "g000001"),
        ("write", "stdout"),
    ]  # fmt: skip


# --- the command line


def test_cli_restart_and_truncated_report(
    tmp_path: Path, small_bundle: Bundle, passages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "x.index", tmp_path / "new" / "cut.jsonl"
    arguments = command(small_bundle, passages, out, "--restart", "--truncated-report", str(report))
    assert main(arguments) == 1
    assert f"{report.parent} is no directory; make it first" in capsys.readouterr().err
    assert not out.exists(), "refused before the work, not after"
    report.parent.mkdir()
    assert main(arguments) == 0
    assert "; 4 passages were cut to the tower's length (" in capsys.readouterr().out
    assert [json.loads(line)["id"] for line in report.read_text("utf-8").splitlines()] == [
        "id-3", "id-10", "id-17", "id-24",
    ]  # fmt: skip
    assert report.read_bytes() == (out / "g000001" / "truncated.jsonl").read_bytes()
    generation, manifest = read_manifest(out)
    assert main(["index", "info", str(out)]) == 0
    share = manifest.cut_token_count / manifest.token_count
    assert f"4 passages were cut to the tower's length ({share:.2%} of all tokens)" in capsys.readouterr().out
    assert 0.1 < share < 0.9
    assert generation == "g000001"
