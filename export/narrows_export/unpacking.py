"""A packed graph -> the same with padding, fused as a GPU wants it: what `packing.pack` did, undone.

Packing asks the mask for the rows of real tokens, so that shapes depend on data, and a GPU has to stop and tell them.
It is quickest with batches of a few fixed shapes, and with query, key and value from one product. So rows are (texts,
tokens, hidden) again, which makes every Gather of packed or padded rows the identity, and three Gemm and a
MultiHeadAttention become one Attention.

The last layer of a CLS-pooled tower stays pruned: it keeps its query of one row (twice, docs/decisions/023), and reads
it from the padded rows. Gemm takes no padding, so there it becomes MatMul, and MultiHeadAttention adds the bias.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from narrows.errors import ExportError
from narrows_export import nodes
from narrows_export.packing import PLACES, ROWS
from narrows_export.pruning import CLS_ROWS, FIRST


def unpack(model: onnx.ModelProto) -> None:
    """Puts the padded rows back, in place.

    Raises:
        ExportError: the graph is not packed.
    """
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    if PLACES not in producers:
        raise ExportError("the fp32 graph is not packed: this bundle was made by an earlier version; export it again")
    same: dict[str, str] = {}
    for node in graph.node:
        node.input[:] = [same.get(name, name) for name in node.input]
        if node.op_type != "Gather":
            continue
        rows, places = node.input
        if places == PLACES:
            same[node.output[0]] = rows
        elif places == ROWS:
            same[node.output[0]] = producers[rows].input[0]  # before it was flattened
        elif places == CLS_ROWS:
            node.CopyFrom(nodes.make("Gather", [rows, FIRST], node.output[0], axis=1))
    for node in graph.node:
        if node.op_type == "MultiHeadAttention":
            _attend(graph, node, [_product(producers, name) for name in node.input[:3]])
    nodes.drop_unread(graph)


def _product(producers: dict[str, onnx.NodeProto], name: str) -> onnx.NodeProto:
    """The Gemm that query, key or value comes from: a pruned layer's query is doubled behind it."""
    node = producers[name]
    while node.op_type != "Gemm":
        node = producers[node.input[0]]
    return node


def _attend(graph: onnx.GraphProto, core: onnx.NodeProto, products: list[onnx.NodeProto]) -> None:
    """Makes a MultiHeadAttention an Attention, or lets it add the biases where its query has other rows."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    weights, biases = (
        [numpy_helper.to_array(constants[product.input[place]]) for product in products] for place in (1, 2)
    )
    name, mask = core.output[0], core.input[4]
    bias = nodes.constant(graph, f"{name}.bias", np.concatenate(biases))
    if len({product.input[0] for product in products}) == 1:
        weight = nodes.constant(graph, f"{name}.weight", np.concatenate(weights, axis=1))
        core.op_type = "Attention"
        core.input[:] = [products[0].input[0], weight, bias, mask]
    else:
        core.input[3] = bias
        for product in products:
            product.op_type = "MatMul"
            product.input[:] = product.input[:2]
