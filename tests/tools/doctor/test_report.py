"""What follows from what was found, and the command."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from server_process import run_narrows

from narrows.bundle import Bundle
from narrows.cuda import Gpu
from narrows_tools.doctor.libraries import Faiss, Installed, OnnxRuntime, Provider
from narrows_tools.doctor.machine import Cpu, Limits, Machine
from narrows_tools.doctor.report import Artifact, Finding, Gpus, judge, open_artifacts

GIB = 2**30
HERE = Machine("Linux x86_64", Cpu("Example", ("avx", "avx2")), 2, 8 * GIB, 4 * GIB, Limits())
RUNTIME = OnnxRuntime("1.31.1", "", (Provider("CPUExecutionProvider", True),))
FAISS = Faiss("1.15.1", ("AVX2",), 0)
NO_GPU = Gpus(error="no NVIDIA driver: the shared library libcuda.so.1 is missing")


def findings(
    *,
    packages: tuple[Installed, ...] = (),
    conflicts: tuple[str, ...] = (),
    onnxruntime: OnnxRuntime = RUNTIME,
    faiss: Faiss = FAISS,
    here: Machine = HERE,
    gpus: Gpus = NO_GPU,
    artifacts: tuple[Artifact, ...] = (),
) -> list[Finding]:
    return judge(packages, list(conflicts), onnxruntime, faiss, here, gpus, artifacts)


def test_nothing_to_say() -> None:
    assert findings() == []


def test_what_a_server_lacks_is_a_problem() -> None:
    missing = (Installed("msgspec", "", "cpu"), Installed("tokenizers", "", "cpu"), Installed("torch", "", "export"))
    [problem] = findings(packages=missing)
    assert problem == Finding("problem", "a server needs msgspec, tokenizers: pip install 'narrows[cpu]'")
    [problem] = findings(faiss=Faiss(error="ModuleNotFoundError: No module named 'faiss'"))
    assert problem == Finding("problem", "a server needs faiss-cpu: pip install 'narrows[cpu]'")
    [problem] = findings(onnxruntime=OnnxRuntime(error="the shared library libgomp.so.1 is missing"))
    assert problem == Finding("problem", "ONNX Runtime does not load: the shared library libgomp.so.1 is missing")


def test_a_provider_that_does_not_load() -> None:
    why = "the shared library libcublasLt.so.13 is missing"
    cuda = replace(RUNTIME, providers=(Provider("CUDAExecutionProvider", False, why), *RUNTIME.providers))
    [warning] = findings(onnxruntime=cuda)
    assert warning == Finding("warning", f"ONNX Runtime's CUDAExecutionProvider does not load: {why}")
    [problem] = findings(onnxruntime=replace(RUNTIME, providers=(Provider("CPUExecutionProvider", False, "x"),)))
    assert problem.level == "problem"
    unused = replace(RUNTIME, providers=(Provider("TensorrtExecutionProvider", False, why), *RUNTIME.providers))
    assert findings(onnxruntime=unused) == []


CARD = Gpus("13.0", (Gpu(0, "Example", 80 * GIB),))
CUDA_13 = OnnxRuntime("1.31.1", "13.1", (Provider("CUDAExecutionProvider", True), *RUNTIME.providers))


@pytest.mark.parametrize(
    ("onnxruntime", "faiss_gpus", "gpus", "warning"),
    [
        (CUDA_13, 1, CARD, ""),
        (replace(CUDA_13, cuda="cu13"), 1, CARD, ""),
        (RUNTIME, 0, NO_GPU, ""),
        (RUNTIME, 0, replace(CARD, cards=()), ""),
        (RUNTIME, 1, CARD, "there is a GPU, and ONNX Runtime is built without CUDA"),
        (CUDA_13, 0, CARD, "FAISS sees no GPU: the index's vectors stay with the CPU"),
        (
            CUDA_13,
            1,
            replace(CARD, newest_cuda="12.4"),
            "the driver runs CUDA up to 12.4, and ONNX Runtime is",
        ),
    ],
)
def test_what_keeps_a_gpu_from_being_used(onnxruntime: OnnxRuntime, faiss_gpus: int, gpus: Gpus, warning: str) -> None:
    found = findings(onnxruntime=onnxruntime, faiss=replace(FAISS, gpus=faiss_gpus), gpus=gpus)
    assert [finding.text.startswith(warning) for finding in found] == [True] * bool(warning)


def test_conflicts_and_an_old_cpu_are_warnings() -> None:
    old = replace(HERE, cpu=Cpu("Old", ("avx",)))
    assert [finding.level for finding in findings(conflicts=("two of them",), here=old)] == ["warning", "warning"]
    arm = replace(HERE, system="Linux aarch64", cpu=Cpu("unknown", ("asimd",)))
    assert findings(here=arm) == []


def test_fewer_cores_than_threads() -> None:
    [warning] = findings(here=replace(HERE, cores=8, limits=Limits(cores=1.5)))
    assert warning.level == "warning"
    assert warning.text.startswith("control groups allow 1.5 of 8 cores at once")
    assert findings(here=replace(HERE, limits=Limits(cores=2.0))) == []


@pytest.mark.parametrize(
    ("bundle_gib", "index_gib", "limit_gib", "level"),
    [(1, 2, None, None), (1, 4, None, "warning"), (5, 0, None, "problem"), (1, 0, 0.5, "problem"), (1, 2, 16, None)],
)
def test_memory(bundle_gib: int, index_gib: int, limit_gib: float | None, level: str | None) -> None:
    here = replace(HERE, limits=Limits(int(limit_gib * GIB) if limit_gib else None))
    artifacts = (Artifact("bundle", "b", bundle_gib * GIB), Artifact("index", "i", index_gib * GIB))
    assert [finding.level for finding in findings(here=here, artifacts=artifacts)] == ([level] if level else [])


def test_artifacts_open_as_a_server_opens_them(
    tmp_path: Path, small_bundle: Bundle, small_index: Path, minilm_bundle: Bundle
) -> None:
    bundle, index = open_artifacts(small_bundle.path, small_index)
    assert (bundle.kind, bundle.error, index.kind, index.error) == ("bundle", "", "index", "")
    files = [small_bundle.path / role / "model.fp32.onnx" for role in ("question_encoder", "context_encoder")]
    assert bundle.size_bytes == sum(file.stat().st_size for file in files)
    assert index.size_bytes == sum(file.stat().st_size for file in (small_index / "g000001").iterdir()) - (
        (small_index / "g000001" / "manifest.json").stat().st_size
    )
    assert "300 passages" in index.holds

    [_, other] = open_artifacts(minilm_bundle.path, small_index)
    assert "was filled by another context encoder" in other.error

    shutil.copytree(small_bundle.path, tmp_path / "damaged")
    (tmp_path / "damaged" / "context_encoder" / "model.fp32.onnx").write_bytes(b"x")
    [damaged, no_index] = open_artifacts(tmp_path / "damaged", tmp_path / "none")
    assert "does not match the manifest's hash" in damaged.error
    assert "is not an index" in no_index.error

    shutil.copytree(small_index, tmp_path / "damaged.index")
    (tmp_path / "damaged.index" / "g000001" / "passages.blob").write_bytes(b"x")
    for path in (None, small_bundle.path):
        assert "passages.blob does not match the manifest" in open_artifacts(path, tmp_path / "damaged.index")[-1].error


def test_command(small_bundle: Bundle, small_index: Path, tmp_path: Path) -> None:
    done = run_narrows("doctor", "--json", "--bundle", str(small_bundle.path), "--index", str(small_index))
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["can_serve"] is True
    assert {"name": "CPUExecutionProvider", "loads": True, "why": ""} in report["onnxruntime"]["providers"]
    assert report["faiss"]["compile_options"]
    assert [artifact["error"] for artifact in report["artifacts"]] == ["", ""]

    done = run_narrows("doctor", "--bundle", str(tmp_path / "none"))
    assert done.returncode == 1
    assert all(f"\nnarrows[{extra}]" in done.stdout for extra in ("cpu", "eval", "export", "demo"))
    assert f"PROBLEM         {tmp_path / 'none'} is not a bundle" in done.stdout
    assert done.stdout.endswith("A server cannot run here; the problems say why.\n")
    for extra in ("cpu", "eval", "export", "demo"):
        assert f"\nnarrows[{extra}]" in done.stdout
    assert done.stderr == ""
