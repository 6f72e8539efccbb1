"""FAISS's structures that find candidates: which kinds are served, and what differs between them."""

import re
import threading
from typing import Any, Literal, cast

import faiss
import numpy as np
import numpy.typing as npt

from narrows.errors import IndexFileError
from narrows.index.presets import Plan
from narrows.index.rescoring import Rows

EF_CONSTRUCTION = 200  # as DPR builds its graphs (dpr/indexer/faiss_indexers.py)
WHERE = re.compile(r"^Error in .* at \S+:\d+: (Error: )?", re.DOTALL)
MAPPING = threading.Lock()  # FAISS says that a map is there before it is whole
Kind = Literal["lists", "graph", "codes"]


def make(plan: Plan, dim: int) -> faiss.Index:
    """An empty structure for vectors of `dim`.

    Raises:
        IndexFileError: FAISS does not know the factory string, or it names a kind that is not served.
    """
    try:
        if plan.augmented:
            index = faiss.index_factory(dim + 1, plan.factory, faiss.METRIC_L2)
        else:
            index = faiss.index_factory(dim, plan.factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise IndexFileError(
            f"FAISS makes no index of {dim} dimensions from {plan.factory!r} ({reason(error)})"
        ) from None
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is not None and ivf.nlist < 1:
        raise IndexFileError(f"{plan.factory!r} has no lists: give a number, as in IVF1024")
    if kind(index) == "graph":
        cast(Any, index).hnsw.efConstruction = EF_CONSTRUCTION
    return index


def reason(error: RuntimeError) -> str:
    """What FAISS says, without the place in its source."""
    return WHERE.sub("", str(error))


def kind(index: faiss.Index) -> Kind:
    """What sort of structure it is.

    Raises:
        IndexFileError: one that is not served.
    """
    inner = index
    while isinstance(inner, faiss.IndexPreTransform):
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
    """The vectors of some rows as the structure holds them, float32 (rows, its dimensions)."""
    ivf: Any = faiss.try_extract_index_ivf(index)
    with MAPPING:
        if ivf is not None and ivf.direct_map.no():
            lists: Any = faiss.downcast_index(ivf)
            if isinstance(lists, faiss.IndexIVFPQFastScan):
                cast(Any, lists).fine_quantizer = lists.pq  # which FAISS, reading a file, forgets, and crashes without
            ivf.make_direct_map()  # 8 bytes a vector: where each one is
    found: npt.NDArray[np.float32] = index.reconstruct_batch(rows)
    return found


def search_all(index: faiss.Index, query: npt.NDArray[np.float32], fetch: int) -> tuple[npt.NDArray[np.float32], Rows]:
    """As index.search, of one query, but past every short cut: all lists, or the graph's vectors one by one."""
    if isinstance(index, faiss.IndexHNSW):
        return faiss.downcast_index(index.storage).search(query, fetch)
    ivf = faiss.try_extract_index_ivf(index)
    if ivf is None:
        return index.search(query, fetch)
    search_parameters: Any = faiss  # its stubs do not know their keywords
    coarse = None
    if isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexHNSW):
        coarse = search_parameters.SearchParametersHNSW(efSearch=ivf.nlist)
    parameters = search_parameters.SearchParametersIVF(nprobe=ivf.nlist, quantizer_params=coarse)
    if isinstance(index, faiss.IndexPreTransform):
        parameters = search_parameters.SearchParametersPreTransform(index_params=parameters)
    return index.search(query, fetch, params=parameters)
