"""FAISS on a GPU: candidates from a copy of the vectors in the card's memory.

Classic kernels, not cuVS's: those add page by page with little more memory than the vectors take (FAISS,
gpu/GpuIndexFlat.cu, gpu/GpuIndex.cu); benchmarks/gpu.py compares them.
"""

from typing import Literal

import faiss
import numpy as np
import numpy.typing as npt

from narrows.errors import DeviceError
from narrows.index.candidates import Found, Storage
from narrows.index.vector_file import LARGEST_HALF

MAX_FETCH = 2048  # FAISS's kernels select no more
MAX_QUERIES = 256  # of one search: their scores lie in FAISS's working memory
# For scores and selection. FAISS goes through the vectors in tiles of 1 GiB of scores, whatever it is given (FAISS,
# gpu/impl/DistanceUtils.cuh), and takes what does not fit from the driver, in every search anew.
WORKING_BYTES = 3 * 2**29
PAGE_BYTES = 3 * 2**27  # on the way in: a page of 256 MiB in float32, and the same in half precision
NORM_BYTES = 8  # of a vector: they are computed anew for each page, beside those of before
ITEM_BYTES: dict[Storage, int] = {"fp32": 4, "fp16": 2}


def storage(wanted: str, gpu: int, max_norm: float) -> Storage | None:
    """How a GPU is to hold vectors of at most that norm, by the setting gpu_vectors; None: not at all.

    Raises:
        DeviceError: they were asked for, and FAISS sees no such GPU.
    """
    sees = faiss_sees(gpu)
    if wanted == "off" or (wanted == "auto" and not sees):
        return None
    if not sees:
        raise DeviceError(
            f"the FAISS that is installed does not see GPU {gpu}: pip uninstall faiss-cpu, pip install 'narrows[gpu]', "
            "or leave the vectors to the CPU (--gpu-vectors off)"
        )
    return "fp32" if wanted == "fp32" or (wanted == "auto" and max_norm > LARGEST_HALF) else "fp16"


def faiss_sees(gpu: int) -> bool:
    """Whether FAISS was built for GPUs, and could use this one."""
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > gpu


def bytes_needed(count: int, dim: int, storage: Storage) -> int:
    """The card's memory for vectors, their norms and the adding of them."""
    return count * (dim * ITEM_BYTES[storage] + NORM_BYTES) + PAGE_BYTES


def clone(index: faiss.Index, resources: "faiss.StandardGpuResources", gpu: int, storage: Storage) -> faiss.Index:
    """A copy on the card of an index of inverted lists; its lists in the order that they have, its ids with them.

    Raises:
        DeviceError: FAISS has no code for such an index on a GPU, or the card no room.
    """
    options = faiss.GpuClonerOptions()
    options.useFloat16 = options.useFloat16CoarseQuantizer = storage == "fp16"
    options.reserveVecs, options.use_cuvs = index.ntotal, False
    try:
        return faiss.index_cpu_to_gpu(resources, gpu, index, options)
    except RuntimeError as error:
        raise DeviceError(f"FAISS cannot copy the index to GPU {gpu}: {error}") from None


class GpuCandidates:
    """A flat index on one GPU. FAISS aborts the process when two threads use it at a time: one must drive it."""

    affinity: Literal["own", "device"] = "device"
    max_fetch = MAX_FETCH

    def __init__(self, vectors: npt.NDArray[np.float32], max_norm: float, gpu: int, storage: Storage) -> None:
        """Copies `vectors`, float32 (count, dim), to the card, in one add: a second one would need the room of both.

        Raises:
            DeviceError: half precision cannot hold them, or the card cannot, or search them.
        """
        if storage == "fp16" and max_norm > LARGEST_HALF:
            raise DeviceError(
                f"the longest vector has the norm {max_norm:g}, beyond half precision's {LARGEST_HALF:g}: set "
                "gpu_vectors to fp32"
            )
        self.storage: Storage = storage
        try:
            self._resources = faiss.StandardGpuResources()
            self._resources.setTempMemory(WORKING_BYTES)
            config = faiss.GpuIndexFlatConfig()
            config.device, config.useFloat16, config.use_cuvs = gpu, storage == "fp16", False
            dim = vectors.shape[1]
            self._index = faiss.GpuIndexFlat(self._resources, dim, faiss.METRIC_INNER_PRODUCT, config)
            self._index.add(vectors)
            self.search(np.zeros((MAX_QUERIES, dim), dtype=np.float32), MAX_FETCH)  # the most that it will ever do
        except RuntimeError as error:
            raise DeviceError(f"FAISS cannot hold and search {len(vectors)} vectors on GPU {gpu}: {error}") from None

    def search(self, queries: npt.NDArray[np.float32], fetch: int) -> Found:
        """See narrows.index.candidates.Candidates."""
        parts = [
            self._index.search(queries[start : start + MAX_QUERIES], fetch)
            for start in range(0, len(queries), MAX_QUERIES)
        ]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([rows for _, rows in parts])
