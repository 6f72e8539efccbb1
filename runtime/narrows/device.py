"""Where towers run: the CPU, or one CUDA GPU. What an index needs of a GPU is in narrows.index.gpu."""

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime

from narrows import probe
from narrows.errors import BundleError, DeviceError
from narrows.padding import Shapes
from narrows.probe import CPU_PROVIDER, CUDA_PROVIDER

log = logging.getLogger(__name__)

ARENA_BYTES = 2 * 2**30  # of one tower, its weights apart; the largest shapes are run at the start, and must fit
# Tensor cores take eights. Finer steps than powers of two cost a run each at the start, and save padding ever after.
GPU_SHAPES = Shapes(
    texts=(1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
    tokens=(16, 24, 32, 48, 64, 96, 128, 192, 256, 384),
    max_cells=16_384,
)
NAMED_NODES = 3
_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")


@dataclass(frozen=True, slots=True)
class Device(ABC):
    """What an encoder asks of the device that it runs on.

    `name` is as in GetServerInfo. `variants` run on it, the fastest first; none: all do, and are timed. `grid` are the
    shapes that batches are padded to; None: they are run as they come. `max_batch` texts are worth trying in one batch.
    """

    name: str
    is_gpu: bool
    variants: tuple[str, ...]
    grid: Shapes | None
    max_batch: int

    @abstractmethod
    def session(self, model_file: Path, threads: int) -> onnxruntime.InferenceSession:
        """Loads a graph, the whole of it on this device.

        Raises:
            BundleError: ONNX Runtime cannot load it.
            DeviceError: the device cannot, or not all of it.
        """

    @abstractmethod
    def buffer(self, shape: Sequence[int], dtype: Any) -> onnxruntime.OrtValue:  # noqa: ANN401  (a NumPy type)
        """Memory on the device for values of fixed shape."""


@dataclass(frozen=True, slots=True)
class CpuDevice(Device):
    """The cores that this process may use. A grid does not pay there; with one it does what a GPU does."""

    name: str = "cpu"
    is_gpu: bool = False
    variants: tuple[str, ...] = ()
    grid: Shapes | None = None
    max_batch: int = 64

    def session(self, model_file: Path, threads: int) -> onnxruntime.InferenceSession:
        """See Device."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores from the event loop and from FAISS.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return _load(model_file, options, [CPU_PROVIDER])
        except Exception as error:  # onnxruntime raises its own types, none of them public
            raise BundleError(f"{model_file} cannot be loaded by ONNX Runtime: {error}; export again") from None

    def buffer(self, shape: Sequence[int], dtype: Any) -> onnxruntime.OrtValue:  # noqa: ANN401
        """See Device."""
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype)


@dataclass(frozen=True, slots=True)
class CudaDevice(Device):
    """GPU `number`, as CUDA counts those that it shows this process.

    ONNX Runtime has no kernels for int8 there: it would send activations to the CPU and back at every product.
    """

    name: str = "cuda:0"
    is_gpu: bool = True
    variants: tuple[str, ...] = ("fp16", "fp32")
    grid: Shapes | None = GPU_SHAPES
    max_batch: int = GPU_SHAPES.texts[-1]
    number: int = 0

    def session(self, model_file: Path, threads: int) -> onnxruntime.InferenceSession:
        """See Device."""
        onnxruntime.preload_dlls()  # those of pip packages
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        # Weights beside the arena, which so holds activations alone.
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        settings = {
            "device_id": str(self.number),
            "arena_extend_strategy": "kSameAsRequested",
            "gpu_mem_limit": str(ARENA_BYTES + model_file.stat().st_size),
            "use_tf32": "0",  # fp32 means fp32
        }
        try:
            session = _load(model_file, options, [(CUDA_PROVIDER, settings)])
        except Exception as error:  # no memory is left, most likely
            raise DeviceError(f"{model_file} cannot be loaded on {self.name}: {error}") from None
        if CUDA_PROVIDER not in session.get_providers():
            why = why_not_cuda(self.number) or "ONNX Runtime's log says why"
            raise DeviceError(f"{self.name} cannot be used: {why}; or use --device cpu")
        check_placement(session, CUDA_PROVIDER, model_file)
        return session

    def buffer(self, shape: Sequence[int], dtype: Any) -> onnxruntime.OrtValue:  # noqa: ANN401
        """See Device."""
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype, "cuda", self.number)


def cuda(number: int) -> CudaDevice:
    """GPU `number`."""
    return CudaDevice(name=f"cuda:{number}", number=number)


CPU = CpuDevice()


def check_placement(session: onnxruntime.InferenceSession, provider: str, model_file: Path) -> None:
    """Every node must run on `provider`: one elsewhere costs two copies and a stop of the whole device.

    The session's options must have `session.record_ep_graph_assignment_info` set.

    Raises:
        DeviceError: some do not; names them.
    """
    elsewhere: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        for node in part.get_nodes() if part.ep_name != provider else ():
            elsewhere.setdefault(node.op_type, []).append(node.name)
    if elsewhere:
        listed = ", ".join(
            f"{len(names)} {operator} ({', '.join(names[:NAMED_NODES])}{', ...' * (len(names) > NAMED_NODES)})"
            for operator, names in elsewhere.items()
        )
        raise DeviceError(
            f"operators of {model_file} do not run on {provider}: {listed}; export the bundle again, or use --device "
            "cpu"
        )


def choose(wanted: str, variant: str = "") -> Device:
    """The device that a setting names: cpu, cuda, cuda:N; or auto: GPU 0 if CUDA loads, else the CPU, and says why.

    Args:
        wanted: the setting.
        variant: that it is to run; for one that a GPU does not, auto means the CPU.

    Raises:
        DeviceError: a GPU was named, and cannot be used.
    """
    if wanted == "cpu":
        return CPU
    named = _CUDA.fullmatch(wanted)
    number = int(named[1] or 0) if named else 0
    why = why_not_cuda(number)
    device = cuda(number)
    if not why and not named and variant not in ("", *device.variants):
        why = f"a GPU does not run {variant}"
    if not why:
        return device
    if named:
        raise DeviceError(f"--device {wanted} cannot be used: {why}; or use --device cpu")
    # Who installed a build for GPUs wants to know; others knew.
    log.log(logging.WARNING if has_cuda() else logging.INFO, "device: the CPU, because %s", why)
    return CPU


def has_cuda() -> bool:
    """Whether ONNX Runtime was built for GPUs."""
    return CUDA_PROVIDER in onnxruntime.get_available_providers()


def why_not_cuda(number: int) -> str:
    """What keeps ONNX Runtime from a GPU; empty if nothing does. CUDA is really loaded, in a process of its own."""
    if not has_cuda():
        return "the ONNX Runtime that is installed has no CUDA; narrows[gpu], in an environment of its own, brings one"
    found, messages = probe.run_probe("provider", CUDA_PROVIDER, str(number))
    return "" if found and found["loads"] else f"CUDA does not load: {probe.why_not(messages)}"


def _load(model_file: Path, options: onnxruntime.SessionOptions, providers: list[Any]) -> onnxruntime.InferenceSession:
    options.log_severity_level = 3
    # Its own fallback hides why a GPU failed, and writes to stdout.
    return onnxruntime.InferenceSession(str(model_file), options, providers=providers, enable_fallback=0)
