"""Everything a server answers with, loaded and warmed up: towers, index, engine."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from narrows import bundle as bundles
from narrows import costs
from narrows.bundle import Bundle
from narrows.engine import EncodeStage, Engine, SearchStage
from narrows.errors import MismatchError, NotFoundError
from narrows.fastest import load_fastest
from narrows.index import Index
from narrows.index.store import OpenIndex, open_index
from narrows.scheduler import LaneSettings
from narrows.settings import ServerSettings
from narrows.towers import Tower, available_cores
from narrows.work import Lane, Outcome

log = logging.getLogger(__name__)

SEARCH_WARMUP_BATCH = 32
SEARCH_WARMUP_K = 100
SEARCH_WARMUP_BUDGET_MS = 300.0


@dataclass(frozen=True, slots=True)
class Application:
    """The loaded parts. Closing `engine` ends its threads."""

    settings: ServerSettings
    bundle: Bundle
    variant: str  # of the question encoder
    passage_variant: str
    towers: dict[Lane, Tower]
    index: OpenIndex | None
    engine: Engine

    @property
    def device(self) -> str:
        """What the towers run on."""
        return "cpu"

    def corpus(self, name: str) -> OpenIndex:
        """The index of that name; empty means the only one.

        Raises:
            NotFoundError: there is none.
        """
        if self.index is None:
            raise NotFoundError("this server has no index: it was started without --index")
        if name not in ("", self.index.manifest.name):
            raise NotFoundError(f"corpus {name!r} is not served here; there is {self.index.manifest.name!r}")
        return self.index

    def check_bundle(self, expected: str) -> None:
        """Checks a request's expected_bundle.

        Raises:
            MismatchError: another bundle answers here.
        """
        question_tower_id = self.bundle.tower("question_encoder").tower_id
        if expected not in ("", self.bundle.manifest.name, question_tower_id):
            name = self.bundle.manifest.name
            raise MismatchError(
                f"bundle {expected!r} is expected, but {name!r} (tower_id {question_tower_id}) answers here"
            )


def load(settings: ServerSettings, deliver: Callable[[Sequence[Outcome]], None]) -> Application:
    """Loads and warms up everything; the engine hands its outcomes to `deliver`.

    Raises:
        BundleError, IndexFileError, MismatchError: the files are not what they should be.
    """
    started_s = time.monotonic()
    cores = available_cores()
    encode_threads = settings.encode_threads or cores
    search_threads = settings.search_threads or cores
    bundle = bundles.open_bundle(settings.bundle, settings.verify)
    index = open_index(settings.index, bundle, search_threads, settings.verify) if settings.index else None
    index_variant = index.manifest.variant if index else None
    choice, loaded = load_fastest(bundle, index_variant, settings.variant, encode_threads)
    if choice.warning:
        log.warning("%s", choice.warning)
    towers: dict[Lane, Tower] = {"questions": loaded["question_encoder"], "passages": loaded["context_encoder"]}
    log.info(
        "bundle %s (questions by %s, passages by %s) and index loaded after %.1f s",
        bundle.path, choice.question, choice.passage, time.monotonic() - started_s,
    )  # fmt: skip

    distinct = {id(tower): tower for tower in towers.values()}  # one model may be both towers
    budget_ms = settings.warmup_budget_ms / len(distinct)
    measured = {key: tower.measure_costs(budget_ms) for key, tower in distinct.items()}
    encode = EncodeStage(
        towers={lane: tower.encoder.encode for lane, tower in towers.items()},
        costs={lane: measured[id(tower)] for lane, tower in towers.items()},
    )
    for lane, table in encode.costs.items():
        caps = ", ".join(
            f"{bucket.tokens} tokens: {bucket.cap} ({bucket.ms[0]:.1f} ms alone)" for bucket in table.buckets
        )
        log.info("batch caps for %s: %s", lane, caps)
    # A search of its own thread lets the encoder go on; on one core it would only take turns with it.
    search = _search_stage(index.vectors, own_thread=index.vectors.affinity == "own" and cores > 1) if index else None
    lanes = [
        LaneSettings("questions", settings.max_queued_questions),
        LaneSettings("passages", settings.max_queued_passages, settings.passages_min_share),
    ]
    engine = Engine(encode, search, lanes, deliver)
    log.info("ready after %.1f s on %d cores", time.monotonic() - started_s, cores)
    return Application(settings, bundle, choice.question, choice.passage, towers, index, engine)


def _search_stage(index: Index, *, own_thread: bool) -> SearchStage:
    """Warms the index up with one of its own kind of vectors and times its batches."""
    queries = np.random.default_rng(0).standard_normal((SEARCH_WARMUP_BATCH, index.dim)).astype(np.float32)

    def run(batch_size: int, _tokens: int) -> None:
        index.search(queries[:batch_size], SEARCH_WARMUP_K)

    table = costs.measure(run, [1], SEARCH_WARMUP_BATCH, SEARCH_WARMUP_BUDGET_MS, time.monotonic)
    return SearchStage(index.search, table, own_thread)
