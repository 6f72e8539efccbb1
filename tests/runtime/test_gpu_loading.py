"""What towers and index take on a GPU, counted before they are loaded."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from half import Half

from narrows import cuda, gpu_loading, loading, variants
from narrows.bundle import Bundle
from narrows.device import ARENA_BYTES, CPU, CudaDevice
from narrows.errors import BundleError, DeviceError
from narrows.gpu_loading import KERNELS_BYTES, Need, check_fits, towers_need, vectors_need
from narrows.loading import open_files, start_engine
from narrows.padding import Shapes
from narrows.settings import ServerSettings
from narrows.tokenizer import load_tokenizer
from narrows.work import Outcome, Served, Work

GIB = 2**30


def test_two_towers_take_their_weights_and_an_arena_each(variants_bundle: Bundle) -> None:
    needed = towers_need(variants_bundle, {"question_encoder": "fp16", "context_encoder": "fp32"})
    assert [need.what for need in needed] == ["CUDA's libraries", "question encoder in fp16", "context encoder in fp32"]
    question = variants_bundle.tower("question_encoder").variants["fp16"].size_bytes
    assert [need.size_bytes for need in needed[:2]] == [KERNELS_BYTES, question + ARENA_BYTES]


def test_a_tower_that_serves_both_roles_is_counted_once(minilm_bundle: Bundle) -> None:
    both = towers_need(minilm_bundle, {"question_encoder": "fp32", "context_encoder": "fp32"})
    assert [need.what for need in both] == ["CUDA's libraries", "shared encoder in fp32"]


def test_a_variant_that_the_bundle_lacks(small_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no variant fp16 of its question_encoder; it has fp32"):
        towers_need(small_bundle, {"question_encoder": "fp16", "context_encoder": "fp32"})


def test_what_fits_is_let_through_and_what_does_not_is_refused_with_the_numbers() -> None:
    needed = [Need("towers", 3 * GIB), *vectors_need(10_000_000, 768, "fp32")]
    total = sum(need.size_bytes for need in needed)
    check_fits("cuda:0", needed, total)
    with pytest.raises(DeviceError) as refused:
        check_fits("cuda:0", needed, 24 * GIB, "leave them out, ")
    message = str(refused.value)
    assert message.startswith("cuda:0 has 24.00 GiB of memory free, and 33.56 GiB are needed (towers 3.00 GiB, ")
    assert "10,000,000 vectors of 768 in fp32 29.06 GiB, searching them 1.50 GiB)" in message
    assert message.endswith("): leave them out, take a larger GPU, or use --device cpu")


def test_a_gpu_answers_by_the_first_of_its_variants_that_is_sound(variants_bundle: Bundle) -> None:
    """No report vouches for fp16 in this bundle: fp32 it is, unless fp16 is asked for."""
    runs = ("fp16", "fp32")
    choice = variants.suited(runs, variants_bundle.manifest, "fp32", "")
    assert (choice.question, choice.passage, choice.warning) == ("fp32", "fp32", "")
    asked = variants.suited(runs, variants_bundle.manifest, "fp32", "fp16")
    assert (asked.question, asked.passage) == ("fp16", "fp32")
    assert "no quality report" in asked.warning
    only_int8 = variants.suited(runs, variants_bundle.manifest, "int8", "")
    assert (only_int8.question, only_int8.passage) == ("fp32", "int8")  # which then is refused: the index is int8's


# --- the whole engine as it runs on a GPU, with the CPU in the place of the card


class CpuAsGpu(CudaDevice):
    """Does everything that the engine does with a GPU: fixed shapes, bound buffers, one thread for both stages."""

    def session(self, model_file: Path, threads: int) -> onnxruntime.InferenceSession:
        return CPU.session(model_file, threads)

    def buffer(self, shape: Sequence[int], dtype: Any) -> onnxruntime.OrtValue:
        return CPU.buffer(shape, dtype)


def half_candidates(vectors: npt.NDArray[np.float32], max_norm: float, gpu: int, storage: str) -> Half:
    assert (gpu, storage) == (0, "fp16")
    return Half(vectors)


def answers(settings: ServerSettings, questions: list[str]) -> tuple[list[tuple[list[int], bytes]], Served]:
    """Rows and scores of each question, asked all at once, and what the engine says of itself."""
    outcomes: dict[int, Outcome] = {}
    done = threading.Event()

    def deliver(some: Sequence[Outcome]) -> None:
        outcomes.update((outcome.request_id, outcome) for outcome in some)
        if len(outcomes) == len(questions):
            done.set()

    opened, index = open_files(settings)
    engine, served = start_engine(settings, opened, index, deliver)
    tokenized = load_tokenizer(opened, opened.tower("question_encoder")).questions(questions)
    late_s = time.monotonic() + 60
    engine.submit(*([Work(number, "questions", late_s, text.ids, k=10)] for number, text in enumerate(tokenized)))
    assert done.wait(60)
    engine.close()
    found = [outcomes[number] for number in range(len(questions))]
    assert [outcome.refusal for outcome in found] == [None] * len(questions)
    return [(o.rows.tolist(), o.scores.tobytes()) for o in found if o.rows is not None and o.scores is not None], served


def test_an_engine_on_a_gpu_gives_the_answers_of_the_cpu(
    small_bundle: Bundle, small_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 towers and vectors in half precision: the same rows and the same scores, bit for bit."""
    questions = [" ".join(["who found the old river"] * (1 + number % 4)) for number in range(40)]
    settings = ServerSettings(small_bundle.path, small_index, device="cpu", encode_threads=1, warmup_budget_ms=50)
    expected, on_cpu = answers(settings, questions)

    grid = Shapes(texts=(1, 4, 16), tokens=(8, 16, 32), max_cells=256)
    monkeypatch.setattr(loading, "choose_device", lambda wanted: CpuAsGpu(grid=grid, max_batch=16))
    monkeypatch.setattr(cuda, "free_bytes", lambda number: 80 * GIB)
    monkeypatch.setattr("narrows.index.gpu.faiss_sees", lambda gpu: True)
    monkeypatch.setattr(gpu_loading, "GpuCandidates", half_candidates)
    found, served = answers(settings, questions)
    assert found == expected
    assert (on_cpu.device, served.device) == ("cpu", "cuda:0")
    assert (served.variant, served.index_id) == (on_cpu.variant, on_cpu.index_id)


@pytest.fixture
def a_full_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "choose_device", lambda wanted: CudaDevice())
    monkeypatch.setattr(cuda, "free_bytes", lambda number: GIB)


@pytest.mark.usefixtures("a_full_card")
def test_a_server_that_does_not_fit_is_refused_before_anything_is_loaded(
    small_bundle: Bundle, small_index: Path
) -> None:
    settings = ServerSettings(small_bundle.path, small_index, device="cuda", gpu_vectors="off")
    opened, index = open_files(settings)
    with pytest.raises(DeviceError, match=r"cuda:0 has 1\.00 GiB of memory free, and 4\.50 GiB are needed") as refused:
        start_engine(settings, opened, index, lambda outcomes: None)
    assert "--gpu-vectors" not in str(refused.value)  # they are off already


@pytest.mark.usefixtures("a_full_card")
def test_auto_takes_the_cpu_where_a_gpu_cannot_serve_and_says_why(
    small_bundle: Bundle, small_index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ServerSettings(small_bundle.path, small_index, encode_threads=1, warmup_budget_ms=20)
    _, served = answers(settings, ["who"])
    assert served.device == "cpu"
    assert "device: the CPU, because cuda:0 has 1.00 GiB of memory free" in caplog.text
