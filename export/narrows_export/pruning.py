"""A CLS-pooled tower's packed graph -> the same without what nothing reads, to the last bit.

Only the first row of the last layer becomes the embedding. So its query, the output projection of its attention, both
of its normalizations and its feed-forward part are computed for that row alone; keys and values are still needed of
every token. The query is given twice, because ONNX Runtime multiplies a single row by another kernel, which adds in
another order - one that even depends on the padding. The second row is dropped again (docs/decisions/023).
"""

import numpy as np
import onnx

from narrows.errors import ExportError
from narrows_export import nodes, normalization
from narrows_export.nodes import make
from narrows_export.packing import PLACES

FIRST = "cls/first"  # the place of a text's first token
CLS_ROWS = "cls/rows"  # int32 (texts,): the packed row of each text's first token


def prune_to_cls(model: onnx.ModelProto) -> None:
    """Restricts the last layer to the row that the embedding is made of, in place.

    Raises:
        ExportError: the graph does not end as a packed, CLS-pooled tower does.
    """
    graph = model.graph
    before = list(graph.node)
    producers = {name: node for node in before for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in before:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    try:
        core = next(node for node in reversed(before) if node.op_type == "MultiHeadAttention")
        last_norm = next(node for node in reversed(before) if node.op_type == normalization.SPLIT)
        padded = readers[last_norm.output[0]][0]
        pooling = readers[padded.output[0]][0]
    except (StopIteration, KeyError):
        raise ExportError("the packed graph lacks MultiHeadAttention, LayerNormalization or pooling") from None
    if pooling.op_type != "Gather" or pooling.input[0] != padded.output[0]:
        raise ExportError(f"the last layer is read by {pooling.op_type} where CLS pooling reads it by Gather")
    spread = producers[core.input[0]]
    query = producers[spread.input[0]]
    flat = readers[core.output[0]][0]
    context = readers[flat.output[0]][0]
    hidden, bias = query.input[0], query.input[2]
    width = next(tensor.dims[0] for tensor in graph.initializer if tensor.name == bias)

    nodes.constant(graph, FIRST, np.array(0, np.int64))
    nodes.constant(graph, "cls/pair", np.array([-1, 2, width], np.int64))
    replaced = {
        query.output[0]: [
            make("Gather", [PLACES, FIRST], CLS_ROWS, axis=1),
            make("Gather", [hidden, CLS_ROWS], "cls/hidden", axis=0),
            make("Gemm", ["cls/hidden", *query.input[1:]], query.output[0]),
        ],
        spread.output[0]: [
            make("Concat", [query.output[0], query.output[0]], "cls/query_twice", axis=1),
            make("Reshape", ["cls/query_twice", "cls/pair"], spread.output[0]),
        ],
        flat.output[0]: [],
        context.output[0]: [make("Gather", [core.output[0], FIRST], context.output[0], axis=1)],
        padded.output[0]: [],
        pooling.output[0]: [],
    }
    for node in before[before.index(context) + 1 :]:
        node.input[:] = ["cls/hidden" if name == hidden else name for name in node.input]
    kept = [made for node in before for made in replaced.get(node.output[0], [node])]
    last_norm.output[0] = pooling.output[0]
    nodes.replace(graph, kept)
