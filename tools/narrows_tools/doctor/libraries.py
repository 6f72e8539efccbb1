"""Versions and conflicts of what is installed; ONNX Runtime and FAISS, really loaded."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from narrows.probe import run_probe, why_not
from narrows_tools.packages import PACKAGES

_CUDA_SUFFIX = re.compile(r"-cu(?:da)?(\d\d)x?$")
_CUDA_LOCAL_VERSION = re.compile(r"\+cu(\d\d)")
_UNSUFFIXED_CUDA = ("nvidia-cublas", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc")  # CUDA 13's own names


@dataclass(frozen=True, slots=True)
class Installed:
    """One of the packages that Narrows imports. `version` is empty where it is missing."""

    distribution: str
    version: str
    extra: str


@dataclass(frozen=True, slots=True)
class Provider:
    """An ONNX Runtime execution provider that is compiled in. `why` says why it does not load."""

    name: str
    loads: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime as it loads; `error` is why it does not."""

    version: str = ""
    cuda: str = ""  # that it was built for; empty for none
    providers: tuple[Provider, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Faiss:
    """FAISS as it loads; `error` is why it does not."""

    version: str = ""
    compile_options: tuple[str, ...] = ()
    gpus: int = 0
    error: str = ""


def distributions() -> dict[str, str]:
    """Every installed distribution: its name in lower case with hyphens, and its version."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def installed_packages(found: Mapping[str, str]) -> list[Installed]:
    """The packages that Narrows imports; those that stand in for an extra's choice under their own names."""
    result = []
    for package in PACKAGES:
        present = [name for name in package.distributions if name in found]
        names = present or package.distributions[:1]
        result += [Installed(name, found.get(name, ""), package.extra) for name in names]
    return result


def conflicts(found: Mapping[str, str]) -> list[str]:
    """Packages that do not go together in one process, a sentence each."""
    sentences = []
    for package in PACKAGES:
        present = [name for name in package.distributions if name in found]
        if len(present) > 1:
            sentences.append(
                f"{' and '.join(present)} are installed together and overwrite each other's module {package.module}: "
                "uninstall all of them, then install one"
            )
    majors = cuda_majors(found)
    if len(majors) > 1:
        listed = "; ".join(f"CUDA {major}: {', '.join(names)}" for major, names in sorted(majors.items()))
        sentences.append(
            f"packages for {len(majors)} CUDA versions are installed, and a process has room for one ({listed})"
        )
    return sentences


def cuda_majors(found: Mapping[str, str]) -> dict[int, list[str]]:
    """CUDA major version -> the installed packages that are built for it."""
    majors: dict[int, list[str]] = {}
    for name, version in sorted(found.items()):
        major = _cuda_major(name, version)
        if major is not None:
            majors.setdefault(major, []).append(f"{name} {version}")
    return majors


def _cuda_major(name: str, version: str) -> int | None:
    if suffix := _CUDA_SUFFIX.search(name):
        return int(suffix[1])
    if local := _CUDA_LOCAL_VERSION.search(version):
        return int(local[1])
    numbers = [int(part) for part in re.findall(r"\d+", version)[:2]]
    if name in _UNSUFFIXED_CUDA:
        return numbers[0] if numbers else None
    if name == "onnxruntime-gpu":  # 1.26 is the last whose wheels are CUDA 12's
        return 13 if numbers >= [1, 27] else 12
    return {"faiss-gpu": 12, "faiss-gpu-cuvs": 13}.get(name)


def examine_onnxruntime() -> OnnxRuntime:
    """Loads ONNX Runtime, and a session with each of its providers."""
    found, messages = run_probe("onnxruntime")
    if found is None:
        return OnnxRuntime(error=why_not(messages))
    providers = []
    for name in found["providers"]:
        loaded, messages = run_probe("provider", name)
        loads = loaded is not None and loaded["loads"]
        providers.append(Provider(name, loads, "" if loads else why_not(messages)))
    return OnnxRuntime(found["version"], found["cuda"], tuple(providers))


def examine_faiss() -> Faiss:
    """Loads FAISS."""
    found, messages = run_probe("faiss")
    if found is None:
        return Faiss(error=why_not(messages))
    return Faiss(found["version"], tuple(found["compile_options"]), found["gpus"])
