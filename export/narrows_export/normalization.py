"""SkipLayerNormalization <-> two Add and a LayerNormalization: the same sums, by quicker kernels on a CPU.

ONNX Runtime's CPU kernel of SkipLayerNormalization takes up to 13 % of a tower's time, that of LayerNormalization much
less (docs/decisions/024). So the fp32 graph is stored split. The recipe for half precision, which is meant for GPUs,
joins them first.
"""

import onnx
from onnx import helper

FUSED, SPLIT = "SkipLayerNormalization", "LayerNormalization"


def split(model: onnx.ModelProto) -> None:
    """Replaces every SkipLayerNormalization, in place. The bias comes last: else ONNX Runtime joins them."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != FUSED:
            nodes.append(node)
            continue
        rows, skip, weight, norm_bias, bias = node.input
        output = node.output[0]
        summed, biased = f"{output}/skip", f"{output}/bias"
        norm = helper.make_node(SPLIT, [biased, weight, norm_bias], [output], name=f"{output}/norm")
        norm.attribute.extend(node.attribute)
        nodes += [
            helper.make_node("Add", [rows, skip], [summed], name=summed),
            helper.make_node("Add", [summed, bias], [biased], name=biased),
            norm,
        ]
    _set_nodes(model, nodes)


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
    _set_nodes(model, [joined.get(node.output[0], node) for node in kept])


def _set_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)
