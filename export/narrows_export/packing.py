"""A fused graph -> the same without padding: rows of real tokens only, to the last bit.

Texts of a batch are padded to the longest. Everything but attention and pooling treats each token by itself, so behind
the embedding layer the padded rows are dropped, (texts, tokens, hidden) -> (rows, hidden), and put back only for
attention and for pooling. A padded position gets a copy of the last real row before it, which the mask keeps from being
read. com.microsoft.Attention multiplies by its weights itself; it becomes three Gemm on the packed rows and a
com.microsoft.MultiHeadAttention, which masks as Attention does. The biases are added by Gemm, as Attention adds them:
before the products are accumulated (docs/decisions/023, 039).
"""

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from narrows.errors import ExportError
from narrows_export import nodes, normalization
from narrows_export.nodes import make

PLACES = "packed/places"  # int32 (texts, tokens): the row of each token; of a padded one, the row before it
ROWS = "packed/rows"  # int64 (rows,): where in the padded rows each real token is


def packed_counts(whole: dict[str, int]) -> dict[str, int]:
    """The operators of a packed graph, from those that it had before."""
    counts = whole | {"MultiHeadAttention": whole["Attention"], "NonZero": 1}
    del counts["Attention"]
    return counts


def pack(model: onnx.ModelProto) -> None:
    """Drops the padded rows, in place; normalizations are split.

    Raises:
        ExportError: the graph is not a fused tower's.
    """
    graph = model.graph
    try:
        embedding = next(node for node in graph.node if node.op_type == "EmbedLayerNormalization")
        last = next(node for node in reversed(graph.node) if node.op_type == normalization.SPLIT).output[0]
    except StopIteration:
        raise ExportError("the fused graph lacks EmbedLayerNormalization or LayerNormalization") from None
    _Packing(graph, embedding, last).run()
    del graph.value_info[:]  # of shapes that no longer hold


class _Packing:
    def __init__(self, graph: onnx.GraphProto, embedding: onnx.NodeProto, last: str) -> None:
        self._graph, self._embedding, self._last = graph, embedding, last
        self._constants = {tensor.name: tensor for tensor in graph.initializer}

    def run(self) -> None:
        embedded = self._embedding.output[0]
        renamed = {embedded: "packed/embedded"}
        packed: list[onnx.NodeProto] = []
        for node in self._graph.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
            packed += self._attention(node) if node.op_type == "Attention" else [node]
            if embedded in node.output:
                packed += self._rows_of(embedded)
            if self._last in node.output:
                renamed[self._last] = "packed/last"
                packed.append(make("Gather", [self._last, PLACES], "packed/last", axis=0))
        nodes.replace(self._graph, packed)

    def _rows_of(self, embedded: str) -> list[onnx.NodeProto]:
        """From the mask, which rows are real and where each token's is; from the embedding layer, the real rows."""
        mask = self._embedding.input[7]
        width = self._constants[self._embedding.input[2]].dims[1]
        flat = self._constant("packed/flat", np.array([-1], np.int64))
        hidden = self._constant("packed/hidden", np.array([-1, width], np.int64))
        texts = self._constant("packed/texts", np.array(0, np.int64))
        tokens = self._constant("packed/tokens", np.array([1], np.int64))
        one = self._constant("packed/one", np.array(1, np.int32))
        return [
            make("Reshape", [mask, flat], "packed/mask"),
            make("NonZero", ["packed/mask"], "packed/real"),
            make("Reshape", ["packed/real", flat], ROWS),
            make("CumSum", [mask, tokens], "packed/count"),  # real tokens of this text so far
            make("ReduceSum", [mask, tokens], "packed/lengths", keepdims=1),
            make("CumSum", ["packed/lengths", texts], "packed/earlier", exclusive=1),  # of the texts before it
            make("Add", ["packed/count", "packed/earlier"], "packed/so_far"),
            make("Sub", ["packed/so_far", one], PLACES),
            make("Reshape", [embedded, hidden], "packed/all"),
            make("Gather", ["packed/all", ROWS], "packed/embedded", axis=0),
        ]

    def _attention(self, attention: onnx.NodeProto) -> list[onnx.NodeProto]:
        rows, weight, bias, mask = attention.input
        context = attention.output[0]
        layer = context.rpartition("/")[0]
        weights = np.split(numpy_helper.to_array(self._constants[weight]), 3, axis=1)
        biases = np.split(numpy_helper.to_array(self._constants[bias]), 3)
        for name in (weight, bias):
            self._graph.initializer.remove(self._constants[name])
        products = []
        for part, part_weight, part_bias in zip(("query", "key", "value"), weights, biases, strict=True):
            name = f"{layer}/{part}"
            parameters = [self._constant(f"{name}.weight", part_weight), self._constant(f"{name}.bias", part_bias)]
            products.append(make("Gemm", [rows, *parameters], name))
            products.append(make("Gather", [name, PLACES], f"{name}.padded", axis=0))
        padded = [f"{layer}/{part}.padded" for part in ("query", "key", "value")]
        core = make("MultiHeadAttention", [*padded, "", mask], f"{layer}/attended")
        core.domain = attention.domain
        kept = ("num_heads", "mask_filter_value", "scale")
        core.attribute.extend(attribute for attribute in attention.attribute if attribute.name in kept)
        return [
            *products,
            core,
            make("Reshape", [core.output[0], "packed/hidden"], f"{layer}/attended.flat"),
            make("Gather", [f"{layer}/attended.flat", ROWS], context, axis=0),
        ]

    def _constant(self, name: str, values: npt.NDArray[np.generic]) -> str:
        return nodes.constant(self._graph, name, values)
