"""What towers and index take on a GPU, counted before they are loaded."""

import pytest

from narrows import variants
from narrows.bundle import Bundle
from narrows.device import ARENA_BYTES
from narrows.errors import BundleError, DeviceError
from narrows.gpu_loading import KERNELS_BYTES, Need, check_fits, towers_need, vectors_need

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
        check_fits("cuda:0", needed, 24 * GIB)
    message = str(refused.value)
    assert message.startswith("cuda:0 has 24.00 GiB of memory free, and 32.52 GiB are needed (towers 3.00 GiB, ")
    assert "10,000,000 vectors of 768 in fp32 29.02 GiB, searching them 0.50 GiB)" in message
    assert "--gpu-vectors fp16" in message


def test_a_gpu_answers_by_the_first_of_its_variants_that_is_sound(variants_bundle: Bundle) -> None:
    """No report vouches for fp16 in this bundle: fp32 it is, unless fp16 is asked for."""
    runs = ("fp16", "fp32")
    choice = variants.suited(runs, variants_bundle.manifest, "fp32", "")
    assert (choice.question, choice.passage, choice.warning) == ("fp32", "fp32", "")
    asked = variants.suited(runs, variants_bundle.manifest, "fp32", "fp16")
    assert (asked.question, asked.passage) == ("fp16", "fp32")
    assert "no quality report" in asked.warning
