"""What is decided by rule: descriptions, the best setting, rates, rounds that do not count, equal embeddings."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.peers.description import HERE, GraphFiles, Material, Peer, flags, load_peers
from benchmarks.peers.rules import DiscardRule, Saturation, best_setting, min_cosine, rates
from benchmarks.peers.targets import HttpTarget
from narrows.errors import BenchmarkError
from narrows_tools.bench.results import Row
from narrows_tools.bench.targets import TargetSpec

PEERS = load_peers()
BUNDLE, PLAIN = (GraphFiles(Path(name, "m.onnx"), Path(name, "onnx")) for name in ("bundle", "plain"))
MATERIAL = Material(Path("tokenizer.json"), 256, Path("checkpoint"), BUNDLE, PLAIN)


@pytest.mark.parametrize("name", PEERS)
def test_each_peer_has_six_settings_and_a_pinned_environment(name: str) -> None:
    peer = PEERS[name]
    assert len({tuple(setting.items()) for setting in peer.settings}) == len(peer.settings) >= 6
    pins = (HERE / "requirements" / f"{peer.environment}.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", pin) for pin in pins)


@pytest.mark.parametrize("name", PEERS)
def test_each_peer_can_be_started_by_its_description(name: str) -> None:
    peer = PEERS[name]
    start = peer.filled(MATERIAL, 2, peer.settings[0], port=7000, texts=Path("t"), report=Path("r"))
    assert start.command[0] == str(peer.python)
    assert Path(start.command[1]).is_file()
    assert start.variables["OMP_NUM_THREADS"] == "2"
    assert not any("{" in part for part in (*start.command, *start.variables.values(), str(start.directory)))
    if peer.target:
        assert "7000" in start.command
        assert isinstance(TargetSpec(peer.target, {"port": 7000}).make(), HttpTarget)
    else:
        assert {"t", "r"} <= set(start.command)


@pytest.mark.parametrize("name", [name for name in PEERS if PEERS[name].graph == "plain"])
def test_a_peer_with_the_plain_graph_differs_in_nothing_else(name: str) -> None:
    plain, same = (PEERS[each].filled(MATERIAL, 1, {}, port=7000) for each in (name, name.removesuffix("-plain")))
    assert PEERS[name].settings == PEERS[name.removesuffix("-plain")].settings
    of_graph, of_bundle = (str([*start.command, start.directory]) for start in (plain, same))
    assert str(PLAIN.model.parent.resolve()) in of_graph
    assert of_graph.replace(str(PLAIN.model.parent.resolve()), str(BUNDLE.model.parent.resolve())) == of_bundle


def test_a_setting_becomes_flags() -> None:
    setting = {"max_batch_size": 8, "wait_ms": 0.5, "fast_queue": True, "slow_queue": False}
    assert flags(setting) == ["--max-batch-size", "8", "--wait-ms", "0.5", "--fast-queue"]


def test_a_wrong_description_says_where(tmp_path: Path) -> None:
    file = tmp_path / "peers.toml"
    file.write_text('[one]\nenvironment = "one"\nruns = 3\ncommand = []\nsettings = []\n')
    with pytest.raises(BenchmarkError, match=r"peers\.toml: .*runs"):
        load_peers(file)
    file.write_text('[one]\nlike = "two"\n')
    with pytest.raises(BenchmarkError, match=r"peers\.toml: .*'two'"):
        load_peers(file)


def test_the_best_setting_is_the_quickest_to_answer_among_those_near_the_highest_throughput() -> None:
    found = [Saturation(100, 90), Saturation(98, 40), Saturation(96.9, 10), None]
    assert best_setting(found) == 1
    assert best_setting([None, None]) is None
    assert best_setting([]) is None


def test_rates_are_shares_of_the_best_peer_s_saturation() -> None:
    assert rates({"slow": 40.0, "fast": 251.0}) == (126.0, 201.0)


def _row(number: int, reference: float, system: str = "mosec", **metrics: float) -> Row:
    return Row(system, "open", "short", 10.0, number, {"reference_per_s": reference, **metrics})


def test_a_round_is_discarded_for_a_slow_machine_a_late_generator_or_a_busy_core() -> None:
    rule = DiscardRule(max_deviation=0.1, max_lag_ms=1.0, max_others_share=0.1)
    rows = [
        *(_row(1, 100.0 + number) for number in range(4)),
        _row(2, 100.0),
        _row(2, 80.0, "triton"),
        _row(3, 100.0, send_lag_p99_ms=1.5),
        _row(4, 100.0, others_cpu_share=0.2),
        _row(5, 109.0, send_lag_p99_ms=1.0, others_cpu_share=0.1),
    ]
    reasons = rule.discarded(rows)
    assert set(reasons) == {2, 3, 4}
    assert "-20%" in reasons[2]
    assert "triton" in reasons[2]
    assert "1.5 ms" in reasons[3]
    assert "20%" in reasons[4]
    assert rule.discarded([]) == {}


@given(st.lists(st.floats(1.0, 1e4), min_size=1, max_size=20))
def test_some_round_always_counts_where_only_the_speed_is_judged(speeds: list[float]) -> None:
    rule = DiscardRule(max_deviation=0.1, max_lag_ms=1.0, max_others_share=0.1)
    odd = speeds if len(speeds) % 2 else speeds[1:] or speeds  # the median is then one of them
    assert len(rule.discarded(_row(number, speed) for number, speed in enumerate(odd))) < len(odd)


def test_min_cosine_is_of_the_worst_row_and_refuses_what_cannot_be_compared() -> None:
    expected = np.eye(3, dtype=np.float32)
    assert min_cosine(expected * 5, expected) == pytest.approx(1.0)  # one side normalized, the other not
    assert min_cosine(expected[[0, 1, 0]], expected) == 0.0
    assert min_cosine(expected[:2], expected) == -1.0
    assert min_cosine(np.full_like(expected, np.nan), expected) == -1.0
    assert min_cosine(np.zeros_like(expected), expected) == -1.0


def test_a_peer_s_python_is_in_its_environment() -> None:
    peer = Peer("mosec", "", "bundle", (), ())
    assert peer.python.parts[-4:] == (".venv-peers", "mosec", "bin", "python")
    assert str(peer.python) != sys.executable
