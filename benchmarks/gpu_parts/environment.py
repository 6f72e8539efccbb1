"""Section 1: which card, driver and libraries; and what keeps them from working together."""

import importlib
import os
import platform
import shutil
import subprocess
from importlib import metadata

from benchmarks.gpu_parts.rows import Bench
from narrows import cuda, device, probe

PACKAGES = (
    "narrows", "numpy", "onnxruntime", "onnxruntime-gpu", "faiss-cpu", "faiss-gpu-cuvs", "libcuvs-cu13", "torch",
    "transformers", "onnx", "tokenizers", "grpcio", "msgspec", "psutil",
)  # fmt: skip
SMI = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm", "--format=csv,noheader")


def run(bench: Bench) -> None:
    """Looks around."""
    wanted = bench.order.device
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free_bytes = shutil.disk_usage(bench.order.scratch).free
    bench.text("python", f"{platform.python_version()} on {platform.platform()}")
    bench.row("cores", len(os.sched_getaffinity(0)), "")
    bench.row("host memory", memory_bytes / 2**30, "GiB")
    bench.row(f"free in {bench.order.scratch}", free_bytes / 2**30, "GiB")
    bench.text("packages", ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name))))
    if wanted == "cpu":
        bench.skip("card", "the CPU is measured")
        return
    bench.attempt("driver", lambda: bench.text("driver", f"runs CUDA up to {cuda.newest_cuda()}"))
    bench.attempt(
        "cards", lambda: bench.text("cards", "; ".join(f"{each.number}: {each.name}" for each in cuda.gpus()))
    )
    bench.attempt("nvidia-smi", lambda: bench.text("nvidia-smi", _nvidia_smi()))
    bench.attempt("ONNX Runtime on it", lambda: bench.text("ONNX Runtime on it", f"{device.choose(wanted).name} works"))
    bench.attempt("FAISS on it", lambda: bench.text("FAISS on it", _faiss()))
    bench.attempt("PyTorch on it", lambda: bench.text("PyTorch on it", _torch()))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _nvidia_smi() -> str:
    done = subprocess.run(SMI, capture_output=True, text=True, check=True, timeout=30)  # noqa: S603  (a constant)
    return done.stdout.strip().replace("\n", "; ")


def _faiss() -> str:
    found, messages = probe.run_probe("faiss")
    if found is None:
        raise RuntimeError(f"it does not load: {probe.why_not(messages)}")
    if not found["gpus"]:
        raise RuntimeError(f"FAISS {found['version']} sees no GPU; compiled with {' '.join(found['compile_options'])}")
    return f"FAISS {found['version']} sees {found['gpus']}; compiled with {' '.join(found['compile_options'])}"


def _torch() -> str:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return "it is not installed"
    return f"CUDA {torch.version.cuda}, available: {torch.cuda.is_available()}"
