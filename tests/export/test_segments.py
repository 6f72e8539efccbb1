"""Segment ids without shapes: the bits that given ones give, refused if they are not zero, no shape in any graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import Pair
from onnx import helper, numpy_helper

from narrows.bundle import Bundle
from narrows.encoder import Embeddings, Encoder
from narrows.errors import ExportError
from narrows.tokenizer import load_tokenizer
from narrows_export import checkpoint, graph, packing, recipes, segments, source
from narrows_export.checkpoint import TorchTower
from narrows_export.nodes import make

SHAPES = {"Shape", "Size", "ConstantOfShape", "Expand", "Loop", "If"}


@pytest.fixture(scope="module", params=["cls", "mean"])
def tower(request: pytest.FixtureRequest, small_pair: Pair, minilm_checkpoint: Path) -> TorchTower:
    directory = small_pair.question if request.param == "cls" else minilm_checkpoint
    return checkpoint.load(source.resolve(str(directory)), "question_encoder", None)


@pytest.fixture(scope="module")
def fused(tower: TorchTower, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A tower as the optimizer leaves it: segment ids are made from shapes."""
    return graph.fuse(tower, tmp_path_factory.mktemp("fused") / "raw.onnx")


@pytest.fixture
def model(fused: onnx.ModelProto) -> onnx.ModelProto:
    """The same, to change."""
    copy = onnx.ModelProto()
    copy.CopyFrom(fused)
    return copy


