"""Narrows beside the best of its peers: which peer that is, and ratios within a round."""

from narrows_tools.bench.peer_ratios import ratios, what_ran
from narrows_tools.bench.results import Result, Row

GRAPHS = {"mosec": "bundle", "triton": "bundle", "mosec-plain": "plain"}
RAN = {"narrows-fp32": "fp32", "mosec": "its graph", "triton": "its graph", "mosec-plain": "a plain graph"}
SETTINGS = {"graphs": GRAPHS, "systems": RAN, "shares": [0.5, 0.8], "rates": {"short": [50.0, 80.0]}}
# By system: saturation, then p99 at both rates, a value for each of three rounds.
MEASURED = {
    "narrows-fp32": [(80.0, 100.0, 90.0), (10.0, 10.0, 10.0), (20.0, 30.0, 20.0)],
    "narrows-int8": [(150.0, 200.0, 180.0), (5.0, 5.0, 5.0), (6.0, 6.0, 6.0)],
    "mosec": [(100.0, 100.0, 100.0), (20.0, 20.0, 20.0), (40.0, 40.0, 40.0)],
    "triton": [(90.0, 90.0, 120.0), (16.0, 10.0, 20.0), (80.0, 80.0, 80.0)],
    "mosec-plain": [(80.0, 80.0, 80.0), (40.0, 40.0, 40.0), (80.0, 80.0, 80.0)],
}


def _rows(**refused_share: float) -> tuple[Row, ...]:
    rows = []
    for system, (saturation, *p99s) in MEASURED.items():
        for number, per_s in enumerate(saturation, start=1):
            rows.append(Row(system, "closed", "short", 0.0, number, {"throughput_per_s": per_s}))
            for rate_per_s, p99_ms in zip((50.0, 80.0), p99s, strict=True):
                metrics = {"p99_ms": p99_ms[number - 1], "refused_share": refused_share.get(system, 0.0)}
                rows.append(Row(system, "open", "short", rate_per_s, number, metrics))
    return tuple(rows)


def _result(*rows: Row) -> Result:
    return Result("peers", "2026-01-01T00:00:00+00:00", {}, SETTINGS, rows)


def test_throughput_is_beside_the_peer_with_the_highest_and_p99_beside_the_one_with_the_lowest() -> None:
    head, *lines = ratios(_result(*_rows()))
    assert head[-2:] == ["p99 / the lowest, 50%", "p99 / the lowest, 80%"]
    same = ["0.90 (0.80 to 1.00)", "0.62 (0.50 to 1.00), triton at 50/s", "0.50 (0.50 to 0.75), mosec at 80/s"]
    assert lines[0] == ["short", "fp32", "the same", "mosec, 100", *same]
    assert lines[1][:5] == ["short", "int8", "the same", "mosec, 100", "1.80 (1.50 to 2.00)"]
    plain = ["1.12 (1.00 to 1.25)", "0.25, mosec-plain at 50/s", "0.25 (0.25 to 0.38), mosec-plain at 80/s"]
    assert lines[2] == ["short", "fp32", "plain", "mosec-plain, 80.0", *plain]
    assert len(lines) == 4


def test_rounds_that_one_of_them_lacks_are_left_out() -> None:
    rows = [row for row in _rows() if (row.system, row.round) != ("mosec", 2)]
    assert ratios(_result(*rows))[1][4] == "0.85 (0.80 to 0.90)"


def test_a_system_that_leaves_requests_without_an_answer_has_no_p99() -> None:
    lines = ratios(_result(*_rows(triton=0.02, mosec=0.01)))[1:]
    assert lines[0][5] == "0.50, mosec at 50/s"
    assert ratios(_result(*_rows(**{"narrows-fp32": 0.02})))[1][5] == "inf, triton at 50/s"
    assert ratios(_result(*_rows(**{"mosec-plain": 0.02})))[3][5] == ""


def test_what_the_peers_ran_is_said_once() -> None:
    assert what_ran(_result()) == ["mosec, triton: its graph", "mosec-plain: a plain graph"]


def test_other_results_have_no_ratios() -> None:
    assert ratios(Result("narrows", "2026-01-01T00:00:00+00:00", {}, {}, _rows())) == []
    assert ratios(_result()) == []
