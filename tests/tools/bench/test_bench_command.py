"""`narrows bench` on a small bundle: real servers, real processes, everything it can measure."""

import json
import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest
from server_process import run_narrows, server

from narrows.bundle import Bundle
from narrows.errors import BenchmarkError
from narrows_tools.bench import results, run
from narrows_tools.bench.ceiling import InProcess, SingleOrder, in_process
from narrows_tools.bench.generator import generator
from narrows_tools.bench.load import Offline, OpenLoop
from narrows_tools.bench.pinned import default_layout, on_cores, parse_cores
from narrows_tools.bench.results import Row
from narrows_tools.bench.schedule import poisson
from narrows_tools.bench.servers import usage_of
from narrows_tools.bench.session import traffic_of
from narrows_tools.bench.targets import TargetSpec
from narrows_tools.cli import main

TARGET = "narrows_tools.bench.targets:NarrowsTarget"


def test_the_standard_set_in_short(small_bundle: Bundle, small_index: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = run_narrows(
        *("bench", "run", "--bundle", str(small_bundle.path), "--index", str(small_index)),
        *("--quick", "--seconds", "0.1", "--out", str(out)),
    )
    assert done.returncode == 0, done.stderr
    assert "throughput at saturation, of the ceiling" in done.stdout
    result = results.load(out)
    rows = {(row.scenario, row.traffic): row for row in result.rows}
    assert set(rows) == {
        *(("start", ""), ("single", "short"), ("ceiling", "short"), ("closed", "short"), ("open", "short")),
        *(("ceiling", "mixed"), ("closed", "mixed"), ("open", "mixed"), ("mixed_lanes", "short")),
        *(("server", "short"), ("offline", "short"), ("offline", "mixed")),
    }
    assert all(row.metrics.get("failed_share", 0.0) == 0 for row in result.rows)
    assert rows["start", ""].metrics["passage_count"] == 300
    assert rows["start", ""].metrics["ready_ms"] > 0
    assert rows["mixed_lanes", "short"].metrics["passages_per_s"] > 0
    assert rows["ceiling", "short"].metrics["cpu_ms_per_text"] > 0
    assert 0 <= rows["ceiling", "short"].metrics["others_cpu_share"] <= 1.5  # two clocks, read one after the other
    closed = rows["closed", "mixed"]
    assert closed.metrics["rss_bytes"] > 10_000_000
    assert 0 <= closed.metrics["padding_share"] < 1
    assert sum(closed.histograms["tokens"].values()) == closed.metrics["request_count"]
    assert result.settings["variant"] == "fp32"
    assert result.environment["towers"]["question_encoder"]["tower_id"] == (
        small_bundle.manifest.towers["question_encoder"].tower_id
    )


def test_a_running_server_at_given_rates(small_bundle: Bundle, small_index: Path) -> None:
    with server(small_bundle.path, small_index) as running:
        done = run_narrows(
            *("bench", "sweep", "--bundle", str(small_bundle.path), "--server", running.address),
            *("--pid", str(running.process.pid), "--method", "search", "--rates", "40,80,40"),
            *("--rounds", "1", "--seconds", "0.3", "--json"),
        )
        assert running.stop() == 0
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["load"] for row in rows] == [40, 80]
    assert all(row["metrics"]["request_count"] >= 20 and row["metrics"]["rss_bytes"] > 0 for row in rows)


