"""All that the doctor looks at, and what speaks against running a server here."""

import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import narrows
from narrows import cuda
from narrows.cuda import Gpu
from narrows.errors import DeviceError, IndexFileError, NarrowsError
from narrows.probe import CPU_PROVIDER, CUDA_PROVIDER
from narrows_tools.doctor import libraries, machine
from narrows_tools.doctor.libraries import Faiss, Installed, OnnxRuntime
from narrows_tools.doctor.machine import Machine

# A server's own packages, beside the base install and the two libraries, which are judged by whether they load.
SERVER_PACKAGES = ("grpcio-health-checking", "grpcio-reflection", "msgspec", "tokenizers")


@dataclass(frozen=True, slots=True)
class Artifact:
    """A bundle or an index. `size_bytes` is what a server maps or loads of it; `error` is why it does not open."""

    kind: Literal["bundle", "index"]
    path: str
    size_bytes: int = 0
    holds: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the NVIDIA driver says: the newest CUDA that it runs, and the cards. `error`: why it says nothing."""

    newest_cuda: str = ""
    cards: tuple[Gpu, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know. A problem keeps a server from running here; a warning does not."""

    level: Literal["problem", "warning"]
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """What was found."""

    narrows: str
    python: str
    packages: tuple[Installed, ...]
    onnxruntime: OnnxRuntime
    faiss: Faiss
    machine: Machine
    gpus: Gpus
    artifacts: tuple[Artifact, ...]
    findings: tuple[Finding, ...]

    @property
    def device(self) -> str:
        """What `--device auto` takes."""
        return (
            "cuda:0" if CUDA_PROVIDER in [found.name for found in self.onnxruntime.providers if found.loads] else "cpu"
        )

    @property
    def can_serve(self) -> bool:
        """Nothing found keeps a server from running here."""
        return all(finding.level != "problem" for finding in self.findings)


def examine(bundle: Path | None, index: Path | None) -> Report:
    """Looks at everything; takes a few seconds, because each library is loaded in a process of its own."""
    found = libraries.distributions()
    packages = tuple(libraries.installed_packages(found))
    onnxruntime, faiss = libraries.examine_onnxruntime(), libraries.examine_faiss()
    here, gpus = machine.examine(), examine_gpus()
    artifacts = tuple(open_artifacts(bundle, index))
    findings = judge(packages, libraries.conflicts(found), onnxruntime, faiss, here, gpus, artifacts)
    python = platform.python_version()
    return Report(narrows.__version__, python, packages, onnxruntime, faiss, here, gpus, artifacts, tuple(findings))


def examine_gpus() -> Gpus:
    """Asks the driver."""
    try:
        return Gpus(cuda.newest_cuda(), cuda.gpus())
    except DeviceError as error:
        return Gpus(error=str(error))


def judge(
    packages: tuple[Installed, ...],
    conflicts: list[str],
    onnxruntime: OnnxRuntime,
    faiss: Faiss,
    here: Machine,
    gpus: Gpus,
    artifacts: tuple[Artifact, ...],
) -> list[Finding]:
    """What follows from it, problems first."""
    problems, warnings = [], list(conflicts)
    missing = [package for package in packages if not package.version and package.distribution in SERVER_PACKAGES]
    if missing:
        names = ", ".join(package.distribution for package in missing)
        problems.append(f"a server needs {names}: pip install 'narrows[cpu]'")
    for name, distribution, error in (
        ("ONNX Runtime", "onnxruntime", onnxruntime.error),
        ("FAISS", "faiss-cpu", faiss.error),
    ):
        if "No module named" in error:
            problems.append(f"a server needs {distribution}: pip install 'narrows[cpu]'")
        elif error:
            problems.append(f"{name} does not load: {error}")
    levels = {CPU_PROVIDER: problems, CUDA_PROVIDER: warnings}  # others are not used
    for provider in onnxruntime.providers:
        if not provider.loads and provider.name in levels:
            levels[provider.name].append(f"ONNX Runtime's {provider.name} does not load: {provider.why}")
    warnings += _judge_gpus(onnxruntime, faiss, gpus)
    if here.cpu.flags and here.system.endswith("x86_64") and "avx2" not in here.cpu.flags:
        warnings.append("this CPU has no AVX2: encoding will be several times slower")
    if here.limits.cores is not None and here.limits.cores < here.cores:
        warnings.append(
            f"control groups allow {here.limits.cores:g} of {here.cores} cores at once, and a server takes a thread "
            "for each core: set encode_threads and search_threads"
        )
    problems += [artifact.error for artifact in artifacts if artifact.error]
    fits, doubts = _judge_memory(here, artifacts)
    return [Finding("problem", text) for text in problems + fits] + [
        Finding("warning", text) for text in warnings + doubts
    ]


