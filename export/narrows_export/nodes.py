"""What every change of a graph needs: making a node, replacing nodes, and dropping what nothing reads any more."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from narrows.errors import ExportError

# ONNX Runtime computes shapes and control flow on the CPU even where everything else is on a GPU.
ON_THE_CPU = ("Shape", "Size", "ConstantOfShape", "Expand", "Loop", "If")


def make(operator: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
    """A node that is named as its only output."""
    return helper.make_node(operator, inputs, [output], name=output, **attributes)  # type: ignore[arg-type]


def constant(graph: onnx.GraphProto, name: str, values: npt.NDArray[np.generic]) -> str:
    """Stores an initializer and returns its name."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
    return name


def replace(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Makes `nodes` all that the graph has."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def needed(graph: onnx.GraphProto, values: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that `values` depend on, those that make them included, in the graph's order."""
    wanted = set(values)
    found = []
    for node in reversed(graph.node):  # a reader comes behind what it reads
        if wanted.intersection(node.output):
            wanted.update(node.input)
            found.append(node)
    return found[::-1]


def drop_unread(graph: onnx.GraphProto) -> None:
    """Drops the nodes and initializers that no output depends on."""
    replace(graph, needed(graph, [value.name for value in graph.output]))
    read = {name for node in graph.node for name in node.input}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


def check_no_shapes(graph: onnx.GraphProto) -> None:
    """Raises ExportError if the graph computes with shapes, or has control flow."""
    found = [f"{node.op_type} {node.output[0]}" for node in graph.node if node.op_type in ON_THE_CPU]
    if found:
        raise ExportError(f"the graph computes with shapes, which a GPU cannot: {', '.join(found)}; check the versions")
