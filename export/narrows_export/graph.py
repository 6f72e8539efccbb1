"""PyTorch tower -> optimized ONNX graph, with the fusions of its recipe asserted.

optimum's TorchScript exporter with eager attention, then ONNX Runtime's transformer optimizer. What the optimizer does
not recognize it leaves unfused without a word, so the counts are checked. Segment ids are no input: the graph makes
them of the token ids, where BERT fills in zeros by their shape (narrows_export.segments). Three changes follow for
speed: normalizations are split into operators with quicker kernels (narrows_export.normalization), padding is dropped
outside of attention (narrows_export.packing), and a CLS-pooled tower is pruned (narrows_export.pruning); of a
mean-pooled one every row is read, so there is nothing to prune. The last two are held to the bits that the graph had.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.transformers import optimizer
from onnxruntime.transformers.fusion_options import FusionOptions
from optimum.exporters.onnx import export as optimum_export
from optimum.exporters.onnx.model_configs import BertOnnxConfig

from narrows.encoder import Encoder
from narrows.errors import CheckpointError, ExportError
from narrows.padding import ATTENTION_MASK, EMBEDDING, INPUT_IDS
from narrows_export import checks, nodes, normalization, packing, pruning, segments
from narrows_export.checkpoint import TorchTower

OPSET = 17
FUSED_DOMAIN = "com.microsoft"
# Other machines' kernels may round otherwise; a wrong weight, row or mask shows far above it.
EQUALITY_LIMIT = 1e-5
LENGTHS = (2, 7, 16, 33, 64)


class TowerOnnxConfig(BertOnnxConfig):  # type: ignore[misc]
    """optimum's description of a tower: two inputs, one output, batch and length free."""

    def __init__(self, tower: TorchTower) -> None:
        super().__init__(tower.model.config, task="feature-extraction")
        self._output = tower.output
        self._of_tokens = tower.pooling == "none"

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        """Right-padded ids and their mask."""
        axes = {0: "texts", 1: "tokens"}
        return {INPUT_IDS: axes, ATTENTION_MASK: axes}

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        """The pooled embedding, or a reader's logits."""
        return {self._output: {0: "texts", 1: "tokens"} if self._of_tokens else {0: "texts"}}


def recipe(tower: TorchTower) -> dict[str, int]:
    """The fused operators that the optimizer's fp32 graph must hold."""
    layers: int = tower.model.config.num_hidden_layers
    return {
        "EmbedLayerNormalization": 1,
        "Attention": layers,
        "SkipLayerNormalization": 2 * layers,
        "BiasGelu": layers,
    }


def split_recipe(tower: TorchTower) -> dict[str, int]:
    """The same once the normalizations are split."""
    counts = recipe(tower)
    return counts | {normalization.SPLIT: counts.pop(normalization.FUSED)}


def export_fp32(tower: TorchTower, file: Path) -> dict[str, int]:
    """Writes the optimized fp32 graph to `file` and returns its fused-op counts.

    Raises:
        CheckpointError: an activation or position embedding that the recipe does not cover.
        ExportError: the optimizer did not fuse what the recipe demands, the exporter's segment ids are not zero, the
            graph computes with shapes, or packing or pruning changed the embeddings.
    """
    config = tower.model.config
    if config.hidden_act != "gelu" or getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise CheckpointError(
            f"only BERT with gelu and absolute positions can be exported; this tower has {config.hidden_act} and "
            f"{config.position_embedding_type}"
        )
    model = fuse(tower, file.with_suffix(".raw.onnx"))
    if tower.separator is None:
        segments.subtract(model)
    else:
        segments.pair(model, tower.separator)
    normalization.split(model)
    padded = file.with_suffix(".padded.onnx")
    try:
        onnx.save(model, padded)
        packing.pack(model)
        if tower.pooling == "cls":
            pruning.prune_to_cls(model)
        counts = packing.packed_counts(split_recipe(tower))
        _check_counts("packing left", model, counts)
        nodes.check_no_shapes(model.graph)
        onnx.save(model, file)
        reference, encoder = (Encoder(graph, pad_id=0, threads=1) for graph in (padded, file))
        check_equal(reference, encoder, config.vocab_size, tower.max_tokens)
    finally:
        padded.unlink(missing_ok=True)
    return counts


def check_equal(padded: Encoder, packed: Encoder, vocabulary_size: int, max_tokens: int) -> None:
    """Compares a packed graph with the one that it was made from, on random ids: alone, and padded in a batch.

    Raises:
        ExportError: the embeddings differ, by more than the rounding of an unknown machine.
    """
    random = np.random.default_rng(0)
    texts = [random.integers(0, vocabulary_size, min(length, max_tokens)) for length in (*LENGTHS, max_tokens)]
    batches = [texts, *([text] for text in texts)]
    pairs = ((packed.encode(batch), padded.encode(batch), batch) for batch in batches)
    worst = max(float(np.abs(checks.real(one, batch) - checks.real(other, batch)).max()) for one, other, batch in pairs)
    if not worst <= EQUALITY_LIMIT:
        raise ExportError(
            f"the packed graph differs from the padded one by {worst:.2e}; the limit is {EQUALITY_LIMIT:.0e}: "
            "check the versions installed"
        )


def fuse(tower: TorchTower, raw: Path) -> onnx.ModelProto:
    """Returns the optimizer's graph of a tower, otherwise unchanged; `raw` is a file for optimum, deleted again.

    Raises:
        ExportError: the optimizer did not fuse what the recipe demands.
    """
    config = tower.model.config
    try:
        with quiet():
            optimum_export(model=tower.model, config=TowerOnnxConfig(tower), output=raw, opset=OPSET)
            tower.model.eval()  # the exporter may leave it in train mode
            optimized = optimizer.optimize_model(
                str(raw),
                model_type="bert",
                num_heads=config.num_attention_heads,
                hidden_size=config.hidden_size,
                opt_level=0,
                optimization_options=FusionOptions("bert"),
            )
    finally:
        raw.unlink(missing_ok=True)
    model: onnx.ModelProto = optimized.model
    _check_counts("the optimizer fused", model, recipe(tower))
    _name_output(model, tower)
    model.opset_import.append(onnx.helper.make_opsetid(FUSED_DOMAIN, 1))
    return model


def _check_counts(what: str, model: onnx.ModelProto, expected: dict[str, int]) -> None:
    operators = [node for node in model.graph.node if node.domain == FUSED_DOMAIN or node.op_type in expected]
    counts = dict(Counter(node.op_type for node in operators))
    if counts != expected:
        raise ExportError(f"{what} {counts} where the recipe demands {expected}; check the versions installed")


def _name_output(model: onnx.ModelProto, tower: TorchTower) -> None:
    for node in model.graph.node:
        node.output[:] = [EMBEDDING if name == tower.output else name for name in node.output]
    del model.graph.output[:]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(
            EMBEDDING, onnx.TensorProto.FLOAT, ["texts", *(["tokens"] if tower.pooling == "none" else []), tower.dim]
        )
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporters' notes on their own internals from the user; what matters is asserted."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
