"""SkipLayerNormalization <-> two Add and a LayerNormalization: the same sums, by quicker kernels on a CPU.

ONNX Runtime's CPU kernel of SkipLayerNormalization takes up to 13 % of a tower's time, that of LayerNormalization much
less (docs/decisions/024). So the fp32 graph is stored split. The recipe for half precision, which is meant for GPUs,
joins them first.
"""

import onnx
from onnx import helper

from narrows_export import nodes

FUSED, SPLIT = "SkipLayerNormalization", "LayerNormalization"


def split(model: onnx.ModelProto) -> None:
    """Replaces every SkipLayerNormalization, in place. The bias comes last: else ONNX Runtime joins them."""
    made: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != FUSED:
            made.append(node)
            continue
        rows, skip, weight, norm_bias, bias = node.input
        output = node.output[0]
        summed, biased = f"{output}/skip", f"{output}/bias"
        norm = helper.make_node(SPLIT, [biased, weight, norm_bias], [output], name=f"{output}/norm")
        norm.attribute.extend(node.attribute)
        made += [
            helper.make_node("Add", [rows, skip], [summed], name=summed),
            helper.make_node("Add", [summed, bias], [biased], name=biased),
            norm,
        ]
    nodes.replace(model.graph, made)


def join(model: onnx.ModelProto) -> None:
    """Undoes `split`, in place."""
    producers = {output: node for node in model.graph.node for output in node.output}
    joined: dict[str, onnx.NodeProto] = {}
    dropped: set[str] = set()
    for node in model.graph.node:
        if node.op_type == SPLIT:
            biased, weight, norm_bias = node.input
            summed, bias = producers[biased].input
            rows, skip = producers[summed].input
            output = node.output[0]
            inputs = [rows, skip, weight, norm_bias, bias]
            joined[output] = helper.make_node(FUSED, inputs, [output], name=f"{output}/norm", domain="com.microsoft")
            joined[output].attribute.extend(node.attribute)
            dropped |= {summed, biased}
    kept = [node for node in model.graph.node if node.output[0] not in dropped]
    nodes.replace(model.graph, [joined.get(node.output[0], node) for node in kept])
