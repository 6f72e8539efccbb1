"""Where towers run. No GPU is needed: a CPU runs in fixed shapes as a GPU does, and refuses what a GPU would refuse."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from narrows import device, probe
from narrows.bundle import Bundle
from narrows.device import CPU, CpuDevice, check_placement, choose, cuda
from narrows.encoder import Encoder, load_encoder
from narrows.errors import DeviceError
from narrows.padding import Shapes
from narrows.probe import CPU_PROVIDER, CUDA_PROVIDER
from narrows.towers import load_towers

GRID = Shapes(texts=(1, 2, 4, 8), tokens=(8, 16, 32), max_cells=128)
PLAIN_ORT = CUDA_PROVIDER not in onnxruntime.get_available_providers()


def texts(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.integers(5, 60, length) for length in lengths]


def file_of(bundle: Bundle, variant: str = "fp32") -> Path:
    tower = bundle.tower("question_encoder")
    return bundle.file(tower, tower.variants[variant].file)


# --- fixed shapes, with the bindings and buffers that a GPU has


@pytest.fixture(scope="module")
def bound(small_bundle: Bundle) -> Encoder:
    return Encoder(file_of(small_bundle), 0, 1, CpuDevice(grid=GRID), max_tokens=32)


@pytest.mark.parametrize(
    "lengths",
    [[1], [3], [8], [9, 2], [32], [3, 8, 5], [4] * 8, [16] * 8, [4] * 9, [3, 31, 7, 2, 30] * 5],
    ids=lambda lengths: f"{len(lengths)}x{max(lengths)}",
)
def test_in_fixed_shapes_every_text_gets_the_embedding_that_it_gets_alone(
    small_bundle: Bundle, bound: Encoder, lengths: list[int]
) -> None:
    batch = texts(lengths)
    free = Encoder(file_of(small_bundle), 0, 1)
    expected = np.concatenate([free.encode([ids]) for ids in batch])
    np.testing.assert_array_equal(bound.encode(batch), expected)


def test_a_result_is_not_overwritten_by_the_next(bound: Encoder) -> None:
    first = bound.encode(texts([5, 6], seed=1))
    kept = first.copy()
    bound.encode(texts([5, 6], seed=2))
    np.testing.assert_array_equal(first, kept)


def test_what_a_larger_batch_left_in_a_buffer_is_not_seen(small_bundle: Bundle, bound: Encoder) -> None:
    bound.encode(texts([16] * 4, seed=3))
    short = texts([9, 10, 11], seed=4)
    np.testing.assert_array_equal(bound.encode(short), Encoder(file_of(small_bundle), 0, 1).encode(short))


def test_fp16_in_fixed_shapes(variants_bundle: Bundle) -> None:
    """Half precision, padded to a shape: on a CPU its numerics alone."""
    file = file_of(variants_bundle, "fp16")
    batch = texts([3, 12, 7])
    got = Encoder(file, 0, 1, CpuDevice(grid=GRID), max_tokens=32).encode(batch)
    np.testing.assert_array_equal(got, Encoder(file, 0, 1).encode(batch))
    reference = Encoder(file_of(variants_bundle), 0, 1).encode(batch)
    cosine = (got * reference).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(reference, axis=1)
    assert cosine.min() >= 0.9999


def test_a_tower_in_fixed_shapes_is_timed_up_to_the_largest_batch(small_bundle: Bundle) -> None:
    narrow = CpuDevice(grid=GRID, max_batch=8)
    tower = load_towers(small_bundle, "fp32", 1, ["question_encoder"], device=narrow)["question_encoder"]
    table = tower.measure_costs(budget_ms=200)
    assert max(size for bucket in table.buckets for size in bucket.batch_sizes) <= 8


# --- what a GPU refuses


def test_operators_that_run_elsewhere_are_named(small_bundle: Bundle) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    file = file_of(small_bundle)
    session = onnxruntime.InferenceSession(str(file), options, providers=[CPU_PROVIDER])
    check_placement(session, CPU_PROVIDER, file)
    with pytest.raises(
        DeviceError, match=r"operators of .*model\.fp32\.onnx do not run on CUDAExecutionProvider"
    ) as no:
        check_placement(session, CUDA_PROVIDER, file)
    assert "1 EmbedLayerNormalization (" in str(no.value)
    assert len(str(no.value)) < 2000  # of each kind a few are named
    assert "--device cpu" in str(no.value)


@pytest.mark.skipif(not PLAIN_ORT, reason="this ONNX Runtime has CUDA")
def test_a_gpu_that_cannot_be_used_is_refused_when_it_was_named() -> None:
    for wanted in ("cuda", "cuda:3"):
        with pytest.raises(DeviceError, match=rf"{wanted} cannot be used: .* has no CUDA; narrows\[gpu\]"):
            choose(wanted)


def test_int8_is_refused_on_a_gpu_before_anything_is_loaded(variants_bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match=r"cuda:0 runs fp16 and fp32, not int8: .*--device cpu"):
        load_encoder(variants_bundle, "question_encoder", "int8", 0, 1, cuda(0))


class FullDevice(CpuDevice):
    """Has no memory left."""

    def buffer(self, shape: Sequence[int], dtype: Any) -> onnxruntime.OrtValue:
        raise MemoryError(f"no room for {tuple(shape)}")


def test_batches_for_which_there_is_no_memory_are_refused_at_the_start(small_bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match=r"cpu cannot run the batches of .*model\.fp32\.onnx: no room for \(8, 16\)"):
        Encoder(file_of(small_bundle), 0, 1, FullDevice(grid=GRID), max_tokens=32)


# --- auto


@pytest.mark.skipif(not PLAIN_ORT, reason="this ONNX Runtime has CUDA")
def test_auto_takes_the_cpu_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=device.__name__):
        assert choose("auto") is CPU
    [record] = caplog.records
    assert record.levelno == logging.INFO
    assert record.message.startswith("device: the CPU, because the ONNX Runtime that is installed has no CUDA")
    assert choose("cpu") is CPU


def test_auto_names_the_library_that_is_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The messages are those of onnxruntime-gpu 1.31.1 on a machine without a driver."""
    said = (
        "[E:onnxruntime:Default, provider_bridge_ort.cc:2458 operator()] [ONNXRuntimeError] : 1 : FAIL : Failed to "
        "load library libonnxruntime_providers_cuda.so with error: libcuda.so.1: cannot open shared object file: No "
        "such file or directory"
    )
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA_PROVIDER, CPU_PROVIDER])
    monkeypatch.setattr(probe, "run_probe", lambda *_: ({"loads": False}, said))
    with caplog.at_level(logging.INFO, logger=device.__name__):
        assert choose("auto") is CPU
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].message.endswith("CUDA does not load: the shared library libcuda.so.1 is missing")
    with pytest.raises(DeviceError, match=r"cuda:2 cannot be used: .*libcuda\.so\.1 is missing"):
        choose("cuda:2")
    monkeypatch.setattr(probe, "run_probe", lambda *_: ({"loads": True}, ""))
    assert choose("auto").name == "cuda:0"
    assert choose("cuda:2").name == "cuda:2"
    assert choose("auto", "fp16").name == "cuda:0"
    caplog.clear()
    with caplog.at_level(logging.INFO, logger=device.__name__):
        assert choose("auto", "int8") is CPU
    assert caplog.records[0].message == "device: the CPU, because a GPU does not run int8"
    assert choose("cuda", "int8").name == "cuda:0"  # whoever loads it refuses, and says what would run
