"""Packed graphs, and the last layer of a CLS-pooled tower for one row: the same bits as before, in every batch."""

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
from narrows.encoder import Embeddings, Encoder
from narrows.errors import ExportError
from narrows.padding import ATTENTION_MASK, INPUT_IDS, pad_right
from narrows.tokenizer import TokenIds
from narrows_export import checkpoint, graph, nodes, normalization, packing, pruning, segments, source, unpacking
from narrows_export.checkpoint import TorchTower

ROLES: tuple[Role, ...] = ("question_encoder", "context_encoder")
LENGTHS = (2, 3, 5, 8, 9, 14, 14, 16, 17, 31, 33, 64, 65, 100, 128, 129, 255, 256)


@dataclass(frozen=True)
class Graphs:
    """The same tower padded and whole, its normalizations split; packed; and as it is exported."""

    tower: TorchTower
    whole: Path
    packed: Path
    exported: Path
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
    segments.subtract(whole)
    normalization.split(whole)
    onnx.save(whole, out / "whole.onnx")
    packing.pack(whole)
    onnx.save(whole, out / "packed.onnx")
    counts = graph.export_fp32(tower, out / "model.onnx")
    return Graphs(tower, out / "whole.onnx", out / "packed.onnx", out / "model.onnx", counts)


@pytest.fixture(scope="module", params=[*ROLES, "projection", "one layer", "odd", "mean"])
def graphs(
    request: pytest.FixtureRequest, small_pair: Pair, vocabulary: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Graphs:
    """Both small towers; a projection behind one; one whose only layer is the last; heads of 10; a mean-pooled one."""
    out = tmp_path_factory.mktemp("graphs")
    if request.param == "mean":
        return make(request.getfixturevalue("minilm_checkpoint"), "question_encoder", out)
    if request.param in ROLES:
        directory = small_pair.question if request.param == "question_encoder" else small_pair.context
        return make(directory, request.param, out)
    options = {
        "projection": {"projection_dim": 32},
        "one layer": {"layers": 1},
        "odd": {"hidden": 30, "heads": 3, "projection_dim": 7},
    }[request.param]
    return make(write_dpr(out / "dpr", "context_encoder", vocabulary, seed=5, **options), "context_encoder", out)


def in_batches(encoder: Encoder, texts: Sequence[TokenIds], size: int) -> Embeddings:
    return np.concatenate([encoder.encode(texts[start : start + size]) for start in range(0, len(texts), size)])


def assert_same_bits(graphs: Graphs, sizes: Sequence[int]) -> None:
    """Of the whole graph, alone; in batches with other neighbours and paddings; with one thread and with two."""
    texts = graphs.texts()
    expected = in_batches(Encoder(graphs.whole, 0, threads=1), texts, 1)
    for threads in (1, 2):
        exported = Encoder(graphs.exported, 0, threads)
        for size in sizes:
            assert np.array_equal(in_batches(exported, texts, size), expected), (threads, size)


def test_embeddings_are_those_of_the_whole_graph_alone_and_in_any_batch(graphs: Graphs):
    assert_same_bits(graphs, (1, 2, 3, 4, 8, len(LENGTHS)))


@pytest.mark.parametrize("longest_first", [True, False])
def test_one_long_text_among_many_short_ones_and_one_text_many_times(graphs: Graphs, longest_first: bool):
    shortest, *_, longest = sorted(graphs.texts(), key=len)
    batch = [shortest] * 63
    batch.insert(0 if longest_first else 63, longest)
    for threads in (1, 2):
        encoder = Encoder(graphs.exported, 0, threads)
        assert np.array_equal(encoder.encode(batch), in_batches(encoder, batch, 1))


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
        "MultiHeadAttention": layers,
        "LayerNormalization": 2 * layers,
        "BiasGelu": layers,
        "NonZero": 1,
    }
    assert graphs.counts == expected
    nodes = onnx.load(graphs.exported).graph.node
    assert Counter(node.op_type for node in nodes if node.domain or node.op_type in expected) == expected
    assert sum(node.op_type == "Gemm" for node in nodes) == 3 * layers + (graphs.tower.projection_dim > 0)
    named = [node.name for node in nodes if node.name]
    assert len(set(named)) == len(named)


def test_no_weight_is_stored_twice(graphs: Graphs):
    stored = onnx.load(graphs.exported).graph
    assert {tensor.name for tensor in stored.initializer} <= {name for node in stored.node for name in node.input}
    assert graphs.exported.stat().st_size == pytest.approx(graphs.whole.stat().st_size, abs=16_384)


def rows_of_layers(file: Path) -> list[tuple[int, ...]]:
    """What all but the last axis is, of each product, normalization and activation, for texts of 9, 4 and 2 tokens."""
    model = onnx.load(file)
    constants = {tensor.name for tensor in model.graph.initializer}
    operators = ("MatMul", "Gemm", "LayerNormalization", "BiasGelu")
    found = [node for node in model.graph.node if node.op_type in operators and node.input[1] in constants]
    names = [node.output[0] for node in found if "/layer." in node.output[0] or node.op_type == "LayerNormalization"]
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, mask = pad_right([np.full(tokens, 7) for tokens in (9, 4, 2)], 0)
    return [value.shape[:-1] for value in session.run(None, {INPUT_IDS: ids, ATTENTION_MASK: mask})]


