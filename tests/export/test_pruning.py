"""The last layer of a CLS-pooled tower for one row: the embeddings stay the same to the last bit, in every batch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import Pair, write_dpr
from onnx import helper, numpy_helper

from narrows.bundle import Role
from narrows.encoder import ATTENTION_MASK, INPUT_IDS, Embeddings, Encoder
from narrows.errors import ExportError
from narrows.tokenizer import TokenIds
from narrows_export import checkpoint, graph, normalization, pruning, source
from narrows_export.checkpoint import TorchTower

ROLES: tuple[Role, ...] = ("question_encoder", "context_encoder")
LENGTHS = (2, 3, 5, 8, 9, 14, 14, 16, 17, 31, 33, 64, 65, 100, 128, 129, 255, 256)


@dataclass(frozen=True)
class Graphs:
    """The same tower before pruning, its normalizations split, and as it is exported."""

    tower: TorchTower
    whole: Path
    pruned: Path
    counts: dict[str, int]

    def texts(self) -> list[TokenIds]:
        """Random ids, short and long in turn."""
        random = np.random.default_rng(3)
        lengths = random.permutation(LENGTHS)
        return [random.integers(0, self.tower.model.config.vocab_size, length) for length in lengths]


def make(directory: Path, role: Role, out: Path) -> Graphs:
    tower = checkpoint.load(source.resolve(str(directory)), role, None)
    out.mkdir(exist_ok=True)
    whole = graph.fuse(tower, out / "raw.onnx")
    normalization.split(whole)
    onnx.save(whole, out / "whole.onnx")
    counts = graph.export_fp32(tower, out / "model.onnx")
    return Graphs(tower, out / "whole.onnx", out / "model.onnx", counts)


@pytest.fixture(scope="module", params=[*ROLES, "projection", "one layer"])
def graphs(
    request: pytest.FixtureRequest, small_pair: Pair, vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Graphs:
    """Both small towers; one with a projection behind it; one whose only layer is the last."""
    out = tmp_path_factory.mktemp("graphs")
    if request.param in ROLES:
        directory = small_pair.question if request.param == "question_encoder" else small_pair.context
        return make(directory, request.param, out)
    options = {"projection_dim": 32} if request.param == "projection" else {"layers": 1}
    return make(write_dpr(out / "dpr", "context_encoder", vocabulary, seed=5, **options), "context_encoder", out)


def in_batches(encoder: Encoder, texts: Sequence[TokenIds], size: int) -> Embeddings:
    return np.concatenate([encoder.encode(texts[start : start + size]) for start in range(0, len(texts), size)])


def assert_same_bits(graphs: Graphs, sizes: Sequence[int]) -> None:
    """Of the whole graph, alone; in batches with other neighbours and paddings; with one thread and with two."""
    texts = graphs.texts()
    expected = in_batches(Encoder(graphs.whole, 0, threads=1), texts, 1)
    for threads in (1, 2):
        pruned = Encoder(graphs.pruned, 0, threads)
        for size in sizes:
            assert np.array_equal(in_batches(pruned, texts, size), expected), (threads, size)


def test_embeddings_are_those_of_the_whole_graph_alone_and_in_any_batch(graphs: Graphs):
    assert_same_bits(graphs, (1, 2, 3, 4, 8, len(LENGTHS)))


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_a_trained_tower_keeps_its_bits(shared: Path, tmp_path: Path, role: Role):
    directory = shared / "models" / "tiny-dpr" / role
    if not directory.is_dir():
        pytest.skip("needs the trained pair")
    assert_same_bits(make(directory, role, tmp_path), (1, 3, 8))


def test_the_operators_are_counted(graphs: Graphs):
    layers = graphs.tower.model.config.num_hidden_layers
    expected = {
        "EmbedLayerNormalization": 1,
        "MultiHeadAttention": 1,
        "LayerNormalization": 2 * layers,
        "BiasGelu": layers,
    } | ({"Attention": layers - 1} if layers > 1 else {})
    assert graphs.counts == expected
    nodes = onnx.load(graphs.pruned).graph.node
    assert Counter(node.op_type for node in nodes if node.domain or node.op_type in expected) == expected
    assert sum(node.op_type == "Gemm" for node in nodes) == 3 + (graphs.tower.projection_dim > 0)
    named = [node.name for node in nodes if node.name]
    assert len(set(named)) == len(named)


def test_no_weight_is_stored_twice(graphs: Graphs):
    stored = onnx.load(graphs.pruned).graph
    assert {tensor.name for tensor in stored.initializer} <= {name for node in stored.node for name in node.input}
    assert graphs.pruned.stat().st_size == pytest.approx(graphs.whole.stat().st_size, abs=4096)


@pytest.mark.parametrize("pruned", [False, True])
def test_behind_its_attention_the_last_layer_has_one_row_a_text(graphs: Graphs, pruned: bool):
    model = onnx.load(graphs.pruned if pruned else graphs.whole)
    operators = ("MatMul", "LayerNormalization", "BiasGelu")
    layer = [node.output[0] for node in model.graph.node if node.op_type in operators][-6:]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in layer)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids = np.full((3, 9), 7, np.int64)
    rows = [value.shape[:-1] for value in session.run(None, {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids)})]
    assert rows == ([(3,)] if pruned else [(3, 9)]) * 6


# What is refused


def spoil(model: onnx.ModelProto, ending: str) -> None:
    """Moves one value of a weight."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(ending))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[3] += 0.01
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("ending", ["cls/query.weight", "cls/value.bias"])
def test_a_pruned_graph_with_other_embeddings_is_refused(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
):
    usual = pruning.prune_to_cls

    def spoilt(model: onnx.ModelProto) -> None:
        usual(model)
        spoil(model, ending)

    monkeypatch.setattr(pruning, "prune_to_cls", spoilt)
    with pytest.raises(ExportError, match=r"pruned to CLS differs from the whole one by .*e-0\d; the limit is 1e-05"):
        graph.export_fp32(graphs.tower, tmp_path / "model.onnx")


def test_a_graph_that_is_not_pruned_is_refused(graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pruning, "prune_to_cls", lambda model: None)
    with pytest.raises(ExportError, match=r"pruning left \{.* where the recipe demands .*'MultiHeadAttention': 1"):
        graph.export_fp32(graphs.tower, tmp_path / "model.onnx")


def test_another_pooling_is_refused(graphs: Graphs):
    model = onnx.load(graphs.whole)
    pooling = [node for node in model.graph.node if node.op_type == "Gather"][-1]
    pooling.op_type = "CumSum"
    with pytest.raises(ExportError, match="the last layer is read by CumSum where CLS pooling reads it by Gather"):
        pruning.prune_to_cls(model)
    del model.graph.node[:]
    with pytest.raises(ExportError, match="the fused graph lacks Attention, LayerNormalization or pooling"):
        pruning.prune_to_cls(model)
