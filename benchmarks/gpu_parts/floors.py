"""Section 2: the most that the card does, in half-precision products and in bytes copied: later figures' floors."""

import importlib
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks.gpu_parts import graphs
from benchmarks.gpu_parts.rows import Bench
from narrows.device import CudaDevice, Device, choose
from narrows.process import available_cores


def run(bench: Bench) -> None:
    """By PyTorch and by ONNX Runtime, whichever are there; the better one is the floor."""
    device = choose(bench.order.device)
    for name, module, measure in (("PyTorch", "torch", by_torch), ("ONNX Runtime", "onnx", by_onnxruntime)):
        try:
            importlib.import_module(module)
        except ImportError:
            bench.skip(f"by {name}", f"{module} is not installed")
            continue
        bench.attempt(f"by {name}", partial(measure, bench, name, device))


def by_torch(bench: Bench, name: str, device: Device) -> None:
    """A product of two squares; a copy from one place in the card's memory to another, bytes read and written."""
    import torch

    place = f"cuda:{device.number}" if isinstance(device, CudaDevice) else "cpu"
    wait: Callable[[], object] = torch.cuda.synchronize if place != "cpu" else lambda: None
    side, size_bytes = bench.order.sizes.matmul, bench.order.sizes.copy_bytes
    left, right = (torch.randn(side, side, device=place).half() for _ in range(2))
    out = torch.empty_like(left)
    source = torch.zeros(size_bytes, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)

    def multiply() -> None:
        torch.mm(left, right, out=out)
        wait()

    def copy() -> None:
        target.copy_(source)
        wait()

    _rows(bench, name, multiply, copy)


def by_onnxruntime(bench: Bench, name: str, device: Device) -> None:
    """The same product; instead of a copy, a sign changed."""
    side, threads = bench.order.sizes.matmul, available_cores()
    copied = (bench.order.sizes.copy_bytes // 2 // side, side)

    random = np.random.default_rng(0)
    left, right = (random.standard_normal((side, side), dtype=np.float32).astype(np.float16) for _ in range(2))
    product = graphs.half_graph([("MatMul", ["a", "b"], ["y"], {})], ["a", "b"], ["y"])
    negated = graphs.half_graph([("Neg", ["a"], ["y"], {})], ["a"], ["y"])
    factors = {"a": graphs.on_device(left, device), "b": graphs.on_device(right, device)}
    source, target = (device.buffer(copied, np.float16) for _ in range(2))
    multiply = graphs.bound(product, device, threads, factors, {"y": device.buffer((side, side), np.float16)})
    copy = graphs.bound(negated, device, threads, {"a": source}, {"y": target})
    _rows(bench, name, multiply, copy)


def _rows(bench: Bench, name: str, multiply: Callable[[], None], copy: Callable[[], None]) -> None:
    sizes = bench.order.sizes
    product, copied = bench.timed(multiply), bench.timed(copy)
    rate = 2 * sizes.matmul**3 / product.p50_ms / 1e9
    bench.row(f"fp16 product of {sizes.matmul} squared, {name}", rate, "TFLOP/s")
    bench.row(
        f"copy of {sizes.copy_bytes >> 20} MiB, read and written, {name}",
        2 * sizes.copy_bytes / copied.p50_ms / 1e6,
        "GB/s",
    )
