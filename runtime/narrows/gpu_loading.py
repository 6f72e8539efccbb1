"""Towers and index onto a GPU: what they take is counted before either is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt

from narrows import cuda, variants
from narrows.bundle import REFERENCE_VARIANT, Bundle, Role
from narrows.device import ARENA_BYTES, CudaDevice
from narrows.errors import DeviceError
from narrows.index import gpu
from narrows.index.candidates import Storage
from narrows.index.flat import FlatIndex
from narrows.index.gpu import ITEM_BYTES, GpuCandidates
from narrows.index.opened import OpenIndex
from narrows.settings import ServerSettings
from narrows.towers import Tower, load_towers
from narrows.variants import Choice

KERNELS_BYTES = 512 * 2**20  # what CUDA's libraries take for their code and their work
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Need:
    """Something that takes memory on the card."""

    what: str
    size_bytes: int


def load_on_gpu(
    settings: ServerSettings, bundle: Bundle, index: OpenIndex | None, device: CudaDevice
) -> tuple[Choice, dict[Role, Tower]]:
    """Loads the towers, and has the index get its candidates from the card.

    Raises:
        BundleError: a tower cannot be loaded, or is off its golden embeddings there.
        DeviceError: the memory that is free is too little; the device does not run the variants, or FAISS no GPU.
    """
    index_variant = index.manifest.variant if index else None
    choice = variants.suited(device.variants, bundle.manifest, index_variant, settings.variant)
    names: dict[Role, str] = {"question_encoder": choice.question, "context_encoder": choice.passage}
    if bundle.manifest.reader:
        names["reader"] = REFERENCE_VARIANT
    flat = _scanned(index, settings) if index else None
    storage = gpu.storage(settings.gpu_vectors, device.number, flat.max_norm) if flat else None
    needed = towers_need(bundle, names)
    if flat and storage:
        needed += vectors_need(flat.count, flat.dim, storage)
    advice = ""
    if storage == "fp32":
        advice = "hold the vectors in half precision (--gpu-vectors fp16), "
    if storage:
        advice += "leave them to the CPU (--gpu-vectors off), "
    check_fits(device.name, needed, cuda.free_bytes(device.number), advice)
    towers = load_towers(bundle, names, 1, list(names), device=device)
    if flat and storage:
        vectors = cast(npt.NDArray[np.float32], flat.vectors)
        flat.ask_first(GpuCandidates(vectors, flat.max_norm, device.number, storage))
    return choice, towers


def _scanned(index: OpenIndex, settings: ServerSettings) -> FlatIndex | None:
    """The index, if a card can search its vectors: only flat ones of float32, so far; others are a CPU's.

    Raises:
        DeviceError: it cannot, and the settings say that it must.
    """
    vectors = index.vectors
    if isinstance(vectors, FlatIndex) and vectors.fidelity == "fp32":
        return vectors
    if settings.gpu_vectors in ITEM_BYTES:
        raise DeviceError(
            f"a GPU searches flat indexes only, and {index.manifest.name} is {index.manifest.plan.factory}: leave it "
            "to the CPU (--gpu-vectors auto), or make a flat one"
        )
    return None


def towers_need(bundle: Bundle, names: dict[Role, str]) -> list[Need]:
    """Weights, activations and libraries; a tower that serves both roles is there once.

    An arena grows to what the largest batches take, ARENA_BYTES at most.

    Raises:
        BundleError: the bundle lacks a variant.
    """
    found = {"CUDA's libraries": KERNELS_BYTES}
    for role, name in names.items():
        what = f"{bundle.tower(role).directory.replace('_', ' ')} in {name}"
        found[what] = bundle.variant(role, name).size_bytes + ARENA_BYTES
    return [Need(what, size_bytes) for what, size_bytes in found.items()]


def vectors_need(count: int, dim: int, storage: Storage) -> list[Need]:
    """The index."""
    return [
        Need(f"{count:,} vectors of {dim} in {storage}", gpu.bytes_needed(count, dim, storage)),
        Need("searching them", gpu.WORKING_BYTES),
    ]


def check_fits(device: str, needed: Sequence[Need], free_bytes: int, advice: str = "") -> None:
    """Refuses what does not fit.

    Raises:
        DeviceError: with all the numbers, and what would help: `advice`, a larger GPU, or none.
    """
    total = sum(need.size_bytes for need in needed)
    if total > free_bytes:
        parts = ", ".join(f"{need.what} {_gib(need.size_bytes)}" for need in needed)
        raise DeviceError(
            f"{device} has {_gib(free_bytes)} of memory free, and {_gib(total)} are needed ({parts}): {advice}take a "
            "larger GPU, or use --device cpu"
        )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
