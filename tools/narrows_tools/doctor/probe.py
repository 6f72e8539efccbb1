"""Run as a process of its own: loads a library and prints, on its last line, what it found, as JSON.

A library that crashes, hangs or writes where it likes harms only this process; what it says is kept by the parent.
"""

import base64
import json
import sys
from collections.abc import Callable
from typing import Any

# One Identity node over one float: 65 bytes that any ONNX Runtime loads.
MODEL = base64.b64decode("CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0=")


def onnxruntime() -> dict[str, Any]:
    """Version, the providers compiled in, and the CUDA version it was built for (empty: none)."""
    import onnxruntime as ort
    from onnxruntime.capi import build_and_package_info as build

    providers = ort.get_available_providers()
    return {"version": ort.__version__, "providers": providers, "cuda": getattr(build, "cuda_version", "")}


def provider(name: str) -> dict[str, Any]:
    """Whether a session with this provider really has it: ONNX Runtime falls back to the CPU and only logs why."""
    import onnxruntime as ort

    if name.startswith(("CUDA", "Tensorrt")):
        ort.preload_dlls()  # finds the CUDA libraries of pip packages
    session = ort.InferenceSession(MODEL, providers=[name])
    return {"loads": name in session.get_providers()}


def faiss() -> dict[str, Any]:
    """Version, compile options, and how many GPUs it sees; 0 for a build without GPUs."""
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return {"version": faiss.__version__, "compile_options": faiss.get_compile_options().split(), "gpus": gpus}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {"onnxruntime": onnxruntime, "provider": provider, "faiss": faiss}

if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])) + "\n")
