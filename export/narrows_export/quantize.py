"""A fused fp32 graph -> the same graph with its products in 8-bit integers, node by node.

Every product of an activation with a constant matrix (attention's QKV, the dense layers, a projection) is a *product*.
In integers it is QuantizeLinear with a scale fixed beforehand, then com.microsoft's QAttention or MatMulIntegerToFloat
with a scale for each output channel; everything else stays in single precision, fused as it was. Nothing is left to an
optimizer that might not recognize it, and no scale depends on the batch, so that an embedding does not either.

Without VNNI, U8S8 products are summed in pairs of 16-bit integers, which saturate. Weights are rounded so that no pair
can: the integers are the same on every CPU (docs/decisions/025).

Migration is SmoothQuant's (Xiao et al. 2023, arXiv:2211.10438): an activation's channels are divided, and the weights'
rows multiplied, by max|x|^alpha / max|w|^(1 - alpha). BERT normalizes after adding, so that the residual reads what a
product reads: the division is a Mul of its own, except after attention, where the weights of the values take it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from narrows.bundle import Rounding

Floats = npt.NDArray[np.float32]
Constants = dict[str, npt.NDArray[Any]]

FUSED_DOMAIN = "com.microsoft"
INTEGER_PRODUCTS = ("QAttention", "MatMulIntegerToFloat")
STEPS = 255  # of an activation
PAIR_LIMIT = 128  # of |w0| + |w1|, neighbours in a column of one sign: 255 * 128 < 2^15
WEIGHT_RANGES = (127, 112, 100, 90, 80, 72, 64)  # integers for a column's largest weight; the best is taken
BIAS_ROWS = 512  # of an activation, to find what rounding adds on average
SMALLEST_RANGE = 1e-5  # of a channel, before migration


@dataclass(frozen=True, slots=True)
class Product:
    """A node that multiplies an activation by a constant matrix.

    `source` is the activation's name; `weight` is float32 (inputs, outputs), `bias` float32 (outputs,) where the node
    adds one itself.
    """

    name: str  # layer and part, such as layer.3/intermediate/dense
    kind: str  # the operator: Attention, MatMul or Gemm
    node: int  # its place in the graph
    source: str
    weight: Floats
    bias: Floats | None


def products(model: onnx.ModelProto) -> list[Product]:
    """The products of a fused graph, in its order."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for place, node in enumerate(model.graph.node):
        if node.op_type in ("Attention", "MatMul", "Gemm") and node.input[1] in constants:
            weight = numpy_helper.to_array(constants[node.input[1]])
            if any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
                weight = weight.T
            bias = None if node.op_type == "MatMul" else numpy_helper.to_array(constants[node.input[2]])
            found.append(Product(_short(node.output[0]), node.op_type, place, node.input[0], weight, bias))
    return found


def _short(output: str) -> str:
    name = re.sub(r"^.*?(?=layer\.\d)", "", output)
    return re.sub(r"/(MatMul|Reshape_\d+)_output_0$", "", name)


def quantize(model: onnx.ModelProto, seen: Mapping[str, Floats], rounding: Rounding) -> onnx.ModelProto:
    """Returns a fused graph with its products in integers, but for those that `rounding` leaves in float.

    Args:
        model: the graph; not changed.
        seen: what each product's activation held on calibration texts, by name, float32 (tokens, channels).
        rounding: how.
    """
    graph = model.graph
    kept = {product.node: product for product in products(model)}
    chosen = {place for place, product in kept.items() if product.name not in rounding.in_float}
    divisors = {}
    for source in dict.fromkeys(kept[place].source for place in chosen):
        readers = [kept[place].weight for place in chosen if kept[place].source == source]
        if rounding.alpha:
            divisors[source] = _divisor(seen[source], readers, rounding.alpha)
    for place in chosen:
        product = kept[place]
        if product.source in divisors:
            kept[place] = replace(product, weight=product.weight * divisors[product.source][:, None])
    multiplied = dict(divisors)
    for source, divisor in divisors.items():
        values = _values_before(graph, source)
        if values in kept:
            kept[values] = _divided(kept[values], divisor)
            del multiplied[source]

    nodes: list[onnx.NodeProto] = []
    constants: Constants = {}
    quantized: dict[str, list[str]] = {}
    for place, node in enumerate(graph.node):
        if place not in kept:
            nodes.append(node)
        elif place not in chosen:
            nodes.append(_in_float(node, kept[place], constants))
        else:
            source = kept[place].source
            rows = seen[source] / divisors.get(source, np.float32(1))
            if source not in quantized:
                quantized[source] = _quantized(source, rows, multiplied.get(source), rounding, nodes, constants)
            nodes.append(_in_integers(node, kept[place], rows, quantized[source], constants))
    return _rebuilt(model, nodes, constants)


