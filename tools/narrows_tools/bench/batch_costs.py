"""What batches cost on this machine, measured finely: what a simulation is fed with."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from narrows import costs, durable, manifests, variants
from narrows.bundle import open_bundle
from narrows.costs import Bucket, CostTable
from narrows.errors import BenchmarkError
from narrows.index.opened import open_index
from narrows.towers import Tower, load_towers
from narrows_tools.bench.simulation import Server, Stage, noisy

SCHEMA_VERSION = 1
LENGTHS = (8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 160, 192, 224, 256)
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
MAX_BATCH_TOKENS = 1024
WARMUP_BUDGET_MS = 1500.0  # a server's default
SEARCH_SIZES, SEARCH_K, SEARCH_BUDGET_MS = 32, 100, 300.0  # as a server measures an index

Advance = Callable[[], object]


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """The batches of a question encoder, and those of an index if there is one.

    `believed` is the table that a server measures when it starts; `actual` has the median of every size and length on a
    finer grid, and `noise` every single time as a multiple of its median.
    """

    bundle: str
    variant: str
    threads: int
    believed: CostTable
    actual: CostTable
    noise: tuple[float, ...]
    search: CostTable | None = None
    schema_version: int = SCHEMA_VERSION

    def server(self, noise_seed: int | None = None) -> Server:
        """A server on these costs; with a seed, one whose batches take as unequally long as the measured ones.

        With one thread the search takes turns with the encoder, as in a server on one core.
        """
        took_ms = self.actual.ms if noise_seed is None else noisy(self.actual.ms, self.noise, noise_seed)
        search = Stage.of(self.search) if self.search else None
        return Server(Stage.of(self.believed, took_ms), search, own_thread=self.threads > 1)


def save(file: Path, batch_costs: BatchCosts) -> None:
    """Writes the costs: whole, or not at all."""
    durable.write_file(file, manifests.encode(batch_costs))


def load(file: Path) -> BatchCosts:
    """Reads saved costs.

    Raises:
        BenchmarkError: there are none, or they are damaged, or of another schema version.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"{file} cannot be read: {error.strerror}") from None
    return manifests.decode(data, BatchCosts, SCHEMA_VERSION, file, BenchmarkError)


def grid(max_tokens: int) -> list[tuple[int, int]]:
    """(batch size, tokens) of what is measured for a tower that reads so many tokens."""
    lengths = [length for length in LENGTHS if length < max_tokens] + [min(max_tokens, LENGTHS[-1])]
    return [(size, length) for length in lengths for size in SIZES if size == 1 or size * length <= MAX_BATCH_TOKENS]


def measure(
    bundle: Path, index: Path | None, variant: str, threads: int, passes: int, advance: Advance = lambda: None
) -> BatchCosts:
    """Measures a bundle's question encoder, in passes over the whole grid in changing order, and an index.

    `variant` may be empty: what a server would take. `advance` is called after each batch of the grid.

    Raises:
        BundleError, IndexFileError, MismatchError: as opening them does.
    """
    opened = open_bundle(bundle)
    found = open_index(index, opened, threads, "stamp") if index else None
    choice = variants.choose(opened.manifest, found.manifest.variant if found else None, variant)
    tower = load_towers(opened, choice.question, threads, ["question_encoder"])["question_encoder"]
    believed = tower.measure_costs(WARMUP_BUDGET_MS)
    times: dict[tuple[int, int], list[float]] = {cell: [] for cell in grid(tower.manifest.max_tokens)}
    for cell in _shuffled(list(times), passes):
        times[cell].append(_batch_ms(tower, *cell))
        advance()
    medians = {cell: statistics.median(values) for cell, values in times.items()}
    noise = tuple(value / medians[cell] for cell, values in times.items() for value in values)
    search = None
    if found is not None:
        queries = np.random.default_rng(0).standard_normal((SEARCH_SIZES, found.vectors.dim)).astype(np.float32)
        search_batch = found.vectors.search
        search = costs.measure(
            lambda size, _: search_batch(queries[:size], SEARCH_K),
            [1],
            lambda _: SEARCH_SIZES,
            SEARCH_BUDGET_MS,
            time.monotonic,
        )
    return BatchCosts(
        opened.manifest.name, choice.question, threads, believed, _table(medians, tower.packed), noise, search
    )


def _shuffled(cells: list[tuple[int, int]], passes: int) -> Iterator[tuple[int, int]]:
    """Every cell once a pass, so that what slows the machine for a while slows no part of the grid more than others."""
    draw = np.random.default_rng(0)
    for _ in range(passes):
        yield from (cells[number] for number in draw.permutation(len(cells)))


def _batch_ms(tower: Tower, size: int, tokens: int) -> float:
    batch = [np.full(tokens, tower.tokenizer.pad_id, dtype=np.int64)] * size
    started_s = time.perf_counter()
    tower.encoder.encode(batch)
    return (time.perf_counter() - started_s) * 1e3


def _table(medians: dict[tuple[int, int], float], packed: bool) -> CostTable:
    buckets = []
    for tokens in sorted({tokens for _, tokens in medians}):
        sizes = sorted(size for size, length in medians if length == tokens)
        buckets.append(Bucket(tokens, tuple(sizes), tuple(medians[size, tokens] for size in sizes)))
    return CostTable(tuple(buckets), packed)