def operators(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


def embeddings(model: onnx.ModelProto, file: Path) -> Embeddings:
    """Of texts of many lengths, in one batch."""
    onnx.save(model, file)
    random = np.random.default_rng(2)
    return Encoder(file, 0, threads=1).encode([random.integers(0, 2000, length) for length in (2, 60, 3, 17, 9)])


def with_ones(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with a 1 where every segment id is 0."""
    embedding = next(node for node in model.graph.node if node.op_type == "EmbedLayerNormalization")
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.int32), "one"))
    place = list(model.graph.node).index(embedding)
    model.graph.node.insert(place, make("Add", [embedding.input[segments.SEGMENTS], "one"], "ones"))
    model.graph.node[place + 1].input[segments.SEGMENTS] = "ones"
    return model


def test_subtracted_ids_give_the_same_bits_without_shapes(
    fused: onnx.ModelProto, model: onnx.ModelProto, tmp_path: Path
):
    segments.subtract(model)
    assert operators(fused) & SHAPES
    assert not operators(model) & SHAPES
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    assert np.array_equal(embeddings(model, tmp_path / "new.onnx"), embeddings(fused, tmp_path / "old.onnx"))


SEPARATOR = 3


def test_pairs_are_told_apart_by_their_first_separator(fused: onnx.ModelProto, model: onnx.ModelProto, tmp_path: Path):
    """The same bits as segment ids written by hand, whatever a text is batched with."""
    random = np.random.default_rng(3)
    texts = [random.integers(SEPARATOR + 1, 2000, length) for length in (2, 60, 3, 17, 9, 5)]
    for text, places in zip(texts, ([1], [9, 30], [0], [4, 5, 16], [8], []), strict=True):
        text[places] = SEPARATOR
    segments.pair(model, SEPARATOR)
    assert not operators(model) & SHAPES
    onnx.save(model, tmp_path / "pair.onnx")
    encoder = Encoder(tmp_path / "pair.onnx", 0, threads=1)
    together = encoder.encode(texts)
    for place, (text, question) in enumerate(zip(texts, (2, 10, 1, 5, 9, 5), strict=True)):
        assert np.array_equal(encoder.encode([text])[0], together[place])
        by_hand = with_segments(fused, [0] * question + [1] * (len(text) - question))
        onnx.save(by_hand, tmp_path / "by_hand.onnx")
        assert np.array_equal(Encoder(tmp_path / "by_hand.onnx", 0, threads=1).encode([text])[0], together[place])


def with_segments(model: onnx.ModelProto, wanted: list[int]) -> onnx.ModelProto:
    """The graph with these segment ids, for one text of their number of tokens."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.initializer.append(numpy_helper.from_array(np.array([wanted], np.int32), "wanted"))
    embedding = next(node for node in made.graph.node if node.op_type == "EmbedLayerNormalization")
    embedding.input[segments.SEGMENTS] = "wanted"
    return made


def test_folded_they_are_not_read_at_all(fused: onnx.ModelProto, model: onnx.ModelProto, tmp_path: Path):
    segments.fold(model)
    embedding = next(node for node in model.graph.node if node.op_type == "EmbedLayerNormalization")
    assert [place for place, name in enumerate(embedding.input) if not name] == [segments.SEGMENTS, segments.TYPES]
    assert not operators(model) & SHAPES
    assert not any("token_type_embeddings" in tensor.name for tensor in model.graph.initializer)
    difference = embeddings(model, tmp_path / "new.onnx") - embeddings(fused, tmp_path / "old.onnx")
    assert np.abs(difference).max() < 1e-5


def test_the_variants_compute_with_no_shapes(variants_bundle: Bundle, minilm_bundle: Bundle):
    files = [*variants_bundle.path.rglob("*.onnx"), *minilm_bundle.path.rglob("*.onnx")]
    assert len(files) == 2 * 3 + 1
    for file in files:
        assert not operators(onnx.load(file)) & SHAPES, file


def test_fp16_from_the_fp32_graph_of_an_earlier_version(variants_bundle: Bundle, tmp_path: Path):
    """Its zeros and its packed places came from shapes; the variant is the same."""
    tower = variants_bundle.tower("question_encoder")
    model = onnx.load(variants_bundle.file(tower, "model.fp32.onnx"))
    flat = numpy_helper.from_array(np.array([-1]), "old/flat")
    model.graph.initializer.extend([flat, numpy_helper.from_array(np.array(0), "old/axis")])
    mask = next(node for node in model.graph.node if node.output[0] == "packed/count").input[0]
    old = {
        segments.ZEROS: [
            make("Shape", ["input_ids"], "old/shape"),
            helper.make_node("ConstantOfShape", ["old/shape"], ["old/zeros"]),
            make("Cast", ["old/zeros"], segments.ZEROS, to=onnx.TensorProto.INT32),
        ],
        packing.PLACES: [
            make("CumSum", ["packed/mask", "old/axis"], "old/count"),
            make("Sub", ["old/count", "packed/one"], "old/before"),
            make("Shape", [mask], "old/mask_shape"),
            make("Reshape", ["old/before", "old/mask_shape"], packing.PLACES),
        ],
    }
    made = [new for node in model.graph.node for new in old.get(node.output[0], [node])]
    del model.graph.node[:]
    model.graph.node.extend(made)
    file, out = tmp_path / "model.fp32.onnx", tmp_path / "model.fp16.onnx"
    expected = embeddings(onnx.load(variants_bundle.file(tower, "model.fp32.onnx")), tmp_path / "copy.onnx")
    assert np.array_equal(embeddings(model, file), expected)
    made_fp16 = recipes.make_fp16(file, out, recipes.Making("", load_tokenizer(variants_bundle, tower), 1))
    assert made_fp16.op_counts == tower.variants["fp16"].fused_ops
    assert out.read_bytes() == variants_bundle.file(tower, "model.fp16.onnx").read_bytes()


# What is refused


def test_segment_ids_that_are_not_zero(
    tower: TorchTower, model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    said = "the graph's segment ids are not zero for every token"
    monkeypatch.setattr(graph, "fuse", lambda *given: with_ones(model))
    with pytest.raises(ExportError, match=said):
        graph.export_fp32(tower, tmp_path / "model.onnx")
    for change in (segments.fold, lambda graph: segments.pair(graph, SEPARATOR)):
        with pytest.raises(ExportError, match=said):
            change(model)


def test_shapes_that_are_left(tower: TorchTower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(segments, "subtract", lambda model: None)
    with pytest.raises(ExportError, match=r"computes with shapes, which a GPU cannot: Shape /.*ConstantOfShape /"):
        graph.export_fp32(tower, tmp_path / "model.onnx")


def test_a_graph_without_an_embedding_layer(model: onnx.ModelProto):
    del model.graph.node[:]
    with pytest.raises(ExportError, match="the fused graph lacks EmbedLayerNormalization"):
        segments.subtract(model)
