"""FAISS's structures that find candidates: which kinds are served, and what differs between them."""

import re
import threading
from collections.abc import Iterator
from typing import Any, Literal, cast

import faiss
import numpy as np
import numpy.typing as npt

from narrows.errors import IndexFileError
from narrows.index.presets import Plan
from narrows.index.rescoring import Rows

EF_CONSTRUCTION = 200  # as DPR builds its graphs (dpr/indexer/faiss_indexers.py)
# How hard a graph of centroids looks for a vector's list. Of 2,000 vectors of a trained DPR pair, with 4,096 lists,
# FAISS's own 16 misses the nearest list of one in a hundred, 64 of none.
EF_ASSIGNMENT = 64
WHERE = re.compile(r"^Error in .* at \S+:\d+: (Error: )?", re.DOTALL)
MAPPING = threading.Lock()  # FAISS says that a map is there before it is whole
MOST_LINKS = 512
ROTATIONS = (faiss.OPQMatrix, faiss.RandomRotationMatrix)
Kind = Literal["lists", "graph", "codes"]


def make(plan: Plan, dim: int) -> faiss.Index:
    """An empty structure for vectors of `dim`.

    Raises:
        IndexFileError: FAISS does not know the factory string, or it names what is not served.
    """
    links = re.search(r"HNSW(\d+)", plan.factory)
    if links and not 2 <= int(links[1]) <= MOST_LINKS:  # FAISS aborts the process for 0
        raise IndexFileError(f"{plan.factory!r}: a graph has 2 to {MOST_LINKS} links a node, as in HNSW32")
    metric = faiss.METRIC_L2 if plan.augmented else faiss.METRIC_INNER_PRODUCT
    try:
        index = faiss.index_factory(dim + plan.augmented, plan.factory, metric)
    except (RuntimeError, MemoryError) as error:
        raise IndexFileError(
            f"FAISS makes no index of {dim} dimensions from {plan.factory!r} ({reason(error)})"
        ) from None
    found = kind(index)
    if index.metric_type != metric:
        raise IndexFileError(
            f"FAISS knows {plan.factory!r} for Euclidean distances only: take another, such as HNSW32,SQ8"
        )
    if found == "lists" and not plan.lists:
        raise IndexFileError(f"{plan.factory!r} has no lists: give a number, as in IVF1024")
    if found == "graph":
        cast(Any, index).hnsw.efConstruction = EF_CONSTRUCTION
    if found == "lists" and isinstance(centroids := _centroids(index), faiss.IndexHNSW):
        cast(Any, centroids).hnsw.efSearch = EF_ASSIGNMENT
    return index


def reason(error: RuntimeError | MemoryError) -> str:
    """What FAISS says, without the place in its source."""
    return WHERE.sub("", str(error)) or "out of memory"


def kind(index: faiss.Index) -> Kind:
    """What sort of structure it is.

    Raises:
        IndexFileError: one that is not served.
    """
    inner = index
    while isinstance(inner, faiss.IndexPreTransform):
        chain: Any = inner.chain
        for number in range(chain.size()):
            transform = faiss.downcast_VectorTransform(chain.at(number))
            if not isinstance(transform, ROTATIONS):
                raise IndexFileError(
                    f"{type(transform).__name__} changes inner products, and is not served: of the transforms only "
                    "rotations (OPQ..., RR...) are"
                )
        inner = faiss.downcast_index(inner.index)
    if isinstance(inner, faiss.IndexIVF):
        return "lists"
    if isinstance(inner, faiss.IndexHNSW) and inner is index:
        return "graph"
    if isinstance(inner, faiss.IndexFlatCodes | faiss.IndexFastScan):
        return "codes"
    raise IndexFileError(
        f"{type(inner).__name__} is not served: give a factory string of inverted lists (IVF...), a graph (HNSW...) or "
        "codes (SQ..., PQ..., RaBitQ), and --rescore instead of a refining index"
    )


def augmented(vectors: npt.NDArray[np.float32], max_norm: float) -> npt.NDArray[np.float32]:
    """Vectors whose nearest to (query, 0) has the largest inner product with the query; float32 (rows, dim + 1).

    The last component is sqrt(max_norm^2 - |v|^2) (Bachrach et al. 2014, "Speeding Up the Xbox Recommender System Using
    a Euclidean Transformation for Inner-Product Spaces", section 3). `max_norm` is that of the longest vector of *all*
    shards. A vector that is longer still gets 0: it seems farther away than it is, by |v|^2 - max_norm^2, and may be
    missed, but its score and that of all others stay right. Where many are, build the graph again.
    """
    squared = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    rest = np.sqrt(np.maximum(max_norm**2 - squared, 0)).astype(np.float32)
    return np.hstack([vectors, rest[:, None]])


def set_parameters(index: faiss.Index, parameters: str) -> None:
    """Sets FAISS's search parameters, such as `nprobe=16`.

    Raises:
        IndexFileError: the index has no such parameters.
    """
    if not parameters:
        return
    try:
        space: Any = faiss.ParameterSpace()
        space.set_index_parameters(index, parameters)
    except RuntimeError:
        raise IndexFileError(f"{parameters!r} are no search parameters of this index: build it again") from None


def decode(index: faiss.Index, rows: Rows) -> npt.NDArray[np.float32]:
    """The vectors of some rows as the structure holds them, float32 (rows, its dimensions).

    Raises:
        IndexFileError: FAISS cannot decode this kind.
    """
    ivf: Any = faiss.try_extract_index_ivf(index)
    with MAPPING:
        if ivf is not None and ivf.direct_map.no():
            lists: Any = faiss.downcast_index(ivf)
            if isinstance(lists, faiss.IndexIVFPQFastScan):
                cast(Any, lists).fine_quantizer = lists.pq  # which FAISS, reading a file, forgets, and crashes without
            ivf.make_direct_map()  # 8 bytes a vector: where each one is
    try:
        found: npt.NDArray[np.float32] = index.reconstruct_batch(rows)
    except RuntimeError as error:
        raise undecodable(type(index).__name__, reason(error)) from None
    return found


def undecodable(what: str, why: str) -> IndexFileError:
    """The failure where a structure does not give its vectors back."""
    return IndexFileError(
        f"FAISS cannot decode the vectors of {what} ({why}): keep vectors beside it (--rescore fp16), or take another"
    )


def probing(index: faiss.Index) -> Iterator[faiss.SearchParameters]:
    """Parameters for twice as many lists as the index is set to probe, four times, ..., all of them."""
    ivf: Any = faiss.try_extract_index_ivf(index)
    if ivf is None:
        return
    of_graph = isinstance(_centroids(index), faiss.IndexHNSW)
    make: Any = faiss  # its stubs do not know the keywords of parameters
    lists = ivf.nprobe
    while lists < ivf.nlist:
        lists = min(2 * lists, ivf.nlist)
        coarse = make.SearchParametersHNSW(efSearch=2 * lists) if of_graph else None
        parameters = make.SearchParametersIVF(nprobe=lists, quantizer_params=coarse)
        is_rotated = isinstance(index, faiss.IndexPreTransform)
        yield make.SearchParametersPreTransform(index_params=parameters) if is_rotated else parameters


def _centroids(index: faiss.Index) -> faiss.Index:
    """Where lists find the ones to look into."""
    ivf: Any = faiss.try_extract_index_ivf(index)
    return faiss.downcast_index(ivf.quantizer)
