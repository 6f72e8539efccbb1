"""The README's section and the plots, made from recorded results."""

import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from server_process import run_narrows

from narrows_tools.bench import plots, report, results
from narrows_tools.bench.results import Result, Row
from narrows_tools.cli import main

RECORDED = Path(__file__).parents[2] / "data" / "bench_results" / "simulation.json"  # its README says where from
README = f"# Title\n\nbefore\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Results, and a README with nothing of them."""
    (tmp_path / "results").mkdir()
    shutil.copy(RECORDED, tmp_path / "results")
    (tmp_path / "README.md").write_text(README, "utf-8")
    return tmp_path


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short half of the results, reported."""
    directory = tmp_path_factory.mktemp("report")
    recorded = results.load(RECORDED)
    rows = tuple(row for row in recorded.rows if row.traffic == "short")
    (directory / "results").mkdir()
    results.save(directory / "results" / "simulation.json", replace(recorded, rows=rows))
    (directory / "README.md").write_text(README, "utf-8")
    assert run(directory) == 0
    return directory


@pytest.fixture
def reported(once: Path, tmp_path: Path) -> Path:
    """A copy of that."""
    return shutil.copytree(once, tmp_path / "reported")


def run(here: Path, *flags: str) -> int:
    return main.main(["bench", "report", *places(here), *flags])


def places(here: Path) -> list[str]:
    return [
        *("--results", str(here / "results"), "--plots", str(here / "plots"), "--readme", str(here / "README.md")),
    ]


def contents(here: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in [here / "README.md", *sorted((here / "plots").iterdir())]}


def table(readme: str, column: str) -> list[dict[str, str]]:
    """The lines of the table that has this column."""
    lines = readme.split("\n")
    head = next(number for number, line in enumerate(lines) if line.startswith("|") and f" {column} " in line)
    names = [cell.strip() for cell in lines[head].strip("|").split("|")]
    found = []
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        found.append(dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return found


def test_two_processes_write_the_same_bytes_and_nothing_around_the_section_changes(here: Path) -> None:
    assert run_narrows("bench", "report", *places(here)).returncode == 0
    first = contents(here)
    assert set(first) == {
        "README.md",
        *(f"simulation-{kind}-{traffic}.svg" for kind in ("latency", "throughput") for traffic in ("short", "mixed")),
    }
    readme = first["README.md"].decode()
    assert readme.startswith(README.partition(report.BEGIN)[0])
    assert readme.endswith(README.partition(report.END)[2])
    shutil.rmtree(here / "plots")
    (here / "README.md").write_text(README, "utf-8")
    assert run_narrows("bench", "report", *places(here)).returncode == 0
    assert contents(here) == first


def test_every_number_is_that_of_the_file(here: Path) -> None:
    assert run(here) == 0
    readme = (here / "README.md").read_text("utf-8")
    recorded = results.load(RECORDED)
    lines = table(readme, "p99 ms")
    steps = results.groups(recorded.rows, ["open"])
    assert len(lines) == len(steps)
    for line, ((_, _, traffic, load), rows) in zip(lines, steps.items(), strict=True):
        p99s = [row.metrics["p99_ms"] for row in rows]
        assert (line["texts"], float(line["offered/s"])) == (traffic, load)
        median, _, spread = line["p99 ms"].partition(" ")
        assert float(median) == pytest.approx(statistics.median(p99s), abs=0.5)
        assert [float(value) for value in spread.strip("()").split(" to ")] == pytest.approx(
            [min(p99s), max(p99s)], abs=0.5
        )
    ceilings = {line["texts"]: float(line["ceiling/s"]) for line in table(readme, "ceiling/s")}
    for row in recorded.rows:
        if row.scenario == "ceiling":
            assert ceilings[row.traffic] == pytest.approx(row.metrics["throughput_per_s"], abs=0.5)
    assert recorded.created[:10] in readme
    assert report.PADDING in readme
    assert "](plots/simulation-latency-short.svg)" in readme


def test_a_long_table_is_folded_and_a_short_one_is_not(once: Path) -> None:
    recorded = results.load(once / "results" / "simulation.json")
    few = replace(recorded, rows=recorded.rows[:1])
    many = replace(recorded, rows=tuple(replace(recorded.rows[0], system=f"system {n}") for n in range(20)))
    assert "<details>" not in report.section({"few": few}, {}, Path("README.md"))
    assert "<details>" in report.section({"many": many}, {}, Path("README.md"))


def test_what_is_up_to_date_passes_the_check_and_is_not_written(
    reported: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(reported)
    assert run(reported, "--check") == 0
    assert contents(reported) == before
    capsys.readouterr()
    assert run(reported) == 0
    assert capsys.readouterr().out == "all up to date\n"


@pytest.mark.parametrize("what", ["a number in the section", "a plot", "a plot is gone", "the results", "an old plot"])
def test_check_fails_on_whatever_is_not_of_the_results(
    reported: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    readme, plot = reported / "README.md", reported / "plots" / "simulation-latency-short.svg"
    if what == "a number in the section":
        p99 = table(readme.read_text("utf-8"), "p99 ms")[0]["p99 ms"].split()[0]
        readme.write_text(readme.read_text("utf-8").replace(f" {p99} ", f" {float(p99) - 1} "), "utf-8")
    elif what == "a plot":
        plot.write_bytes(plot.read_bytes().replace(b"requests/s", b"requests/h"))
    elif what == "a plot is gone":
        plot.unlink()
    elif what == "the results":
        recorded = results.load(RECORDED)
        rows = tuple(replace(row, metrics={k: 0.9 * v for k, v in row.metrics.items()}) for row in recorded.rows)
        results.save(reported / "results" / "simulation.json", replace(recorded, rows=rows))
    else:
        plot = shutil.copy(plot, plot.with_name("older-latency-short.svg"))
    before = contents(reported)
    capsys.readouterr()
    assert run(reported, "--check") == 1
    error = capsys.readouterr().err
    assert (readme.name if what in ("a number in the section", "the results") else plot.name) in error
    assert contents(reported) == before
    assert run(reported) == 0
    assert contents(reported) != before


def test_a_picture_that_was_not_drawn_here_stays(reported: Path) -> None:
    (reported / "plots" / "logo.svg").write_text("<svg/>", "utf-8")
    assert run(reported) == 0
    assert run(reported, "--check") == 0
    assert (reported / "plots" / "logo.svg").read_text("utf-8") == "<svg/>"


def test_plots_are_svg_with_a_line_for_each_percentile_and_no_date(reported: Path) -> None:
    for file in (reported / "plots").iterdir():
        tree = ElementTree.fromstring(file.read_text("utf-8"))
        assert tree.tag == "{http://www.w3.org/2000/svg}svg"
        assert b"dc:date" not in file.read_bytes()
    texts = [
        element.text
        for element in ElementTree.parse(reported / "plots" / "simulation-latency-short.svg").iter(
            "{http://www.w3.org/2000/svg}text"
        )
    ]
    assert {"simulation p50", "simulation p99", "offered, requests/s", "latency, ms"} <= set(texts)


def test_another_versions_drawing_is_taken_for_right_if_it_shows_the_same() -> None:
    recorded = results.load(RECORDED)
    drawn = plots.plots("x", recorded)["x-latency-short"]
    version = plots.stamp(drawn).partition("matplotlib ")[2].encode()
    older = drawn.replace(b"matplotlib " + version, b"matplotlib 3.0.0").replace(b"<path", b"<path ")
    assert plots.is_of(older, drawn)
    assert not plots.is_of(older.replace(b"drawn: ", b"drawn: 0")[:-1], drawn)
    assert not plots.is_of(plots.plots("x", recorded)["x-latency-mixed"], drawn)
    assert not plots.is_of(b"<svg/>", drawn)


@pytest.mark.parametrize("readme", ["no markers", report.BEGIN, f"{report.END} {report.BEGIN}", README + README])
def test_a_readme_without_its_two_markers_stays_as_it_is(
    here: Path, readme: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "README.md").write_text(readme, "utf-8")
    assert run(here) == 1
    assert "README.md needs the lines" in capsys.readouterr().err
    assert (here / "README.md").read_text("utf-8") == readme
    assert not (here / "plots").exists()


def test_no_results_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path) == 1
    assert "holds no results" in capsys.readouterr().err


def test_the_tables_of_a_server_beside_its_ceiling_and_a_peer() -> None:
    rows = []
    for number, served in enumerate((90.0, 100.0, 96.0), start=1):
        rows += [
            Row("narrows", "start", "", 0.0, number, {"ready_ms": 2500.0, "rss_bytes": 300 * 2.0**20}),
            Row("narrows", "ceiling", "short", 0.0, number, {"throughput_per_s": 120.0}),
            Row("narrows", "closed", "short", 0.0, number, {"throughput_per_s": served}),
            Row("narrows", "server", "short", 80.0 + number, number, {"throughput_per_s": 80.0 + number}),
            Row("triton", "closed", "short", 0.0, number, {"throughput_per_s": 70.0}),
            Row("narrows", "open", "short", 50.0, number, {"p50_ms": 5.0, "p99_ms": 9.0, "generator_late": 1.0}),
        ]
    environment = {"cpu_model": "A CPU", "cores": 2, "server_cores": [0], "client_cores": [1], "load_average": [0.5]}
    shown = report.section(
        {"one": Result("peers", "2026-11-24T00:00:00+00:00", environment, {}, tuple(rows))}, {}, Path("README.md")
    )
    ours, theirs = table(shown, "ceiling/s")
    assert ours["closed loop/s"] == "96.0 (90.0 to 100)"
    assert ours["closed loop / ceiling"] == "0.80 (0.75 to 0.83)"
    assert ours["p99 in time/s"] == "82.0 (81.0 to 83.0)"
    assert (theirs["system"], theirs["ceiling/s"], theirs["closed loop/s"]) == ("triton", "", "70.0")
    (start,) = table(shown, "RSS MiB")
    assert (start["ready after s"], start["RSS MiB"]) == ("2.50", "300")
    assert "50*" in shown
    assert "the load generator itself was late" in shown
    assert "padding %" not in shown
    assert "A CPU (2 cores), server on cores 0, load on 1, load average before it 0.5, 3 rounds" in shown


def test_rounds_with_a_late_generator_count_only_where_there_are_no_others() -> None:
    rows = tuple(
        Row("a|b", "open", "short", load, number, {"p50_ms": p50_ms, "p99_ms": 9.0, "generator_late": late})
        for load, number, p50_ms, late in ((5.0, 1, 80.0, 1.0), (5.0, 2, 4.0, 0.0), (7.0, 1, 90.0, 1.0))
    )
    recorded = Result("narrows", "2026-11-24T00:00:00+00:00", {}, {}, rows)
    shown = report.section({"one": recorded, "one-b": recorded}, {"one-b": [Path("one-b-x.svg")]}, Path("README.md"))
    assert "| a\\|b | short | 5 | 4.0 | 9.0 |" in shown
    assert "| a\\|b | short | 7* | 90.0 | 9.0 |" in shown
    assert shown.count("one-b-x.svg") == 1


def test_recipes_of_int8_are_a_table_and_a_plot() -> None:
    rows = tuple(
        Row(
            name,
            "offline",
            "minilm",
            0.0,
            1,
            {"speedup_ratio": speed, "top10_overlap_share": overlap, "passed": passed},
        )
        for name, speed, overlap, passed in (("all", 1.8, 0.917, 0.0), ("two in float", 1.4, 0.969, 1.0))
    )
    recorded = Result("int8", "2026-11-24T00:00:00+00:00", {}, {}, rows)
    drawn = plots.plots("int8", recorded)
    assert list(drawn) == ["int8-recipes"]
    assert b"two in float minilm" in drawn["int8-recipes"]
    lines = table(report.section({"int8": recorded}, {}, Path("README.md")), "times as fast")
    assert [(line["recipe"], line["top-10 overlap"], line["passed"]) for line in lines] == [
        ("all", "0.917", "no"),
        ("two in float", "0.969", "yes"),
    ]


def test_a_readme_that_is_not_utf_8_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "README.md").write_bytes(README.encode() + b"\xff")
    assert run(here) == 1
    assert "README.md is not UTF-8: invalid start byte at byte" in capsys.readouterr().err
