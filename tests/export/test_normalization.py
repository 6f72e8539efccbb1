"""Normalizations split for speed: what ONNX Runtime really runs, in every batch, and joined again."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import LAYERS, Pair

from narrows.bundle import Bundle
from narrows.encoder import Encoder
from narrows_export import checkpoint, graph, normalization, source


@pytest.fixture(scope="module")
def fused(small_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """A small tower as the optimizer leaves it."""
    tower = checkpoint.load(source.resolve(str(small_pair.question)), "question_encoder", None)
    return graph.fuse(tower, tmp_path_factory.mktemp("fused") / "raw.onnx")


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def operators_that_run(file: Path, scratch: Path) -> list[str]:
    """After ONNX Runtime's own optimizations, which could join what was split."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(scratch / "optimized.onnx").graph.node]


def test_what_runs_is_split(small_bundle: Bundle, minilm_bundle: Bundle, tmp_path: Path):
    for bundle, layers in ((small_bundle, LAYERS), (minilm_bundle, 6)):
        tower = bundle.tower("question_encoder")
        running = operators_that_run(bundle.file(tower, "model.fp32.onnx"), tmp_path)
        assert running.count("LayerNormalization") == 2 * layers
        assert "SkipLayerNormalization" not in running


def test_a_split_graph_gives_the_fused_embeddings_and_the_same_in_every_batch(fused: onnx.ModelProto, tmp_path: Path):
    onnx.save(fused, tmp_path / "fused.onnx")
    split = copied(fused)
    normalization.split(split)
    onnx.save(split, tmp_path / "split.onnx")
    reference = Encoder(tmp_path / "fused.onnx", 0, threads=1)
    random = np.random.default_rng(1)
    texts = [random.integers(0, 2000, length) for length in (2, 200, 3, 17, 64, 7, 16, 33, 9)]
    expected = np.concatenate([reference.encode([text]) for text in texts])
    for threads in (1, 2):
        encoder = Encoder(tmp_path / "split.onnx", 0, threads)
        alone = np.concatenate([encoder.encode([text]) for text in texts])
        assert np.abs(alone - expected).max() < 1e-5
        for size in (2, 4, len(texts)):
            batches = [encoder.encode(texts[start : start + size]) for start in range(0, len(texts), size)]
            assert np.array_equal(np.concatenate(batches), alone)


def test_joined_again_it_is_what_it_was(fused: onnx.ModelProto):
    model = copied(fused)
    normalization.split(model)
    operators = [node.op_type for node in model.graph.node]
    assert (operators.count("LayerNormalization"), operators.count("SkipLayerNormalization")) == (2 * LAYERS, 0)
    assert operators.count("Add") == 4 * LAYERS
    normalization.join(model)

    def described(graph_: onnx.GraphProto) -> list[tuple[object, ...]]:
        return [(n.op_type, n.domain, [*n.input], [*n.output], [str(a) for a in n.attribute]) for n in graph_.node]

    assert described(model.graph) == described(fused.graph)
