"""Towers and index onto a GPU: what they take is counted before either is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass

from narrows import cuda, variants
from narrows.bundle import REFERENCE_VARIANT, Bundle, Role
from narrows.device import ARENA_BYTES, CudaDevice
from narrows.errors import DeviceError
from narrows.index import gpu
from narrows.index.candidates import Storage
from narrows.index.gpu import GpuCandidates
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
    storage = gpu.storage(settings.gpu_vectors, device.number, index.vectors.max_norm) if index else None
    needed = towers_need(bundle, names)
    if index and storage:
        needed += vectors_need(index.manifest.count, index.manifest.dim, storage)
    advice = ""
    if storage == "fp32":
        advice = "hold the vectors in half precision (--gpu-vectors fp16), "
    if storage:
        advice += "leave them to the CPU (--gpu-vectors off), "
    check_fits(device.name, needed, cuda.free_bytes(device.number), advice)
    towers = load_towers(bundle, names, 1, list(names), device=device)
    if index and storage:
        vectors = index.vectors
        vectors.ask_first(GpuCandidates(vectors.vectors, vectors.max_norm, device.number, storage))
    return choice, towers


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