@pytest.mark.parametrize("lengths", [(1,), (256,), (9, 4, 2), (1, 1, 7, 1), (2, 30, 30, 3)])
def test_every_token_finds_its_row_and_a_padded_one_the_row_before(graphs: Graphs, lengths: tuple[int, ...]):
    model = onnx.load(graphs.packed)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(packing.PLACES, onnx.TensorProto.INT32, None))
    nodes.drop_unread(model.graph)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ids, mask = pad_right([np.full(tokens, 7) for tokens in lengths], 0)
    places = session.run(None, {INPUT_IDS: ids, ATTENTION_MASK: mask})[0]
    assert np.array_equal(places, mask.cumsum().reshape(mask.shape) - 1)


def test_only_real_tokens_have_rows_and_behind_its_attention_the_last_layer_one_a_text(graphs: Graphs):
    layers = graphs.tower.model.config.num_hidden_layers
    each = 3 + 1 + 2 + 2 + 1  # query, key, value; output; feed-forward; normalizations; activation
    assert set(rows_of_layers(graphs.whole)) == {(3, 9)}
    assert rows_of_layers(graphs.packed) == [(15,)] * each * layers
    last = [(15,)] * each if graphs.tower.pooling == "mean" else [(3,), (15,), (15,), *[(3,)] * (each - 3)]
    assert rows_of_layers(graphs.exported) == [*[(15,)] * each * (layers - 1), *last]


# Unpacked again, for a GPU


def unpacked(file: Path, out: Path) -> Path:
    model = onnx.load(file)
    unpacking.unpack(model)
    onnx.checker.check_model(model)
    onnx.save(model, out)
    return out


def test_unpacked_it_has_the_operators_and_the_bits_of_the_whole_graph(graphs: Graphs, tmp_path: Path):
    file = unpacked(graphs.packed, tmp_path / "unpacked.onnx")
    before, after = (Counter(node.op_type for node in onnx.load(each).graph.node) for each in (graphs.whole, file))
    assert after == before
    assert file.stat().st_size == pytest.approx(graphs.whole.stat().st_size, abs=16_384)
    texts = graphs.texts()
    expected = in_batches(Encoder(graphs.whole, 0, threads=1), texts, 3)
    assert np.array_equal(in_batches(Encoder(file, 0, threads=1), texts, 3), expected)


def test_unpacked_a_pruned_layer_has_one_row_a_text(graphs: Graphs, tmp_path: Path):
    file = unpacked(graphs.exported, tmp_path / "unpacked.onnx")
    texts = graphs.texts()
    expected = in_batches(Encoder(graphs.whole, 0, threads=1), texts, 8)
    assert np.abs(in_batches(Encoder(file, 0, threads=1), texts, 8) - expected).max() < 1e-5
    layers, pruned = graphs.tower.model.config.num_hidden_layers, graphs.tower.pooling == "cls"
    each = 1 + 2 + 2 + 1  # output; feed-forward; normalizations; activation. Attention multiplies by itself
    last = [(3,), (3, 9), (3, 9), *[(3,)] * each] if pruned else [(3, 9)] * each
    assert rows_of_layers(file) == [*[(3, 9)] * each * (layers - 1), *last]
    counts = Counter(node.op_type for node in onnx.load(file).graph.node)
    assert (counts["Attention"], counts["MultiHeadAttention"]) == (layers - pruned, pruned)
    assert "NonZero" not in counts


# What is refused


def test_a_graph_that_is_not_packed_cannot_be_unpacked(graphs: Graphs):
    with pytest.raises(ExportError, match="not packed: this bundle was made by an earlier version; export it again"):
        unpacking.unpack(onnx.load(graphs.whole))


def spoil(model: onnx.ModelProto, ending: str) -> None:
    """Moves one value of a weight."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(ending))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[-1] += 1
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("ending", ["/query.weight", "/value.bias", "packed/one"])
def test_a_packed_graph_with_other_embeddings_is_refused(
    graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
):
    usual = packing.pack

    def spoilt(model: onnx.ModelProto) -> None:
        usual(model)
        spoil(model, ending)

    monkeypatch.setattr(packing, "pack", spoilt)
    with pytest.raises(ExportError, match=r"packed graph differs from the padded one by .*; the limit is 1e-05"):
        graph.export_fp32(graphs.tower, tmp_path / "model.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]  # the bundle's directory goes with it


def test_a_graph_that_is_not_packed_is_refused(graphs: Graphs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "pack", lambda model: None)
    monkeypatch.setattr(pruning, "prune_to_cls", lambda model: None)
    with pytest.raises(ExportError, match=r"packing left \{.* where the recipe demands .*'NonZero': 1"):
        graph.export_fp32(graphs.tower, tmp_path / "model.onnx")


def test_another_pooling_is_refused(graphs: Graphs):
    model = onnx.load(graphs.packed)
    pooling = next(node for node in model.graph.node if "packed/last" in node.input)
    pooling.op_type = "CumSum"
    with pytest.raises(ExportError, match="the last layer is read by CumSum where CLS pooling reads it by Gather"):
        pruning.prune_to_cls(model)
    del model.graph.node[:]
    with pytest.raises(ExportError, match="the packed graph lacks MultiHeadAttention, LayerNormalization or pooling"):
        pruning.prune_to_cls(model)
    with pytest.raises(ExportError, match="the fused graph lacks EmbedLayerNormalization or LayerNormalization"):
        packing.pack(model)
