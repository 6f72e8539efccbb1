"""`narrows index build`: a file of passages -> a sealed generation of a flat index.

Two passes. The first checks the whole file and stores the passages, so that a bad row is found before hours of
encoding. The second reads them back, tokenizes, and encodes in batches of like length.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt

import narrows
from narrows import durable, manifests, passage_files
from narrows.bundle import Bundle
from narrows.costs import CostTable
from narrows.encoder import Embeddings
from narrows.errors import IndexFileError, PassageFileError
from narrows.index import flat
from narrows.index.store import (
    GENERATION,
    MANIFEST,
    SCHEMA_VERSION,
    VECTORS,
    IndexManifest,
    current_generation,
    describe_file,
    new_generation,
)
from narrows.passages import FILES, Passages, PassageWriter
from narrows.tokenizer import TokenizedText
from narrows.towers import Tower, load_towers

CHUNK_PASSAGES = 4096  # tokenized and sorted by length together
SAMPLE_PASSAGES = 512  # tokenized for the estimate
COSTS_BUDGET_MS = 4000.0


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build. `replace` makes a new generation of an index that exists."""

    passages: Path
    out: Path
    name: str
    variant: str
    threads: int
    replace: bool = False


class Progress:
    """Told how the build goes; this one says nothing."""

    def reading(self, passages: int) -> None:
        """So many passages were read and checked."""

    def estimated(self, passages: int, seconds: float) -> None:
        """Encoding begins; it should take so long."""

    def encoded(self, passages: int) -> None:
        """So many more passages were encoded."""


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What was built, and how fast the encoding went."""

    index: str
    generation: str
    count: int
    dim: int
    truncated_count: int
    size_bytes: int
    encode_s: float
    passages_per_s: float


def build_index(bundle: Bundle, request: BuildRequest, progress: Progress) -> BuildReport:
    """Builds an index.

    Raises:
        PassageFileError: the file breaks its format, or holds no passage.
        IndexFileError: the output exists and `replace` is not set, or is something else than an index.
        BundleError: the context encoder cannot be loaded.
    """
    _check_output(request)
    tower = load_towers(bundle, request.variant, request.threads, ["context_encoder"])["context_encoder"]
    with new_generation(request.out) as directory:
        source_sha256 = _store_passages(request.passages, directory, progress)
        passages = Passages(directory)
        costs = tower.measure_costs(COSTS_BUDGET_MS)
        progress.estimated(len(passages), _estimate_s(passages, tower, costs))
        started_s = time.monotonic()
        vectors = faiss.IndexFlatIP(tower.manifest.dim)
        truncated_count, max_norm = 0, 0.0
        for embeddings, truncated in _encode_chunks(passages, tower, costs, progress.encoded):
            vectors.add(embeddings)
            truncated_count += truncated
            max_norm = max(max_norm, float(np.linalg.norm(embeddings.astype(np.float64), axis=1).max()))
        encode_s = time.monotonic() - started_s
        flat.write(vectors, directory / VECTORS)
        files = {name: describe_file(directory / name) for name in (VECTORS, *FILES)}
        manifest = IndexManifest(
            schema_version=SCHEMA_VERSION,
            name=request.name,
            created_by=f"narrows {narrows.__version__}",
            tower_id=tower.manifest.tower_id,
            variant=request.variant,
            bundle=bundle.manifest.name,
            metric="inner_product",
            factory="Flat",
            dim=tower.manifest.dim,
            count=len(passages),
            truncated_count=truncated_count,
            max_norm=max_norm,
            source=request.passages.name,
            source_sha256=source_sha256,
            files=files,
        )
        (directory / MANIFEST).write_bytes(manifests.encode(manifest))
    return BuildReport(
        index=str(request.out),
        generation=current_generation(request.out) or "",
        count=manifest.count,
        dim=manifest.dim,
        truncated_count=truncated_count,
        size_bytes=sum(file.size_bytes for file in files.values()),
        encode_s=encode_s,
        passages_per_s=manifest.count / max(encode_s, 1e-9),
    )


def _check_output(request: BuildRequest) -> None:
    out = request.out
    if current_generation(out) is not None:
        if not request.replace:
            raise IndexFileError(f"{out} holds an index already: give --replace to build its next generation")
    elif out.exists() and (not out.is_dir() or any(not _of_killed_build(entry) for entry in out.iterdir())):
        raise IndexFileError(f"{out} exists and is not an index: choose another --out")


def _of_killed_build(entry: Path) -> bool:
    """Whether a build that was killed before CURRENT existed may have left this; hidden files do not count."""
    return entry.name.startswith(".") or GENERATION.fullmatch(entry.name) is not None


def _store_passages(file: Path, directory: Path, progress: Progress) -> str:
    count = 0
    with PassageWriter(directory) as writer:
        for count, row in enumerate(passage_files.read(file), start=1):
            writer.append(row.passage)
            if count % 1000 == 0:
                progress.reading(count)
        if count == 0:
            raise PassageFileError(f"{file}: it holds no passages")
    progress.reading(count)
    return durable.sha256_file(file)


def _estimate_s(passages: Passages, tower: Tower, costs: CostTable) -> float:
    """Seconds to encode all, from the lengths of an even sample and the measured cost of each length."""
    rows = np.unique(np.linspace(0, len(passages) - 1, SAMPLE_PASSAGES).astype(np.int64))
    sample = _tokenize(passages, tower, rows)
    return sum(costs.item_ms(len(text.ids)) for text in sample) / len(sample) * len(passages) / 1e3


def _tokenize(passages: Passages, tower: Tower, rows: npt.NDArray[np.int64]) -> list[TokenizedText]:
    return tower.tokenizer.passages([(passage.title, passage.text) for passage in passages.get(rows)])


def _encode_chunks(
    passages: Passages, tower: Tower, costs: CostTable, encoded: Callable[[int], None]
) -> Iterator[tuple[Embeddings, int]]:
    """Yields the embeddings of consecutive rows, float32 (rows, dim), and how many of their texts were cut."""
    for start in range(0, len(passages), CHUNK_PASSAGES):
        rows = np.arange(start, min(start + CHUNK_PASSAGES, len(passages)))
        texts = _tokenize(passages, tower, rows)
        embeddings = np.empty((len(texts), tower.manifest.dim), dtype=np.float32)
        for batch in _batches([len(text.ids) for text in texts], costs):
            embeddings[batch] = tower.encoder.encode([texts[number].ids for number in batch])
            encoded(len(batch))
        yield embeddings, sum(text.truncated for text in texts)


def _batches(lengths: Sequence[int], costs: CostTable) -> list[list[int]]:
    """Positions grouped by like length; the groups shuffled with a fixed seed, so that the ETA holds from the start."""
    longest_first = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches = []
    while longest_first:
        cap = costs.cap(lengths[longest_first[0]])
        batches.append(longest_first[:cap])
        longest_first = longest_first[cap:]
    random.Random(0).shuffle(batches)  # noqa: S311  (no secret)
    return batches
