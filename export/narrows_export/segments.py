"""Segment ids: made of the token ids inside the graph, or not at all, so that nobody has to give them.

They are zero for every token of an encoder. A reader's may tell question and passage apart: the passage begins behind
the first separator. The exporters write zeros as BERT makes them, from the shape of the ids. ONNX Runtime computes with
shapes on the CPU only, and a graph for a GPU is to run there whole.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from narrows.errors import ExportError
from narrows.padding import ATTENTION_MASK, INPUT_IDS
from narrows_export import nodes

IDS, SEGMENTS, WORDS, POSITIONS, TYPES = range(5)  # inputs of EmbedLayerNormalization
ZEROS = "segments/zero"
PAIR = "segments/pair"


def subtract(model: onnx.ModelProto) -> None:
    """Makes the zeros by subtracting the ids from themselves, in place: embeddings keep their bits.

    Raises:
        ExportError: the graph has no embedding layer, or its segment ids are not all zero.
    """
    embedding = _embedding_layer(model)
    _read(model.graph, embedding, [nodes.make("Sub", [embedding.input[IDS]] * 2, ZEROS)])


def pair(model: onnx.ModelProto, separator: int) -> None:
    """Makes them 0 up to and with the first `separator` of a text and 1 behind it, in place.

    They are the number of separators before a token, at most 1. Padding, which nothing reads, gets one of the two.

    Raises:
        ExportError: as `subtract`.
    """
    graph, embedding = model.graph, _embedding_layer(model)
    sought = nodes.constant(graph, "segments/separator", np.array(separator, np.int32))
    tokens = nodes.constant(graph, "segments/tokens", np.array(1, np.int64))
    one = nodes.constant(graph, "segments/one", np.array(1, np.int32))
    made = [
        nodes.make("Equal", [embedding.input[IDS], sought], "segments/is_separator"),
        nodes.make("Cast", ["segments/is_separator"], "segments/separators", to=onnx.TensorProto.INT32),
        nodes.make("CumSum", ["segments/separators", tokens], "segments/before", exclusive=1),
        nodes.make("Min", ["segments/before", one], PAIR),
    ]
    _read(graph, embedding, made)


def _read(graph: onnx.GraphProto, embedding: onnx.NodeProto, made: list[onnx.NodeProto]) -> None:
    """Lets the embedding layer read the segment ids that the last of `made` makes, in place of those that it read."""
    embedding.input[SEGMENTS] = made[-1].output[0]
    nodes.replace(graph, [each for node in graph.node for each in ([*made, node] if node is embedding else [node])])
    nodes.drop_unread(graph)


def fold(model: onnx.ModelProto) -> None:
    """Adds the embedding of segment 0 to every position's, in place, and reads no segment ids: sums in another order.

    Raises:
        ExportError: as `subtract`.
    """
    embedding = _embedding_layer(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    positions, types = (constants[embedding.input[place]] for place in (POSITIONS, TYPES))
    summed = numpy_helper.to_array(positions) + numpy_helper.to_array(types)[0]
    positions.CopyFrom(numpy_helper.from_array(summed, positions.name))
    embedding.input[SEGMENTS] = embedding.input[TYPES] = ""
    nodes.drop_unread(model.graph)


def _embedding_layer(model: onnx.ModelProto) -> onnx.NodeProto:
    """The node that reads segment ids, once they are known to be zero."""
    try:
        embedding = next(node for node in model.graph.node if node.op_type == "EmbedLayerNormalization")
    except StopIteration:
        raise ExportError("the fused graph lacks EmbedLayerNormalization") from None
    ids = np.arange(14).reshape(2, 7)
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    segments = embedding.input[SEGMENTS]
    output = helper.make_tensor_value_info(segments, onnx.TensorProto.INT32, None)
    computed = nodes.needed(model.graph, [segments])
    read = {name for node in computed for name in node.input} | {segments}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    part = helper.make_model(
        helper.make_graph(computed, "segments", list(model.graph.input), [output], constants),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    session = onnxruntime.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {INPUT_IDS: ids, ATTENTION_MASK: mask})[0]
    if not np.array_equal(found, np.zeros_like(ids)):
        raise ExportError("the graph's segment ids are not zero for every token; check the versions installed")
    return embedding
