"""The GPU benchmark, run on the CPU: the whole program, real server and clients included, at tiny sizes."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_bundle
from benchmarks.gpu_parts import child, rows
from benchmarks.gpu_parts.rows import QUICK, Floors, Order, Row
from benchmarks.gpu_parts.weights import Size
from narrows.bundle import open_bundle

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SIZE = Size(hidden=64, layers=2, heads=1, vocabulary=2000, positions=256)
SECTIONS = ["environment", "floors", "correctness", "encoder", "search", "end_to_end"]


@dataclass(frozen=True)
class Done:
    status: int
    printed: str
    rows: list[dict[str, Any]]

    def of(self, section: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["section"] == section]

    def value(self, what: str) -> float:
        return next(row["value"] for row in self.rows if row["what"] == what)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle and its checkpoint that went through a skeleton."""
    directory = tmp_path_factory.mktemp("gpu-bundle")
    gpu_bundle.make_skeleton(directory / "skeleton", SIZE)
    gpu_bundle.fill(directory / "skeleton", directory / "filled")
    return directory


def run(out: Path, *arguments: str) -> Done:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--out", str(out), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, json.loads(out.read_text("utf-8"))["rows"])


def test_a_skeleton_is_small_and_filled_it_is_what_was_exported(filled: Path) -> None:
    skeleton, bundle = filled / "skeleton", filled / "filled" / "bundle"
    for model in skeleton.rglob("*.onnx"):
        assert model.stat().st_size < 50_000 < (bundle / model.relative_to(skeleton)).stat().st_size
    assert set(open_bundle(bundle, "full").tower("context_encoder").variants) == {"fp32", "fp16"}


def test_a_skeleton_of_other_weights_is_refused(filled: Path, tmp_path: Path) -> None:
    cuts = json.loads((filled / "skeleton" / "cuts.json").read_text("utf-8"))
    first = cuts["cuts"]["context_encoder/model.fp32.onnx"][0][1]
    first["transform"] = "transposed" if first["transform"] == "same" else "same"
    other = tmp_path / "skeleton"
    subprocess.run(["cp", "-r", filled / "skeleton", other], check=True)
    (other / "cuts.json").write_text(json.dumps(cuts), "utf-8")
    with pytest.raises(SystemExit, match="not what was exported"):
        gpu_bundle.fill(other, tmp_path / "out")


def test_every_section_measures(filled: Path, tmp_path: Path) -> None:
    made = filled / "filled"
    done = run(tmp_path / "gpu.json", "--bundle", f"{made / 'bundle'}", "--checkpoint", f"{made / 'checkpoint'}")
    assert done.status == 0, done.printed
    for section in [*SECTIONS, "memory"]:
        assert any(row["value"] for row in done.of(section)), section
    assert done.value("fp32: worst cosine to PyTorch, 200 questions") > 0.99999
    assert done.value("fp32: top-10 overlap with PyTorch") > 0.99
    assert done.value("1 fronts, messages of 16, k = 20: saturation") > 0
    assert next(row for row in done.of("encoder") if row["kind"] == "floor")["ratio"] > 0
    last = done.printed.rstrip("\n").split("\n")
    assert last[0].startswith("cpu, quick")
    assert last[1].split() == ["section", "what", "value", "unit", "floor", "or", "goal", "ratio"]
    assert len(last) == 2 + len(done.rows)


def test_a_section_that_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    done = run(tmp_path / "gpu.json", "--bundle", "nowhere", "--sections", "correctness", "floors")
    assert done.status == 1
    [failed] = [row for row in done.rows if row["outcome"] == "failed"]
    assert failed["section"] == "correctness"
    assert "BundleError: nowhere is not a bundle" in failed["remark"]
    assert "FAILED: BundleError" in done.printed
    assert any(row["unit"] == "TFLOP/s" for row in done.of("floors"))


def test_without_a_bundle_what_needs_one_says_so(tmp_path: Path) -> None:
    done = run(tmp_path / "gpu.json", "--sections", "encoder")
    assert done.status == 0
    assert "SKIPPED: no --bundle was given" in done.printed


def test_a_section_is_ended_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.0)
    order = Order(
        "search", "cpu", replace(QUICK, repeat_s=60.0), None, None, None, None, tmp_path, tmp_path / "rows",
        time.time() + 3.0, Floors(),
    )  # fmt: skip
    found = child.run_apart(order)
    assert found[-1].outcome == "failed"
    assert "time was over" in found[-1].remark


def test_ratios_goals_and_floors() -> None:
    assert Row("s", "w", 5.0, "ms", 2.0, "floor").ratio == 2.5
    assert Row("s", "w", 5.0, "ms", 2.0, "floor").met is None
    assert Row("s", "w", 5.0, "ms", 2.0, "at most").met is False
    assert Row("s", "w", 5.0, "/s", 2.0, "at least").met is True
    floors = Floors(matmul_flop_per_s=1e12, copy_bytes_per_s=1e9)
    assert floors.ms(operations=2e9, size_bytes=1e6) == 2.0
    assert Floors().ms(operations=2e9) is None
    found = rows.floors_of([Row("floors", "a", 2.0, "TFLOP/s"), Row("floors", "b", 3.0, "TFLOP/s")])
    assert found == Floors(3e12, 0.0)
