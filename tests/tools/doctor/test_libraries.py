"""Versions, conflicts, and what stops a library.

CUDA_13 is what onnxruntime-gpu 1.31.1 said on a machine without CUDA; the other messages have the form of such.
"""

import re
import tomllib
from pathlib import Path

import onnx
import pytest

from narrows_tools.doctor import libraries, probe
from narrows_tools.doctor.libraries import Installed, conflicts, cuda_majors, installed_packages, why_not
from narrows_tools.packages import PACKAGES, extra_of

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"
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


def test_cuda_versions_are_told_by_name_and_version() -> None:
    found = {
        "onnxruntime-gpu": "1.31.1", "nvidia-cublas": "13.1.0", "nvidia-cudnn-cu13": "9.1", "faiss-gpu-cuvs": "1.15.1",
        "faiss-gpu": "1.15.1", "torch": "2.13.0+cu126", "nvidia-ml-py": "13.5", "numpy": "2.1",
    }  # fmt: skip
    assert cuda_majors(found) == {
        12: ["faiss-gpu 1.15.1", "torch 2.13.0+cu126"],
        13: ["faiss-gpu-cuvs 1.15.1", "nvidia-cublas 13.1.0", "nvidia-cudnn-cu13 9.1", "onnxruntime-gpu 1.31.1"],
    }
    assert cuda_majors({"onnxruntime-gpu": "1.26.0"}) == {12: ["onnxruntime-gpu 1.26.0"]}


def test_conflicts() -> None:
    assert conflicts({"onnxruntime": "1.31", "faiss-cpu": "1.15", "torch": "2.13.0+cpu"}) == []
    assert conflicts({"onnxruntime-gpu": "1.31.1", "faiss-gpu-cuvs": "1.15.1"}) == []
    [both] = conflicts({"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"})
    assert both.startswith("onnxruntime and onnxruntime-gpu are installed together")
    [majors] = conflicts({"onnxruntime-gpu": "1.31", "faiss-gpu": "1.15"})
    assert "(CUDA 12: faiss-gpu 1.15; CUDA 13: onnxruntime-gpu 1.31)" in majors


def test_stand_ins_are_listed_under_their_own_names() -> None:
    listed = installed_packages({"onnxruntime-gpu": "1.31", "onnxruntime": "1.30", "faiss-gpu": "1.15"})
    assert Installed("onnxruntime-gpu", "1.31", "cpu") in listed
    assert Installed("onnxruntime", "1.30", "cpu") in listed
    assert Installed("faiss-gpu", "1.15", "cpu") in listed
    assert Installed("torch", "", "export") in listed
    assert "faiss-cpu" not in [package.distribution for package in listed]


def test_the_table_of_packages_is_that_of_pyproject() -> None:
    project = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]
    extras = {"": project["dependencies"], **project["optional-dependencies"]}
    extras["cpu"] = extras["serve"] + extras["cpu"]
    wanted: dict[str, str] = {}
    for extra in ("", "cpu", "eval", "bench", "export", "demo"):
        for requirement in extras[extra]:
            wanted.setdefault(re.split(r"[<>=\[ ]", requirement)[0], extra)  # the first that brings it
    del wanted["narrows"]
    assert {package.distributions[0]: package.extra for package in PACKAGES} == wanted


def test_the_extra_of_a_module() -> None:
    assert extra_of("faiss") == "cpu"
    assert extra_of("optimum.exporters.onnx") == "export"
    assert extra_of("grpc") is None
    assert extra_of("made_up") is None


def test_the_model_of_the_probe_is_a_model() -> None:
    model = onnx.load_from_string(probe.MODEL)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Identity"]


def test_a_probe_that_fails_says_what_it_said() -> None:
    found, messages = libraries.run_probe("provider", "NoSuchProvider")
    assert found is None or found == {"loads": False}
    found, messages = libraries.run_probe("nonsense")
    assert found is None
    assert "KeyError: 'nonsense'" in messages