def test_a_running_server_of_another_bundle_is_refused(
    small_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ceiling, its lengths and its vocabulary would be those of other towers."""
    other = Path(shutil.copytree(small_bundle.path, tmp_path / "other.bundle"))
    tower_id = small_bundle.manifest.towers["question_encoder"].tower_id
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text("utf-8").replace(tower_id, tower_id[::-1]), "utf-8")
    with server(small_bundle.path, None) as running:
        arguments = ("--bundle", str(other), "--server", running.address, "--only", "start")
        assert main.main(["bench", "run", *arguments]) == 1
    assert "serves small, whose question encoder is not that of" in capsys.readouterr().err


def test_the_ceiling_alone(small_bundle: Bundle) -> None:
    done = run_narrows("bench", "ceiling", "--bundle", str(small_bundle.path), "--texts", "16", "--seconds", "0.05")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("best") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--bundle", "no-such-bundle"), "no-such-bundle"),
        (("--bundle", "BUNDLE", "--index", "no-such-index"), "no-such-index is not an index"),
        (("--bundle", "BUNDLE", "--variant", "int8"), "the server did not start; its message is above"),
        (("--bundle", "BUNDLE", "--server", "127.0.0.1:1"), "127.0.0.1:1"),
        (("--bundle", "BUNDLE", "--method", "search"), "needs an --index"),
        (("--bundle", "BUNDLE", "--pid", "1"), "--pid goes with --server"),
        (("--bundle", "BUNDLE", "--server", "x:1", "--pid", "4194305"), "--pid 4194305: there is no such process"),
        (("--bundle", "BUNDLE", "--server", "x:1", "--variant", "int8"), "a --server has its own"),
        (("--bundle", "BUNDLE", "--server-cores", "0", "--client-cores", "0"), "would share core 0"),
        (("--bundle", "BUNDLE", "--server-cores", "4000", "--client-cores", "0"), "cores 4000 cannot be used"),
        (("--bundle", "BUNDLE", "--out", "no-such-directory/x.json"), "no-such-directory/x.json cannot be written"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(
    small_bundle: Bundle, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    given = [str(small_bundle.path) if argument == "BUNDLE" else argument for argument in arguments]
    assert main.main(["bench", "run", *given, "--quick", "--only", "start"]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_in_which_requests_failed_shows_its_result_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tuple(
        Row("narrows", "open", "short", load, 1, {"request_count": 40.0, "failed_share": 0.25}) for load in range(5)
    )
    result = results.Result("narrows", "2026-01-01T00:00:00+00:00", {}, {}, rows)
    monkeypatch.setattr(run, "run", lambda *arguments: result)
    assert main.main(["bench", "sweep", "--bundle", "x", "--rates", "5"]) == 1
    shown = capsys.readouterr()
    assert "25.0" in shown.out
    assert "open short at 1/s, round 1: 10 of 40 requests; " in shown.err
    assert "and in 2 more loads); the server's log says why" in shown.err


def test_sigterm_ends_a_run_as_an_interrupt_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not at once, which would leave its server behind."""
    stopped: list[str] = []

    def terminated(*arguments: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            stopped.append("the server")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(run, "run", terminated)
    assert main.main(["bench", "sweep", "--bundle", "x", "--rates", "5"]) == 130
    assert stopped == ["the server"]
    assert capsys.readouterr().err.endswith("narrows: interrupted\n")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("flag", ["--rates=0", "--rates=x", "--seconds=0", "--server-cores=a-b"])
def test_bad_numbers_are_bad_usage(flag: str) -> None:
    rates = () if flag.startswith("--rates") else ("--rates", "5")
    with pytest.raises(SystemExit, match="2"):
        main.main(["bench", "sweep", "--bundle", "x", *rates, flag])


def test_the_help_of_a_sweep_speaks_of_no_flag_that_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main.main(["bench", "sweep", "--help"])
    shown = capsys.readouterr().out
    assert "default: 5" in shown
    assert "--quick" not in shown


def test_what_is_refused_what_is_late_and_what_fails_are_told_apart(small_bundle: Bundle) -> None:
    traffic = traffic_of(small_bundle.path, 0)
    with ExitStack() as stack:
        running = stack.enter_context(server(small_bundle.path, None, max_queued_questions="64"))
        target = TargetSpec(TARGET, {"address": running.address, "max_items": 64})
        loads = stack.enter_context(generator(target, default_layout().client))
        fine = loads.ask(OpenLoop(traffic.short(30), poisson(100, 30, 0), 10.0, 100.0))
        assert fine.counts["ok"] == 30
        assert fine.padding_share is not None
        crowded = loads.ask(Offline(traffic.mixed(512), 8, 30.0))  # the queue has room for one such call
        assert crowded.counts["refused"] > 0
        assert crowded.counts["ok"] + crowded.counts["refused"] == 512
        assert crowded.padding_share is None  # a reply to many texts tells of the largest batch only
        hurried = loads.ask(OpenLoop(traffic.short(5), poisson(1000, 5, 0), -1.0, 100.0))  # too late before it is sent
        assert hurried.counts == {"ok": 0, "refused": 0, "late": 5, "failed": 0}
        assert running.stop() == 0
        gone = loads.ask(OpenLoop(traffic.short(5), poisson(1000, 5, 0), 10.0, 100.0))
        assert gone.counts["failed"] == 5


def test_a_measuring_process_that_has_been_killed_is_an_error_that_says_so(small_bundle: Bundle) -> None:
    """Not the BrokenPipeError that the command line takes for a reader such as `head` who has seen enough."""
    with in_process(InProcess(small_bundle.path, "fp32"), default_layout().server) as towers:
        os.kill(towers.pid, signal.SIGKILL)
        os.waitid(os.P_PID, towers.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(BenchmarkError, match="ended by itself, with status -9"):
            towers.ask(SingleOrder([]))


def test_a_server_that_has_ended_has_no_usage(small_bundle: Bundle) -> None:
    with server(small_bundle.path, None) as running:
        pid = running.process.pid
        assert usage_of(pid, default_layout().server).rss_bytes > 10_000_000
        running.process.kill()
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still in the table of processes
        with pytest.raises(BenchmarkError, match="ended while it was measured"):
            usage_of(pid, default_layout().server)


def test_processes_run_where_they_are_told() -> None:
    cores = default_layout().client
    before = os.sched_getaffinity(0)
    with on_cores(cores):
        assert os.sched_getaffinity(0) == set(cores)
    assert os.sched_getaffinity(0) == before
    assert parse_cores("0,2-4,3") == (0, 2, 3, 4)
