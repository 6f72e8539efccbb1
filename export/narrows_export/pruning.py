"""A CLS-pooled tower's graph -> the same without what nothing reads, to the last bit.

Only the first row of the last layer becomes the embedding. So its query, the output projection of its attention, both
of its normalizations and its feed-forward part are computed for that row alone; keys and values are still needed of
every token. com.microsoft.Attention cannot restrict its query, so the last one becomes three Gemm and a
com.microsoft.MultiHeadAttention, which masks as Attention does. Two details keep every bit (docs/decisions/023):

    the biases are added by Gemm, where Attention adds them: before the products are accumulated, not after;
    the query is given twice, because ONNX Runtime multiplies a single row by another kernel, which adds in another
    order - one that even depends on the padding. The second row is dropped again.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from narrows.encoder import Encoder
from narrows.errors import ExportError
from narrows_export import normalization

# Other machines' kernels may round otherwise; a wrong weight or mask shows far above it.
EQUALITY_LIMIT = 1e-5
LENGTHS = (2, 7, 16, 33, 64)


def pruned_counts(whole: dict[str, int]) -> dict[str, int]:
    """The operators of a pruned graph, from those that it had before."""
    counts = whole | {"Attention": whole["Attention"] - 1, "MultiHeadAttention": 1}
    return {name: count for name, count in counts.items() if count}


def prune_to_cls(model: onnx.ModelProto) -> None:
    """Restricts the last layer to the row that the embedding is made of, in place; normalizations are split.

    Raises:
        ExportError: the graph does not end as a fused, CLS-pooled tower does.
    """
    graph = model.graph
    nodes = list(graph.node)
    try:
        start = max(place for place, node in enumerate(nodes) if node.op_type == "Attention")
        last_norm = next(node for node in reversed(nodes) if node.op_type == normalization.SPLIT)
        pooling = next(node for node in nodes if last_norm.output[0] in node.input)
    except (StopIteration, ValueError):
        raise ExportError("the fused graph lacks Attention, LayerNormalization or pooling") from None
    if pooling.op_type != "Gather" or list(last_norm.output[:1]) != list(pooling.input[:1]):
        raise ExportError(f"the last layer is read by {pooling.op_type} where CLS pooling reads it by Gather")
    attention, layer = nodes[start], nodes[start + 1 :]
    layer.remove(pooling)
    cls, context = "cls/hidden", "cls/context"
    renamed = {attention.input[0]: cls, attention.output[0]: context}
    for node in layer:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    last_norm.output[0] = pooling.output[0]
    replacement = _attention_of_cls(graph, attention, cls, context)
    del graph.node[:]
    graph.node.extend([*nodes[:start], *replacement, *layer])
    del graph.value_info[:]  # of shapes that no longer hold


def _attention_of_cls(
    graph: onnx.GraphProto, attention: onnx.NodeProto, cls: str, context: str
) -> list[onnx.NodeProto]:
    """The nodes from the hidden states of all tokens to row 0 and what that row attends to, (texts, hidden) each."""
    hidden, weight, bias, mask = attention.input
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    weights = np.split(numpy_helper.to_array(initializers[weight]), 3, axis=1)
    biases = np.split(numpy_helper.to_array(initializers[bias]), 3)
    width = weights[0].shape[0]
    for name in (weight, bias):
        graph.initializer.remove(initializers[name])

    def constant(name: str, values: npt.NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
        return name

    def node(operator: str, inputs: Sequence[str], output: str, **attributes: int) -> onnx.NodeProto:
        return helper.make_node(operator, list(inputs), [output], name=output, **attributes)  # type: ignore[arg-type]

    def project(part: int, rows: str, output: str) -> onnx.NodeProto:
        name = ("query", "key", "value")[part]
        parameters = [constant(f"cls/{name}.weight", weights[part]), constant(f"cls/{name}.bias", biases[part])]
        return node("Gemm", [rows, *parameters], output)

    first = constant("cls/first", np.array(0, np.int64))
    flat = constant("cls/flat", np.array([-1, width], np.int64))
    pair = constant("cls/pair", np.array([-1, 2, width], np.int64))
    core = node("MultiHeadAttention", ["cls/query", "cls/key", "cls/value", "", mask], "cls/attention")
    core.domain = attention.domain
    core.attribute.extend(
        attribute for attribute in attention.attribute if attribute.name in ("num_heads", "mask_filter_value", "scale")
    )
    return [
        node("Gather", [hidden, first], cls, axis=1),
        project(0, cls, "cls/query_row"),
        node("Concat", ["cls/query_row", "cls/query_row"], "cls/query_twice", axis=1),
        node("Reshape", ["cls/query_twice", pair], "cls/query"),
        node("Shape", [hidden], "cls/shape"),
        node("Reshape", [hidden, flat], "cls/rows"),
        project(1, "cls/rows", "cls/key_rows"),
        node("Reshape", ["cls/key_rows", "cls/shape"], "cls/key"),
        project(2, "cls/rows", "cls/value_rows"),
        node("Reshape", ["cls/value_rows", "cls/shape"], "cls/value"),
        core,
        node("Gather", ["cls/attention", first], context, axis=1),
    ]


def check_equal(whole: Encoder, pruned: Encoder, vocabulary_size: int, max_tokens: int) -> None:
    """Compares a pruned graph with the one that it was made from, on random ids: alone, and padded in a batch.

    Raises:
        ExportError: the embeddings differ, by more than the rounding of an unknown machine.
    """
    random = np.random.default_rng(0)
    texts = [random.integers(0, vocabulary_size, min(length, max_tokens)) for length in (*LENGTHS, max_tokens)]
    batches = [texts, *([text] for text in texts)]
    worst = max(float(np.abs(pruned.encode(batch) - whole.encode(batch)).max()) for batch in batches)
    if not worst <= EQUALITY_LIMIT:
        raise ExportError(
            f"the graph pruned to CLS differs from the whole one by {worst:.2e}; the limit is {EQUALITY_LIMIT:.0e}: "
            "check the versions installed"
        )
