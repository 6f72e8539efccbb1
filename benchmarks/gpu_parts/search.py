"""Section 5: exact search over random vectors: ours, FAISS with cuVS, and a plain product with TopK; then IVF.

The floor of a batch is the time to read all vectors once, or that of its product if it is longer.
"""

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import onnxruntime

from benchmarks.gpu_parts import graphs, vectors
from benchmarks.gpu_parts.rows import Bench
from benchmarks.gpu_parts.vectors import VectorFile
from narrows import cuda
from narrows.device import CudaDevice, Device, choose
from narrows.index import gpu
from narrows.index.candidates import Candidates, CpuCandidates, Storage
from narrows.index.flat import MARGIN
from narrows.index.gpu import GpuCandidates
from narrows.process import available_cores

K = 20
GOAL_RATIO, GOAL_VECTORS, GOAL_BATCH = 1.5, 10_000_000, 32
MILLION_S = 4.0  # the least time that so many vectors are begun with; any part of them needs a third of it
SCORES_BYTES = 2 * 2**30  # of a plain product: more are not made
LISTS, PROBED, TRAINED_PER_LIST = 1024, 32, 40
Queries = npt.NDArray[np.float32]
Search = Callable[[Queries], object]


def run(bench: Bench) -> None:
    """Each number of vectors, the smallest first; IVF, which is a comparison and no goal, at the end."""
    device = choose(bench.order.device)
    for count in bench.order.sizes.vectors:
        _with_file(bench, device, count, "", partial(_count, bench, device))
    _with_file(bench, device, bench.order.sizes.ivf_vectors, ", IVF", partial(_ivf, bench, device))


def _with_file(bench: Bench, device: Device, count: int, what: str, part: Callable[[VectorFile], object]) -> None:
    """Runs a part with a file of random vectors, if there is room for it."""

    def made() -> None:
        file = vectors.make(bench.order.scratch / f"{count}.vectors", count, bench.order.sizes.dim)
        try:
            part(file)
        finally:
            file.file.unlink()

    if why := _no_room(bench, device, count):
        bench.skip(f"{count:,} vectors{what}", why)
    else:
        bench.attempt(f"{count:,} vectors{what}", made, needed_s=_needed_s(count))


def _no_room(bench: Bench, device: Device, count: int) -> str:
    size_bytes = 4 * count * bench.order.sizes.dim
    rooms = {
        f"free in {bench.order.scratch}": shutil.disk_usage(bench.order.scratch).free,
        "free memory": vectors.available_memory_bytes(),
    }
    needed = dict.fromkeys(rooms, size_bytes * vectors.ROOM)
    if isinstance(device, CudaDevice):
        rooms["free on the card"] = cuda.free_bytes(device.number)
        needed["free on the card"] = gpu.bytes_needed(count, bench.order.sizes.dim, "fp16") + gpu.WORKING_BYTES
    short = [
        f"{name}: {rooms[name] / 2**30:.1f} of {need / 2**30:.1f} GiB"
        for name, need in needed.items()
        if rooms[name] < need
    ]
    return "; ".join(short)


def _needed_s(count: int) -> float:
    return MILLION_S * count / 1e6 if count >= 1e6 else 0.0


def _count(bench: Bench, device: Device, file: VectorFile) -> None:
    label = f"{file.count:,} vectors"
    parts = {
        f"{label}, fp16": partial(_ours, bench, device, file, "fp16"),
        f"{label}, Gemm and TopK of ONNX Runtime": partial(_plain, bench, device, file),
        f"{label}, FAISS with cuVS, fp16": partial(_cuvs, bench, device, file, "fp16"),
        f"{label}, fp32": partial(_ours, bench, device, file, "fp32"),
        f"{label}, FAISS with cuVS, fp32": partial(_cuvs, bench, device, file, "fp32"),
    }
    for what, part in parts.items():
        bench.attempt(what, part, needed_s=_needed_s(file.count) / 3)


def _ours(bench: Bench, device: Device, file: VectorFile, storage: Storage) -> None:
    """Candidates alone, the search, and what re-scoring on the host adds."""
    index = file.open()
    source: Candidates
    if isinstance(device, CudaDevice):
        source = GpuCandidates(file.mapped(), index.max_norm, device.number, storage)
        index.ask_first(source)
    elif storage == "fp16":
        bench.skip(f"{file.count:,} vectors, fp16", "the CPU holds them in fp32")
        return
    else:
        flat: Any = faiss.read_index(str(file.file), faiss.IO_FLAG_MMAP_IFC)
        source = CpuCandidates(flat, available_cores(), file.count)
    for batch in bench.order.sizes.search_batches:
        asked = vectors.queries(batch, file.dim)
        alone = bench.timed(partial(source.search, asked, K + MARGIN)).p50_ms
        whole = bench.timed(partial(index.search, asked, K)).p50_ms
        what, floor_ms = (
            f"{file.count:,} x {file.dim}, {storage}, batch {batch}",
            _floor_ms(bench, file, storage, batch),
        )
        bench.row(f"{what}: candidates", alone, "ms", floor_ms, "floor")
        bench.row(f"{what}: search", whole, "ms", floor_ms, "floor")
        bench.row(f"{what}: re-scoring on the host, by difference", whole - alone, "ms")
        is_goal = (file.count, batch, storage) == (GOAL_VECTORS, GOAL_BATCH, "fp16")
        if is_goal and (read_ms := bench.order.floors.ms(size_bytes=2.0 * file.count * file.dim)):
            bench.row(f"{what}: candidates, of the time to read", alone / read_ms, "", GOAL_RATIO, "at most")


