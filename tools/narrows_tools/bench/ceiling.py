"""What the towers can do on the server's cores with nothing around them: the measure of every server."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from narrows.bundle import Role, open_bundle
from narrows.encoder import Encoder, load_encoder
from narrows.process import available_cores
from narrows.tokenizer import TokenIds, TowerTokenizer, load_tokenizer
from narrows_tools.bench.pinned import Cores
from narrows_tools.bench.targets import Text
from narrows_tools.bench.workers import Worker

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
FRUITLESS = 3  # so many sizes in a row that gain nothing end the search
ROLE: Role = "question_encoder"


@dataclass(frozen=True, slots=True)
class CeilingOrder:
    """Measure these texts, each combination of threads and batch size for about `seconds`."""

    texts: Sequence[Text]
    seconds: float


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Texts per second of the best combination, of batches sorted by length, tokenized beforehand; and of all.

    `cpu_ms_per_text` is the least of any combination; other work on the machine hardly touches it.
    """

    per_s: float
    cpu_ms_per_text: float
    threads: int
    batch_size: int
    grid: dict[str, float]  # texts per second by "threads x batch size"


@dataclass(frozen=True, slots=True)
class SingleOrder:
    """Measure each of these texts alone, tokenizing included, after a pause: a core that has idled is slower."""

    texts: Sequence[Text]
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Single:
    """Milliseconds of one text alone, on all cores."""

    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class InProcess:
    """The question tower of a bundle in one variant."""

    bundle: Path
    variant: str


InProcessTowers = Worker[CeilingOrder | SingleOrder, Ceiling | Single]


def in_process(what: InProcess, cores: Cores) -> InProcessTowers:
    """Starts a process on these cores with the tower loaded.

    Raises:
        BenchmarkError: the bundle cannot be loaded.
    """
    return Worker(_serve, what, cores)


def _serve(connection: Connection, what: InProcess) -> None:
    bundle = open_bundle(what.bundle)
    tokenizer = load_tokenizer(bundle, bundle.tower(ROLE))
    cores = available_cores()
    counts = {1 << doublings for doublings in range(cores.bit_length())} | {cores}
    encoders = {
        threads: load_encoder(bundle, ROLE, what.variant, tokenizer.pad_id, threads) for threads in sorted(counts)
    }
    connection.send((True, None))
    while (order := connection.recv()) is not None:
        match order:
            case SingleOrder(texts, pause_s):
                connection.send((True, _single(tokenizer, encoders[cores], texts, pause_s)))
            case CeilingOrder(texts, seconds):
                ids = [text.ids for text in tokenizer.questions([text.text for text in texts])]
                connection.send((True, ceiling_of(encoders, ids, seconds)))


def _single(tokenizer: TowerTokenizer, encoder: Encoder, texts: Sequence[Text], pause_s: float) -> Single:
    times_ms = []
    for text in texts:
        time.sleep(pause_s)
        start_s = time.perf_counter()
        encoder.encode([tokenizer.questions([text.text])[0].ids])
        times_ms.append((time.perf_counter() - start_s) * 1e3)
    return Single(float(np.percentile(times_ms, 50)), float(np.percentile(times_ms, 99)))


def ceiling_of(encoders: Mapping[int, Encoder], token_ids: Sequence[TokenIds], seconds: float) -> Ceiling:
    """Measures all combinations of encoders, by their numbers of threads, and batch sizes.

    `token_ids` are of at least one text; each combination has about so many seconds.
    """
    grid: dict[tuple[int, int], _Cell] = {}
    for threads, encoder in encoders.items():
        best_per_s, fruitless = 0.0, 0
        for size in BATCH_SIZES:
            if fruitless == FRUITLESS or size > len(token_ids):
                break
            cell = grid[threads, size] = _encode(encoder, token_ids, size, seconds)
            fruitless = fruitless + 1 if cell.per_s < best_per_s else 0
            best_per_s = max(best_per_s, cell.per_s)
    threads, size = max(grid, key=lambda combination: grid[combination].per_s)
    named = {f"{threads}x{size}": cell.per_s for (threads, size), cell in grid.items()}
    cpu_ms_per_text = min(cell.cpu_ms_per_text for cell in grid.values())
    return Ceiling(grid[threads, size].per_s, cpu_ms_per_text, threads, size, named)


@dataclass(frozen=True, slots=True)
class _Cell:
    per_s: float
    cpu_ms_per_text: float


def _encode(encoder: Encoder, token_ids: Sequence[TokenIds], size: int, seconds: float) -> _Cell:
    """Runs all texts, sorted by length, in batches of `size` and one of what is left; again until the time is over."""
    texts = sorted(token_ids, key=len)
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]
    encoder.encode(max(batches, key=lambda batch: len(batch) * len(batch[-1])))  # the first run of a shape allocates
    done, elapsed_s = 0, 0.0
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    while elapsed_s < seconds:
        for batch in batches:
            encoder.encode(batch)
        done += len(texts)
        elapsed_s = time.perf_counter() - start_s
    return _Cell(done / elapsed_s, (time.process_time() - start_cpu_s) * 1e3 / done)
