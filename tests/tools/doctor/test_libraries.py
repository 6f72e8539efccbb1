"""Versions and conflicts of what is installed."""

import re
import tomllib
from pathlib import Path

from narrows_tools.doctor.libraries import Installed, conflicts, cuda_majors, installed_packages
from narrows_tools.packages import PACKAGES, extra_of

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


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