def round_weights(weight: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """Rounds each column to integers of which no two neighbours (2i, 2i + 1) can saturate a sum of products.

    Args:
        weight: float32 (inputs, outputs).

    Returns:
        int8 (inputs, outputs) and the scale of each column, float32 (outputs,). Of several scales each column has the
        one with the smallest squared error.
    """
    largest = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny)
    best, scales = np.zeros(weight.shape, np.int8), np.ones(weight.shape[1], np.float32)
    least = np.full(weight.shape[1], np.inf, np.float32)
    for limit in WEIGHT_RANGES:
        scale = (largest / limit).astype(np.float32)
        integers = _without_saturation(np.rint(weight / scale))
        error = np.square(integers * scale - weight).sum(axis=0)
        better = error < least
        best[:, better], scales[better], least[better] = integers[:, better], scale[better], error[better]
    return best, scales


def _without_saturation(integers: Floats) -> Floats:
    """Takes from each pair of one sign what is beyond PAIR_LIMIT, half from each; the numbers stay whole."""
    padded = np.pad(integers, ((0, len(integers) % 2), (0, 0)))
    first, second = padded[0::2], padded[1::2]
    beyond = np.where(first * second > 0, np.maximum(np.abs(first) + np.abs(second) - PAIR_LIMIT, 0), 0)
    # The larger one bears the odd half; of a pair beyond the limit neither can be so small as to change sign.
    half = np.floor(beyond / 2)
    from_first = np.where(np.abs(first) >= np.abs(second), beyond - half, half)
    padded[0::2] = first - np.sign(first) * from_first
    padded[1::2] = second - np.sign(second) * (beyond - from_first)
    return padded[: len(integers)]


def _divisor(rows: Floats, weights: Sequence[Floats], alpha: float) -> Floats:
    """What each channel of an activation is divided by, float32 (channels,), about 1 in the geometric mean."""
    ranges = np.maximum(np.abs(rows).max(axis=0), SMALLEST_RANGE)
    reach = np.maximum(np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0), SMALLEST_RANGE)
    divisor = ranges**alpha / reach ** (1 - alpha)
    centred: Floats = (divisor / np.exp(np.log(divisor).mean())).astype(np.float32)
    return centred


def _values_before(graph: onnx.GraphProto, source: str) -> int | None:
    """The place of the node that makes the values whose weighted mean `source` is, if it is that."""
    producers = {name: place for place, node in enumerate(graph.node) for name in node.output}
    attended = False
    while source in producers:
        place = producers[source]
        node = graph.node[place]
        if node.op_type == "Attention":
            return place
        if node.op_type == "MultiHeadAttention":
            source, attended = node.input[2], True
        elif node.op_type in ("Gather", "Reshape"):
            source = node.input[0]
        else:
            return place if attended else None
    return None


def _divided(product: Product, divisor: Floats) -> Product:
    """A product with its last outputs (the values, in attention's) divided."""
    assert product.bias is not None  # attention's always has one
    weight, bias = product.weight.copy(), product.bias.copy()
    weight[:, -len(divisor) :] /= divisor
    bias[-len(divisor) :] /= divisor
    return replace(product, weight=weight, bias=bias)


