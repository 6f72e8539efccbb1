"""Whether a library loads, found out in a process of its own.

A library that crashes, hangs or writes where it likes harms only that process; what it says is kept. ONNX Runtime says
nowhere else why a provider does not load.
"""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

# Here, and not beside the devices, since the doctor names them where ONNX Runtime may not load.
CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"
PROBE_TIMEOUT_S = 60.0
# One Identity node over one float: 65 bytes that any ONNX Runtime loads.
MODEL = base64.b64decode("CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0=")
_MISSING_LIBRARY = re.compile(r"([\w.+-]+\.so[\w.]*): cannot open shared object file")
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;]*m")
_ERROR_WORDS = re.compile(r"error|fail|not found|cannot|please install", re.IGNORECASE)


def run_probe(*arguments: str) -> tuple[dict[str, Any] | None, str]:
    """Runs one of PROBES in a process; returns what it found, or None, and everything else that was said."""
    # -P: nothing in the working directory stands in for a module.
    command = [sys.executable, "-P", "-m", "narrows.probe", *arguments]
    try:
        done = subprocess.run(  # noqa: S603  (our own module)
            command, capture_output=True, text=True, errors="replace", timeout=PROBE_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return None, f"error: no answer within {PROBE_TIMEOUT_S:.0f} s"
    said, _, last = done.stdout.rstrip("\n").rpartition("\n")
    if done.returncode == 0:
        result: dict[str, Any] = json.loads(last)
        return result, said + done.stderr
    ended = f"error: ended by signal {-done.returncode}" if done.returncode < 0 else ""
    return None, "\n".join([done.stdout, done.stderr, ended])


def why_not(messages: str) -> str:
    """What stopped a library, of all that its loading said: the shared library that is missing, or the first error."""
    text = _TERMINAL_CODES.sub("", messages)
    if missing := _MISSING_LIBRARY.search(text):
        return f"the shared library {missing[1]} is missing"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return lines[-1][:300]
    errors = [line for line in lines if _ERROR_WORDS.search(line) and "***" not in line]
    return errors[0][:300] if errors else "it does not say why"  # those after the first are consequences


def onnxruntime() -> dict[str, Any]:
    """Version, the providers compiled in, and the CUDA version it was built for (empty: none)."""
    import onnxruntime as ort
    from onnxruntime.capi import build_and_package_info as build

    providers = ort.get_available_providers()
    return {"version": ort.__version__, "providers": providers, "cuda": getattr(build, "cuda_version", "")}


def provider(name: str, number: str = "0") -> dict[str, Any]:
    """Whether a session with this provider really has it: ONNX Runtime falls back to the CPU and only logs why.

    `number` is the GPU's.
    """
    import onnxruntime as ort

    options = {}
    if name.startswith(("CUDA", "Tensorrt")):
        ort.preload_dlls()  # finds the CUDA libraries of pip packages
        options["device_id"] = number
    session = ort.InferenceSession(MODEL, providers=[(name, options)])
    return {"loads": name in session.get_providers()}


def faiss() -> dict[str, Any]:
    """Version, compile options, and how many GPUs it sees; 0 for a build without GPUs."""
    import faiss

    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    return {"version": faiss.__version__, "compile_options": faiss.get_compile_options().split(), "gpus": gpus}


PROBES: dict[str, Callable[..., dict[str, Any]]] = {"onnxruntime": onnxruntime, "provider": provider, "faiss": faiss}

if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(PROBES[sys.argv[1]](*sys.argv[2:])) + "\n")