def _cuvs(bench: Bench, device: Device, file: VectorFile, storage: Storage) -> None:
    """FAISS's other kernels."""
    what = f"{file.count:,} x {file.dim}, FAISS with cuVS, {storage}"
    if not isinstance(device, CudaDevice):
        bench.skip(what, "a GPU's")
        return
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(gpu.WORKING_BYTES)
    config = faiss.GpuIndexFlatConfig()
    config.device, config.useFloat16, config.use_cuvs = device.number, storage == "fp16", True
    index = faiss.GpuIndexFlat(resources, file.dim, faiss.METRIC_INNER_PRODUCT, config)
    index.add(file.mapped())
    _batches(bench, file, what, storage, lambda asked: index.search(asked, K))


def _plain(bench: Bench, device: Device, file: VectorFile) -> None:
    """Half-precision vectors as they are, one product, one TopK: what anyone would write first."""
    held = graphs.on_device(file.half(), device)
    nodes: list[graphs.Node] = [
        ("Gemm", ["queries", "vectors"], ["all"], {"transB": 1}),
        ("TopK", ["all", "k"], ["scores", "rows"], {"axis": 1}),
    ]
    graph = graphs.half_graph(nodes, ["queries", "vectors", "k"], ["scores", "rows"], "k rows")
    what = f"{file.count:,} x {file.dim}, Gemm and TopK of ONNX Runtime, fp16"
    k = onnxruntime.OrtValue.ortvalue_from_numpy(np.array([K], dtype=np.int64))  # read by the host
    for batch in bench.order.sizes.search_batches:
        if 2 * batch * file.count > SCORES_BYTES:
            bench.skip(f"{what}, batch {batch}", f"its scores would take {2 * batch * file.count / 2**30:.1f} GiB")
            continue
        asked = graphs.on_device(vectors.queries(batch, file.dim).astype(np.float16), device)
        outputs = {"scores": device.buffer((batch, K), np.float16), "rows": device.buffer((batch, K), np.int64)}
        call = graphs.bound(graph, device, available_cores(), {"queries": asked, "vectors": held, "k": k}, outputs)
        floor_ms = _floor_ms(bench, file, "fp16", batch)
        bench.row(f"{what}, batch {batch}", bench.timed(call).p50_ms, "ms", floor_ms, "floor")


def _ivf(bench: Bench, device: Device, file: VectorFile) -> None:
    """Not exact: lists that are near the question; on the CPU, and cloned to the GPU."""
    lists = min(LISTS, file.count // TRAINED_PER_LIST)
    probed = min(PROBED, lists)
    held = file.mapped()
    faiss.omp_set_num_threads(available_cores())
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(file.dim), file.dim, lists, faiss.METRIC_INNER_PRODUCT)
    index.train(np.ascontiguousarray(held[: lists * TRAINED_PER_LIST]))
    index.add(held)
    index.nprobe = probed
    what = f"{file.count:,} x {file.dim}, IVF of {lists} lists, {probed} probed"
    _batches(bench, file, f"{what}, CPU", None, lambda asked: index.search(asked, K))
    if not isinstance(device, CudaDevice):
        bench.skip(f"{what}, cloned to the GPU", "there is none")
        return
    resources = faiss.StandardGpuResources()
    clone: Any = gpu.clone(index, resources, device.number, "fp16")
    clone.nprobe = probed
    _batches(bench, file, f"{what}, cloned to the GPU in fp16", None, lambda asked: clone.search(asked, K))
    asked = vectors.queries(max(bench.order.sizes.search_batches), file.dim)
    theirs, ours = index.search(asked, K)[1], clone.search(asked, K)[1]
    shared = [len(np.intersect1d(a, b)) / K for a, b in zip(theirs, ours, strict=True)]
    bench.row(f"{what}: answers of the clone that are the CPU's", float(np.mean(shared)), "")


def _batches(bench: Bench, file: VectorFile, what: str, storage: Storage | None, search: Search) -> None:
    """A row for each size of batch; `storage` None: not all vectors are read, there is no floor."""
    for batch in bench.order.sizes.search_batches:
        times = bench.timed(partial(search, vectors.queries(batch, file.dim)))
        floor_ms = _floor_ms(bench, file, storage, batch) if storage else None
        bench.row(f"{what}, batch {batch}", times.p50_ms, "ms", floor_ms, "floor")


def _floor_ms(bench: Bench, file: VectorFile, storage: Storage, batch: int) -> float | None:
    operations = 2.0 * batch * file.count * file.dim if storage == "fp16" else 0.0
    return bench.order.floors.ms(operations, float(gpu.ITEM_BYTES[storage]) * file.count * file.dim)
