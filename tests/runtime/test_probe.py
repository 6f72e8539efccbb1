"""What stops a library, found out in a process of its own.

CUDA_13 is what onnxruntime-gpu 1.31.1 said on a machine without CUDA; the other messages have the form of such.
"""

import onnx
import pytest

from narrows import probe
from narrows.probe import run_probe, why_not

CUDA_13 = """\x1b[1;31m2026-11-24 15:44:31.256124677 [E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] \
onnxruntime::Provider& onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library \
/site-packages/onnxruntime/capi/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared \
object file: No such file or directory
\x1b[m
\x1b[0;93m2026-11-24 15:44:31.256169224 [W:onnxruntime:Default, onnxruntime_pybind_state.cc:1295] Failed to create \
CUDAExecutionProvider. Require cuDNN 9.* and CUDA 13.*. Please install all dependencies\x1b[m
"""
DRIVER = """2026-11-24 [E:onnxruntime:Default] CUDA failure 35: CUDA driver version is insufficient
2026-11-24 [W:onnxruntime:Default] Failed to create CUDAExecutionProvider.
"""
FAISS_GPU = """Traceback (most recent call last):
  File "probe.py", line 3, in faiss
    import faiss  # error
ImportError: libcublas.so.12: cannot open shared object file: No such file or directory
"""
NUMPY = "Traceback (most recent call last):\n  raise ImportError\nImportError: numpy is too old\n"


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        (CUDA_13, "the shared library libcublasLt.so.13 is missing"),
        (FAISS_GPU, "the shared library libcublas.so.12 is missing"),
        (DRIVER, DRIVER.splitlines()[0]),
        (NUMPY, "ImportError: numpy is too old"),
        (
            "*** EP Error ***\nEP Error: Please install TensorRT libraries\n",
            "EP Error: Please install TensorRT libraries",
        ),
        ("\n\nerror: ended by signal 11", "error: ended by signal 11"),
        ("all is well\n", "it does not say why"),
    ],
)
def test_why_a_library_does_not_load(messages: str, why: str) -> None:
    assert why_not(messages) == why


def test_the_model_of_the_probe_is_a_model() -> None:
    model = onnx.load_from_string(probe.MODEL)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


def test_a_probe_that_fails_says_what_it_said() -> None:
    found, messages = run_probe("provider", "NoSuchProvider")
    assert found is None or found == {"loads": False}
    found, messages = run_probe("nonsense")
    assert found is None
    assert "KeyError: 'nonsense'" in messages
