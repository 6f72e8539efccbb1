"""A whole comparison between a real Narrows server and a small real peer; and what a peer leaves behind."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import psutil
import pytest

from benchmarks.peers import processes
from benchmarks.peers.comparison import Comparison, Plan, Reference, resumed
from benchmarks.peers.description import Graph, GraphFiles, Material, Peer, Setting, Start, load_peers
from benchmarks.peers.prepare import prepare, without_pooling
from benchmarks.peers.processes import MARK, free_port, marked, serving, started
from benchmarks.peers.rules import DiscardRule, rates
from benchmarks.peers.systems import Check, NarrowsServer, PeerInProcess, PeerServer
from benchmarks.peers.table import table
from narrows.bundle import Bundle
from narrows.encoder import Encoder
from narrows.errors import BenchmarkError
from narrows.padding import pad_right
from narrows.towers import Tower, load_towers
from narrows_tools.bench.pinned import default_layout
from narrows_tools.bench.results import Result, load
from narrows_tools.bench.targets import TargetSpec, Text
from narrows_tools.bench.traffic import Traffic, single_token_words

SMALL_PEER = Path(__file__).parent / "small_peer.py"
ARGUMENTS = ("--model", "{model}", "--tokenizer", "{tokenizer}", "--max-tokens", "{max_tokens}")
COMMAND = (sys.executable, str(SMALL_PEER), *ARGUMENTS, "--threads", "{threads}", "--port", "{port}")
TARGET = "benchmarks.peers.targets:MosecTarget"
LAYOUT = default_layout()
LENIENT = DiscardRule(max_deviation=1e9, max_lag_ms=1e9, max_others_share=1e9)
ROUNDS = 2
WRONG: Setting = {"batch_size": 1, "shift": 5.0}
RIGHT: Setting = {"batch_size": 2}
BROKEN: Setting = {"batch_size": 3, "no_such_flag": True}
SHORT = {"short": 0.1, "mixed": 0.1}


@pytest.fixture(scope="module")
def tower(small_bundle: Bundle) -> Tower:
    return load_towers(small_bundle, "fp32", 1, ["question_encoder"])["question_encoder"]


@pytest.fixture(scope="module")
def material(small_bundle: Bundle, tower: Tower) -> Material:
    directory = small_bundle.path / tower.manifest.directory
    files = GraphFiles(directory / "model.fp32.onnx", Path("none"))
    return Material(directory / "tokenizer.json", tower.manifest.max_tokens, Path("none"), files, files)


@pytest.fixture(scope="module")
def check(tower: Tower) -> Check:
    texts = ["who sings?", "where is the sea?", "when did the king build the old bridge over the river?"]
    token_ids = [text.ids for text in tower.tokenizer.questions(texts)]
    return Check(
        [Text(text, len(ids)) for text, ids in zip(texts, token_ids, strict=True)], tower.encoder.encode(token_ids)
    )


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.3)


def _comparison(
    small_bundle: Bundle,
    tower: Tower,
    material: Material,
    check: Check,
    out: Path,
    rule: DiscardRule = LENIENT,
    peers: Sequence[tuple[str, Graph, tuple[Setting, ...]]] = (("small", "bundle", (RIGHT,)),),
) -> Comparison:
    plan = Plan(
        rounds=ROUNDS, extra_rounds=1, search_s=SHORT, closed_s=SHORT, open_s=SHORT, offline_s=0.1, clients=2, seed=0,
        deadline_ms=1e3, most_per_s={"short": 400.0, "mixed": 400.0}, rule=rule,
    )  # fmt: skip
    fresh = Result("peers", "2026-01-01T00:00:00+00:00", {}, {"systems": {}, "graphs": {}, "skipped": {}}, ())
    result, plan = resumed(out, fresh, plan)
    narrows = NarrowsServer("narrows-fp32", small_bundle.path, None, "fp32", LAYOUT.server, check)
    return Comparison(
        plan=plan,
        peers=[
            PeerServer(
                name, Peer("small", "", graph, COMMAND, settings, TARGET), material, LAYOUT.server, out.parent, check
            )
            for name, graph, settings in peers
        ],
        narrows=[narrows],
        in_process=[],
        words=single_token_words(tower.tokenizer),
        max_tokens=tower.manifest.max_tokens,
        layout=LAYOUT,
        reference=Reference(tower, LAYOUT, 0.05),
        out=out,
        result=result,
        say=lambda words: None,
    )


def test_a_comparison_finds_the_setting_that_works_and_measures_both_in_each_round(
    small_bundle: Bundle, tower: Tower, material: Material, check: Check, tmp_path: Path
) -> None:
    out = tmp_path / "peers.json"
    grid = (WRONG, RIGHT, BROKEN)
    result = _comparison(small_bundle, tower, material, check, out, peers=[("small", "bundle", grid)]).run()
    assert load(out) == result
    wrong, right, broken = result.settings["search"]["small"]
    assert "is not timed" in wrong["error"]
    assert "no-such-flag" in broken["error"]
    assert right["min_cosine"] > 0.99999
    assert result.settings["best"] == {"small": {"short": 1, "mixed": 1}}
    assert result.settings["complete"]
    offered = {traffic: tuple(found) for traffic, found in result.settings["rates"].items()}
    for system in ("narrows-fp32", "small"):
        for number in (1, 2):
            mine = [row for row in result.rows if (row.system, row.round) == (system, number)]
            for traffic in ("short", "mixed"):
                (closed,) = [row for row in mine if (row.traffic, row.scenario) == (traffic, "closed")]
                assert closed.metrics["throughput_per_s"] > 0
                loads = tuple(row.load for row in mine if (row.traffic, row.scenario) == (traffic, "open"))
                assert loads == offered[traffic]
            assert all(row.metrics["failed_share"] == 0 and row.metrics["rss_bytes"] > 0 for row in mine)
            assert all(row.metrics["reference_per_s"] > 0 for row in mine)
    assert "small, best for mixed" in table(result)

    with pytest.raises(BenchmarkError, match="finished run"):
        _comparison(small_bundle, tower, material, check, out)


def test_the_rates_are_of_the_best_peer_that_has_the_bundle_s_graph(
    small_bundle: Bundle, tower: Tower, material: Material, check: Check, tmp_path: Path
) -> None:
    same: tuple[str, Graph, tuple[Setting, ...]] = ("small", "bundle", ({"wait_ms": 40},))
    plain: tuple[str, Graph, tuple[Setting, ...]] = ("quicker", "plain", (RIGHT,))
    comparison = _comparison(small_bundle, tower, material, check, tmp_path / "peers.json", peers=[plain, same])
    comparison.narrows, comparison.plan = [], replace(comparison.plan, rounds=1)
    result = comparison.run()
    for traffic, offered in result.settings["rates"].items():
        found = {name: result.settings["search"][name][0][traffic]["throughput_per_s"] for name in ("small", "quicker")}
        assert tuple(offered) == rates({"small": found["small"]}) != rates(found)
    assert {row.system for row in result.rows} == {"small", "quicker"}

    alone = _comparison(small_bundle, tower, material, check, tmp_path / "plain.json", peers=[plain])
    with pytest.raises(BenchmarkError, match=r"no peer with the bundle's graph could be measured.*none was asked for"):
        alone.run()


def test_a_run_that_was_cut_off_goes_on_and_keeps_what_it_had(
    small_bundle: Bundle, tower: Tower, material: Material, check: Check, tmp_path: Path
) -> None:
    out = tmp_path / "peers.json"
    cut = _comparison(small_bundle, tower, material, check, out)
    cut.say = _interrupt_at("round 2")
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    kept = load(out)
    assert {row.round for row in kept.rows} == {1}
    assert not kept.settings["complete"]
    went_on = _comparison(small_bundle, tower, material, check, out)
    said: list[str] = []
    went_on.say = said.append
    result = went_on.run()
    assert all(words.startswith("round 2") for words in said)
    assert result.rows[: len(kept.rows)] == kept.rows

    out.unlink()
    other = _comparison(small_bundle, tower, material, check, out)
    other.say = _interrupt_at("search")
    with pytest.raises(KeyboardInterrupt):
        other.run()
    other._note()  # nothing had been saved yet
    with pytest.raises(BenchmarkError, match="other options"):
        _comparison(small_bundle, tower, material, check, out, DiscardRule(0.5, 1.0, 1.0))


def test_discarded_rounds_are_replaced_up_to_a_bound_and_kept_apart(
    small_bundle: Bundle, tower: Tower, material: Material, check: Check, tmp_path: Path
) -> None:
    strict = DiscardRule(max_deviation=1e9, max_lag_ms=-1.0, max_others_share=1e9)  # which no round can meet
    comparison = _comparison(small_bundle, tower, material, check, tmp_path / "peers.json", strict)
    comparison.narrows = []
    comparison.plan = replace(comparison.plan, rounds=1)
    result = comparison.run()
    assert result.rows == ()
    assert set(result.settings["discarded"]) == {"1", "2"}
    assert {row["round"] for row in result.settings["discarded_rows"]} == {1, 2}
    assert "only 0 of 2 rounds count" in table(result)  # of the plan that was saved


def _interrupt_at(begins: str) -> Callable[[str], None]:
    def say(words: str) -> None:
        if words.startswith(begins):
            raise KeyboardInterrupt

    return say


def test_a_process_that_moves_to_a_session_of_its_own_and_ignores_sigterm_is_ended_too(
    material: Material, tmp_path: Path
) -> None:
    peer = Peer("small", "", "bundle", COMMAND, ({},), TARGET)
    port = free_port()
    start = peer.filled(material, 1, {}, port=port)
    with serving(start, TargetSpec(TARGET, {"port": port}), port, LAYOUT.server, tmp_path / "log") as server:
        (grandchild,) = psutil.Process(server.pid).children()
        assert grandchild.is_running()
        assert grandchild.cpu_affinity() == list(LAYOUT.server)
        mark = grandchild.environ()[MARK]
        assert {process.pid for process in marked(mark)} == {server.pid, grandchild.pid}
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE
    assert marked(mark) == []


def test_a_peer_does_not_see_this_program_s_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWS_LISTEN", "x")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    code = "import os; print(sorted(n for n in os.environ if n.startswith('NARROWS_L') or n in ('PYTHONPATH', 'OWN')))"
    start = Start((sys.executable, "-c", code), {"OWN": "1"}, tmp_path)
    with started(start, LAYOUT.server, tmp_path / "log") as process:
        assert process.wait(30) == 0
    assert (tmp_path / "log").read_text().strip() == "['OWN']"


def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    start = Start((sys.executable, "-c", "import sys; sys.exit('no such graph')"), {}, tmp_path)
    port = free_port()
    target = TargetSpec(TARGET, {"port": port})
    with (
        pytest.raises(BenchmarkError, match="ended with status 1; it wrote: no such graph"),
        serving(start, target, port, LAYOUT.server, tmp_path / "log"),
    ):
        pass
    missing = Start(("/no/such/python",), {}, tmp_path)
    with pytest.raises(BenchmarkError, match="cannot be started"), started(missing, LAYOUT.server, tmp_path / "log"):
        pass


def test_all_graphs_compute_the_same_and_the_plain_one_has_nothing_of_narrows(
    minilm_bundle: Bundle, tmp_path: Path
) -> None:
    material = prepare(minilm_bundle.path, tmp_path)
    operators = {node.op_type for node in onnx.load(material.plain.model).graph.node}
    assert {"Attention", "SkipLayerNormalization"} <= operators
    assert not operators & {"MultiHeadAttention", "LayerNormalization", "NonZero"}
    tower = load_towers(minilm_bundle, "fp32", 1, ["question_encoder"])["question_encoder"]
    ids = [text.ids for text in tower.tokenizer.questions(["who sings?", "where is the deepest of all the seas?"])]
    input_ids, mask = pad_right(ids, tower.tokenizer.pad_id)
    expected = tower.encoder.encode(ids)
    np.testing.assert_allclose(Encoder(material.plain.model, 0, threads=1).encode(ids), expected, atol=1e-6)
    for files in (material.bundle, material.plain):
        session = onnxruntime.InferenceSession(files.directory / "model.onnx", providers=["CPUExecutionProvider"])
        (hidden,) = session.run(["last_hidden_state"], {"input_ids": input_ids, "attention_mask": mask})
        mean = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(mean / np.linalg.norm(mean, axis=1, keepdims=True), expected, atol=1e-6)


def test_towers_that_peers_cannot_serve_are_refused(small_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="not an export of MiniLM"):
        prepare(small_bundle.path, tmp_path)
    identity = onnx.helper.make_node("Identity", ["a"], ["b"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([identity], "unfused", values[:1], values[1:])
    with pytest.raises(BenchmarkError, match="not fused"):
        without_pooling(onnx.helper.make_model(graph))


@pytest.mark.slow
@pytest.mark.parametrize("name", load_peers())
def test_each_installed_peer_computes_what_narrows_does(name: str, minilm_bundle: Bundle, tmp_path: Path) -> None:
    peer = load_peers()[name]
    if not peer.python.exists():
        pytest.skip(f"needs {peer.environment}'s environment: python -m benchmarks.peers.environments")
    tower = load_towers(minilm_bundle, "fp32", 1, ["question_encoder"])["question_encoder"]
    traffic = Traffic(single_token_words(tower.tokenizer), 256, seed=1)
    texts = [*traffic.short(16), *traffic.mixed(16)]
    token_ids = [text.ids for text in tower.tokenizer.questions([text.text for text in texts])]
    check = Check(texts, tower.encoder.encode(token_ids))
    material = prepare(minilm_bundle.path, tmp_path)
    if peer.target:
        with PeerServer(name, peer, material, LAYOUT.server, tmp_path, check).running(0) as running:
            assert running.min_cosine > 0.99999
            mark = psutil.Process(running.server.pid).environ()[MARK]
        assert marked(mark) == []
    else:
        loads = {"short": traffic.short(8), "mixed": traffic.mixed(8)}
        found = PeerInProcess(name, peer, material, LAYOUT.server, tmp_path, check).measure(0, loads, 0.1)
        assert all(per_s > 0 for per_s in found.values())
