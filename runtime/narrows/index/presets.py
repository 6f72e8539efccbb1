"""How vectors are held and searched: named presets, or any FAISS factory string of a kind that is served.

Exact presets hold all vectors and scan them. The others find candidates in a smaller or faster structure; where vectors
are stored beside it, candidates are scored again with those.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from narrows.errors import IndexFileError
from narrows.index import Precision

Store = Literal["none", "fp16", "fp32"]

EXACT: dict[str, Precision] = {"Flat": "fp32", "SQfp16": "fp16"}  # factory -> how the vectors are stored
LISTS_PER_ROOT = 4  # inverted lists for each square root of the count (FAISS, wiki, "Guidelines to choose an index")
LEAST_A_LIST = 39  # training vectors, below which FAISS warns that its k-means has too few
GRAPH_LISTS = 16_384  # from so many lists on, comparing a query with all of their centroids is dearer than a graph
PARTS_PER_DIM = 4  # components that one 4-bit code of ivfpq-fs stands for
DEFAULT_EFFORT_OF_A_GRAPH, DEFAULT_LISTS = 256, 64  # untuned: recall at 100 of 0.99 and 0.97, 16,176 passages
REFINE = 8  # candidates fetched, times k, to be scored again with the vectors beside them
LINKS = 32  # of an HNSW node; twice as many on the lowest level
SCANNED_ROWS = 200_000  # of 768 dimensions: what one core scans in 25 ms; more are searched by a structure
SCANNED_DIM = 768


@dataclass(frozen=True, slots=True)
class Preset:
    """A name for a factory string, and when to choose it.

    `refine` is how many candidates are fetched, times k; `augmented` whether vectors get one more component, so that a
    graph of Euclidean distances finds the largest inner products (narrows.index.structures).
    """

    name: str
    factory: str
    store: Store
    refine: float
    about: str
    augmented: bool = False


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("flat", "Flat", "fp32", 1, "exact; the default, best up to some 200,000 passages"),
        Preset("flat-fp16", "SQfp16", "fp16", 1, "exact over vectors in half precision: half the memory"),
        Preset("sq8", "SQ8", "none", 1, "all vectors scanned, a byte a dimension: a quarter of flat's memory"),
        Preset("hnsw", f"HNSW{LINKS},Flat", "none", 1, "a graph: fast at high recall, with more memory than flat"),
        Preset(
            "hnsw-l2", f"HNSW{LINKS},Flat", "none", 1,
            "a graph of Euclidean distances, as DPR builds it: slower than hnsw for the same recall, for comparison",
            augmented=True,
        ),
        Preset("ivf-sq8", "IVF{lists},SQ8", "none", 1, "some of the lists scanned, a byte a dimension: large indexes"),
        Preset(
            "ivfpq-fs", "IVF{lists},PQ{parts}x4fs", "fp16", REFINE,
            "a bit a component in memory, candidates scored again with fp16 vectors on disk",
        ),
        Preset(
            "rabitq", "IVF{lists},RaBitQ", "fp16", REFINE,
            "a bit a component in memory, candidates scored again with fp16 vectors on disk; quick to train",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a user asks for: a preset, or a factory string and what to score its candidates with, or a budget."""

    preset: str = "flat"
    factory: str = ""
    store: Store | None = None
    memory_budget_bytes: int = 0


FLAT = Wanted()


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """How hard to search: FAISS's parameters, as in `nprobe=16`, and how many candidates to fetch, times k."""

    parameters: str = ""
    refine: float = 1


EXHAUSTIVE = SearchSettings()


@dataclass(frozen=True, slots=True)
class Plan:
    """A structure for a certain number of vectors; and, at first, how hard to search it without any tuning."""

    preset: str = "flat"
    factory: str = "Flat"
    store: Store = "fp32"
    augmented: bool = False
    search: SearchSettings = EXHAUSTIVE

    @property
    def is_exact(self) -> bool:
        """Whether all vectors are scanned as they are stored."""
        return self.factory in EXACT

    @property
    def is_graph(self) -> bool:
        """Whether it is an HNSW graph."""
        return self.factory.startswith("HNSW")

    @property
    def lists(self) -> int:
        """How many inverted lists it has; 0 where it has none."""
        found = re.search(r"IVF(\d+)", self.factory)
        return int(found[1]) if found else 0

    @property
    def least_count(self) -> int:
        """How many vectors it takes to train it: one for each list, and for each word of a product quantizer."""
        words = re.search(r"(?<![A-Z])PQ\d+(?:x(\d+))?", self.factory)
        return max(1, self.lists, 2 ** int(words[1] or 8) if words else 0)

    def effort(self, value: int) -> str:
        """FAISS's parameters for a search of so much effort: lists probed, or nodes kept in view."""
        if self.is_graph:
            return f"efSearch={value}"
        if self.lists:
            # A graph over the centroids finds the nearest of them only with some more in view.
            return f"nprobe={value}" + (f",quantizer_efSearch={2 * value}" if "_HNSW" in self.factory else "")
        return ""

    @property
    def most_effort(self) -> int:
        """Beyond this, more effort changes nothing; 0 where there is none to choose."""
        return 2**14 if self.is_graph else self.lists


