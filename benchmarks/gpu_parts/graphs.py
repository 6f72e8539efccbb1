"""Graphs of one or two operators, run by ONNX Runtime on the device with everything in its memory beforehand."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import onnxruntime

from narrows.device import CudaDevice, Device
from narrows.probe import CPU_PROVIDER, CUDA_PROVIDER

Io = dict[str, onnxruntime.OrtValue]
Node = tuple[str, list[str], list[str], dict[str, Any]]


def half_graph(nodes: Sequence[Node], inputs: Sequence[str], outputs: Sequence[str], integers: str = "") -> bytes:
    """A graph of half-precision values of any shape, from (operator, inputs, outputs, attributes).

    Those named in `integers` are of 64-bit integers instead.
    """
    from onnx import TensorProto, helper

    def described(names: Sequence[str]) -> list[Any]:
        kinds = [TensorProto.INT64 if name in integers.split() else TensorProto.FLOAT16 for name in names]
        return [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]

    made = [helper.make_node(operator, takes, gives, **more) for operator, takes, gives, more in nodes]
    graph = helper.make_graph(made, "g", described(inputs), described(outputs))
    opsets = [helper.make_opsetid("", 17)]
    serialized: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return serialized


def on_device(values: npt.NDArray[Any], device: Device) -> onnxruntime.OrtValue:
    """A copy in the device's memory."""
    if isinstance(device, CudaDevice):
        return onnxruntime.OrtValue.ortvalue_from_numpy(values, "cuda", device.number)
    return onnxruntime.OrtValue.ortvalue_from_numpy(values)


def bound(graph: bytes, device: Device, threads: int, inputs: Io, outputs: Io) -> Callable[[], None]:
    """Loads a graph on the device and binds it; a call runs it to its end.

    Raises:
        RuntimeError: ONNX Runtime took the CPU instead.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    name, settings = CPU_PROVIDER, {}
    if isinstance(device, CudaDevice):
        onnxruntime.preload_dlls()
        name, settings = CUDA_PROVIDER, {"device_id": str(device.number)}
    else:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(graph, options, providers=[(name, settings)], enable_fallback=0)
    if session.get_providers()[0] != name:
        raise RuntimeError(f"ONNX Runtime runs the graph by {session.get_providers()[0]}")
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return lambda: session.run_with_iobinding(binding)