def _in_float(node: onnx.NodeProto, product: Product, constants: Constants) -> onnx.NodeProto:
    """The node with the product's weights, which a neighbour's migration may have changed."""
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    del changed.attribute[:]
    changed.attribute.extend(attribute for attribute in node.attribute if attribute.name != "transB")
    changed.input[1] = _constant(constants, f"{product.name}.weight", product.weight)
    if product.bias is not None:
        changed.input[2] = _constant(constants, f"{product.name}.bias", product.bias)
    return changed


def _quantized(
    source: str,
    rows: Floats,
    divisor: Floats | None,
    rounding: Rounding,
    nodes: list[onnx.NodeProto],
    constants: Constants,
) -> list[str]:
    """Adds the nodes that round an activation; returns the names of integers, scale and zero point."""
    outside = (100 - rounding.percentile) / 2
    low, high = np.percentile(rows, [outside, 100 - outside])
    scale = np.float32((max(high, 0) - min(low, 0)) / STEPS or 1)
    zero = np.clip(np.rint(-min(low, 0) / scale), 0, STEPS).astype(np.uint8)
    names = [
        _constant(constants, f"{source}.scale", np.asarray(scale)),
        _constant(constants, f"{source}.zero_point", np.asarray(zero)),
    ]
    if divisor is not None:
        factor = _constant(constants, f"{source}.factor", 1 / divisor)
        nodes.append(helper.make_node("Mul", [source, factor], [f"{source}.migrated"], name=f"{source}.migrated"))
        rounded = f"{source}.migrated"
    else:
        rounded = source
    integers = f"{source}.integers"
    nodes.append(helper.make_node("QuantizeLinear", [rounded, *names], [integers], name=integers))
    return [integers, *names]


def _in_integers(
    node: onnx.NodeProto, product: Product, rows: Floats, quantized: Sequence[str], constants: Constants
) -> onnx.NodeProto:
    """The product in integers.

    What rounding adds to its outputs on average is taken from its bias (Nagel et al. 2019, arXiv:1906.04721).
    """
    integers, scale, zero = quantized
    rounded, scales = round_weights(product.weight)
    sample = rows[:: len(rows) // BIAS_ROWS + 1]
    offset = constants[zero].astype(np.float32)
    read = (np.clip(np.rint(sample / constants[scale]) + offset, 0, STEPS) - offset) * constants[scale]
    added = read.mean(axis=0) @ (rounded * scales) - sample.mean(axis=0) @ product.weight
    bias = _constant(constants, f"{product.name}.bias", (0 if product.bias is None else product.bias) - added)
    weight = _constant(constants, f"{product.name}.weight", rounded)
    weight_scale = _constant(constants, f"{product.name}.weight_scale", scales)
    weight_zero = _constant(constants, "weight_zero_point", np.zeros((), np.int8))
    if node.op_type == "Attention":
        operator, inputs = "QAttention", [integers, weight, bias, scale, weight_scale, node.input[3], zero, weight_zero]
        attributes = [attribute for attribute in node.attribute if attribute.name in ("num_heads", "mask_filter_value")]
    else:
        operator, attributes = "MatMulIntegerToFloat", []
        inputs = [integers, weight, scale, weight_scale, zero, weight_zero, bias]
    made = helper.make_node(operator, inputs, node.output, name=product.name, domain=FUSED_DOMAIN)
    made.attribute.extend(attributes)
    return made


def _constant(constants: Constants, name: str, values: npt.NDArray[np.generic] | None) -> str:
    constants[name] = np.asarray(values, order="C")
    return name


def _rebuilt(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], constants: Constants) -> onnx.ModelProto:
    """The model with these nodes, and of its own constants those that they read."""
    used = {name for node in nodes for name in node.input}
    made = onnx.ModelProto()
    made.CopyFrom(model)
    del made.graph.node[:], made.graph.initializer[:], made.graph.value_info[:]
    made.graph.node.extend(nodes)
    made.graph.initializer.extend(t for t in model.graph.initializer if t.name in used and t.name not in constants)
    made.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in constants.items())
    return made