FLAT_PLAN = Plan()


def plan(wanted: Wanted, count: int, dim: int) -> Plan:
    """The structure for `count` vectors of `dim`.

    Raises:
        IndexFileError: no preset has that name, none fits into the budget, or a factory string has wrong braces.
    """
    preset = _preset(wanted, count, dim)
    lists = _lists(count)
    coarse = f"{lists}_HNSW32" if lists >= GRAPH_LISTS else str(lists)
    factory = preset.factory.replace("{lists}", coarse).replace("{parts}", str(_parts(dim)))
    if "{" in factory or "}" in factory:
        raise IndexFileError(f"{preset.factory!r}: only {{lists}} and {{parts}} are filled in; write numbers elsewhere")
    made = Plan(preset.name, factory, preset.store, preset.augmented)
    effort = DEFAULT_EFFORT_OF_A_GRAPH if made.is_graph else min(DEFAULT_LISTS, made.lists)
    return replace(made, search=SearchSettings(made.effort(effort), preset.refine))


def _preset(wanted: Wanted, count: int, dim: int) -> Preset:
    """The preset that is wanted, with the store that is wanted; or one for a factory string of the user's own."""
    if wanted.memory_budget_bytes:
        preset, _ = within(wanted.memory_budget_bytes, count, dim)
    elif wanted.factory:
        factory = wanted.factory.replace(" ", "")
        known = [preset for preset in PRESETS.values() if preset.factory == factory and not preset.augmented]
        preset = known[0] if known else Preset("custom", factory, "none", 1, "")
    elif wanted.preset in PRESETS:
        preset = PRESETS[wanted.preset]
    else:
        raise IndexFileError(f"there is no preset {wanted.preset!r}; there are {', '.join(PRESETS)}")
    if wanted.store is None or wanted.store == preset.store:
        return preset
    if preset.factory in EXACT:
        raise IndexFileError(f"{preset.name} scans the vectors that it holds: it takes no --rescore")
    return replace(preset, store=wanted.store, refine=1 if wanted.store == "none" else REFINE)


def _lists(count: int) -> int:
    """A power of two near 4 sqrt(count), that leaves each list enough vectors to train on."""
    wanted = round(math.log2(max(1.0, LISTS_PER_ROOT * count**0.5)))
    most = int(math.log2(max(1, count // LEAST_A_LIST)))
    return 2 ** min(wanted, most)  # type: ignore[no-any-return]  # of ints, none negative


def _parts(dim: int) -> int:
    """How many codes of ivfpq-fs: one for every four components, or for as few more as divide `dim`."""
    return next(parts for parts in range(max(1, dim // PARTS_PER_DIM), 0, -1) if dim % parts == 0)


def memory_bytes(preset: Preset, count: int, dim: int) -> int:
    """What a preset should have in memory to be fast; vectors that only score candidates again stay on disk."""
    a_vector: dict[str, float] = {
        "flat": 4 * dim,
        "flat-fp16": 2 * dim,
        "sq8": dim,
        # Links of 4 bytes, on the lowest level and the ones above it; level, offset.
        "hnsw": 4 * dim + 4 * (2 * LINKS + LINKS / (LINKS - 1)) + 12,
        "hnsw-l2": 4 * (dim + 1) + 4 * (2 * LINKS + LINKS / (LINKS - 1)) + 12,
        "ivf-sq8": dim + 8,
        "ivfpq-fs": _parts(dim) / 2 + 8,
        "rabitq": dim / 8 + 8 + 8,
    }
    centroids = 4 * dim * _lists(count) if "{lists}" in preset.factory else 0
    return math.ceil(a_vector[preset.name] * count) + centroids


def within(budget_bytes: int, count: int, dim: int) -> tuple[Preset, Sequence[str]]:
    """The first preset, in the order of preference for so many vectors, that fits; and why, a line for each.

    Few vectors are scanned exactly; of many, a graph finds the most in a given time, and lists are smaller.

    Raises:
        IndexFileError: none fits.
    """
    few = count * dim <= SCANNED_ROWS * SCANNED_DIM
    order = ("flat", "flat-fp16", "sq8", "ivfpq-fs", "rabitq") if few else ("hnsw", "ivf-sq8", "ivfpq-fs", "rabitq")
    lines = []
    for name in order:
        needed = memory_bytes(PRESETS[name], count, dim)
        fits = needed <= budget_bytes
        lines.append(f"{name}: {_size(needed)} {'fits' if fits else 'is more than'} {_size(budget_bytes)}")
        if fits:
            return PRESETS[name], lines
    raise IndexFileError(
        f"no preset holds {count:,} vectors of {dim} in {_size(budget_bytes)} ({'; '.join(lines)}): give a larger "
        "--memory-budget, or serve parts of the passages from several servers"
    )


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.1f} MiB"