def _judge_gpus(onnxruntime: OnnxRuntime, faiss: Faiss, gpus: Gpus) -> list[str]:
    """A driver too old for what is installed; and cards that are left unused."""
    if not gpus.cards or onnxruntime.error:
        return []
    if _major(onnxruntime.cuda) > _major(gpus.newest_cuda):
        return [
            f"the driver runs CUDA up to {gpus.newest_cuda}, and ONNX Runtime is built for {onnxruntime.cuda}: install "
            "a newer driver, or narrows[gpu-cu12] in place of narrows[gpu]"
        ]
    if not onnxruntime.cuda:
        return [
            "there is a GPU, and ONNX Runtime is built without CUDA: pip install 'narrows[gpu]' in a new environment"
        ]
    if not faiss.gpus and not faiss.error:
        return ["FAISS sees no GPU: the index's vectors stay with the CPU"]
    return []


def _major(version: str) -> int:
    """Of a CUDA version; 0 where there is none."""
    found = re.match(r"\d+", version)
    return int(found[0]) if found else 0


def _judge_memory(here: Machine, artifacts: tuple[Artifact, ...]) -> tuple[list[str], list[str]]:
    """A bundle's towers are loaded and must fit; an index is mapped, and slow where it does not."""
    usable = here.usable_bytes
    sizes = {artifact.kind: artifact.size_bytes for artifact in artifacts}
    if not usable:
        return [], []
    if sizes.get("bundle", 0) > usable:
        return [f"the towers take {mib(sizes['bundle'])}, and {mib(usable)} of memory are free"], []
    if sum(sizes.values()) > usable:
        return [], [
            f"towers and index take {mib(sum(sizes.values()))}, and {mib(usable)} of memory are free: the "
            "index's pages will be read from disk again and again"
        ]
    return [], []


def open_artifacts(bundle_path: Path | None, index_path: Path | None) -> list[Artifact]:
    """Opens a bundle and an index, together as a server would, and keeps what stops it. Every hash is checked."""
    try:
        from narrows.bundle import REFERENCE_VARIANT, open_bundle
        from narrows.index.opened import open_index
        from narrows.index.store import damages, read_manifest, read_sealed_manifest
    except ModuleNotFoundError as error:
        kinds: dict[Literal["bundle", "index"], Path | None] = {"bundle": bundle_path, "index": index_path}
        return [
            Artifact(kind, str(path), error=f"{path} cannot be opened without {error.name}: pip install 'narrows[cpu]'")
            for kind, path in kinds.items()
            if path
        ]
    artifacts = []
    bundle = None
    variant = REFERENCE_VARIANT
    if index_path:
        with suppress(NarrowsError):
            variant = read_manifest(index_path)[1].variant
    if bundle_path:
        try:
            bundle = open_bundle(bundle_path)
            towers = {tower.directory: tower for tower in bundle.manifest.by_role.values()}
            sizes = [tower.variants[variant].size_bytes for tower in towers.values() if variant in tower.variants]
            holds = f"{bundle.manifest.name}, {bundle.manifest.dim} dimensions, variant {variant}"
            artifacts.append(Artifact("bundle", str(bundle_path), sum(sizes), holds))
        except NarrowsError as error:
            artifacts.append(Artifact("bundle", str(bundle_path), error=str(error)))
    if index_path:
        try:
            generation, manifest, manifest_sha256 = read_sealed_manifest(index_path)
            if bundle:
                open_index(index_path, bundle, threads=1)
            elif damaged := damages(index_path, generation, manifest, manifest_sha256, "full"):
                raise IndexFileError(f"{damaged[0]}; build the index again")
            size_bytes = sum(file.size_bytes for file in manifest.files.values())
            holds = f"{manifest.count} passages, {manifest.plan.factory}, {manifest.dim} dimensions, {generation}"
            artifacts.append(Artifact("index", str(index_path), size_bytes, holds))
        except NarrowsError as error:
            artifacts.append(Artifact("index", str(index_path), error=str(error)))
    return artifacts


def mib(size_bytes: int) -> str:
    """A size for people."""
    return f"{size_bytes / 2**20:,.0f} MiB"
