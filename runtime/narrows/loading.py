"""Files -> a running engine: variants chosen, towers and index loaded, checked, warmed up and timed."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from narrows import costs
from narrows.bundle import REFERENCE_VARIANT, Bundle, Role, open_bundle
from narrows.device import CPU, CudaDevice, Device
from narrows.device import choose as choose_device
from narrows.engine import EncodeStage, Engine, SearchStage
from narrows.errors import DeviceError
from narrows.fastest import load_fastest
from narrows.gpu_loading import load_on_gpu
from narrows.index import Index
from narrows.index.opened import OpenIndex, open_index
from narrows.index.store import identity
from narrows.process import available_cores
from narrows.quarantine import Guard
from narrows.reader import read_batch
from narrows.scheduler import LaneSettings
from narrows.settings import ServerSettings
from narrows.towers import Tower, load_towers
from narrows.variants import Choice
from narrows.work import Lane, Outcome, Served

log = logging.getLogger(__name__)

MAX_CANARIES = 128  # one or two from each front
SEARCH_WARMUP_BATCH = {"own": 32, "device": 256}  # by affinity
SEARCH_WARMUP_K = 100
SEARCH_WARMUP_BUDGET_MS = 300.0


def open_files(settings: ServerSettings) -> tuple[Bundle, OpenIndex | None]:
    """Opens and checks what the settings name.

    Raises:
        BundleError, IndexFileError, MismatchError: something is missing or changed, or does not belong together.
    """
    bundle = open_bundle(settings.bundle, settings.verify)
    threads = settings.search_threads or available_cores()
    return bundle, open_index(settings.index, bundle, threads, settings.verify) if settings.index else None


def start_engine(
    settings: ServerSettings,
    bundle: Bundle,
    index: OpenIndex | None,
    deliver: Callable[[Sequence[Outcome]], None],
    guard: Guard | None = None,
) -> tuple[Engine, Served]:
    """Loads and warms up what `bundle` and `index` hold; the engine hands its outcomes to `deliver`.

    Raises:
        BundleError: a tower cannot be loaded, or is off its golden embeddings on this machine.
        DeviceError: the GPU that the settings name cannot be used, or has too little memory.
    """
    started_s = time.monotonic()
    cores = available_cores()
    device, choice, loaded = _load_towers(settings, bundle, index)
    if choice.warning:
        log.warning("%s", choice.warning)
    question, context = loaded["question_encoder"], loaded["context_encoder"]
    towers: dict[Lane, Tower] = {"canary": question, "questions": question, "passages": context}
    if "reader" in loaded:
        towers["readings"] = loaded["reader"]
    log.info(
        "bundle %s (questions by %s, passages by %s) loaded on %s after %.1f s",
        bundle.path, choice.question, choice.passage, device.name, time.monotonic() - started_s,
    )  # fmt: skip

    distinct = {id(tower): tower for tower in towers.values()}  # one model may be both towers
    budget_ms = settings.warmup_budget_ms / len(distinct)
    measured = {key: tower.measure_costs(budget_ms) for key, tower in distinct.items()}
    encode = EncodeStage(
        towers={
            lane: partial(read_batch, tower.encoder) if lane == "readings" else tower.encoder.encode
            for lane, tower in towers.items()
        },
        costs={lane: measured[id(tower)] for lane, tower in towers.items()},
    )
    for lane, table in encode.costs.items():
        if lane == "canary":
            continue
        caps = ", ".join(
            f"{bucket.tokens} tokens: {bucket.cap} ({bucket.ms[0]:.1f} ms alone)" for bucket in table.buckets
        )
        log.info("batch caps for %s: %s", lane, caps)
    # A search of its own thread lets the encoder go on; on one core it would only take turns with it.
    search = _search_stage(index.vectors, own_thread=index.vectors.affinity == "own" and cores > 1) if index else None
    lanes = [
        LaneSettings("canary", MAX_CANARIES),
        LaneSettings("questions", settings.max_queued_questions),
        LaneSettings("readings", settings.max_queued_readings, settings.readings_min_share),
        LaneSettings("passages", settings.max_queued_passages, settings.passages_min_share),
    ]
    lanes = [lane for lane in lanes if lane.name in towers]
    engine = Engine(encode, search, lanes, deliver, guard=guard)
    log.info("ready after %.1f s on %d cores", time.monotonic() - started_s, cores)
    index_id = identity(index.manifest) if index else ""
    return engine, Served(choice.question, choice.passage, device.name, bundle.tower_ids, index_id)


def _load_towers(
    settings: ServerSettings, bundle: Bundle, index: OpenIndex | None
) -> tuple[Device, Choice, dict[Role, Tower]]:
    """Loads the towers where the settings say; with `auto` on the CPU, where a GPU cannot serve what they name."""
    device = choose_device(settings.device)
    if isinstance(device, CudaDevice):
        try:
            return device, *load_on_gpu(settings, bundle, index, device)
        except DeviceError as error:
            if settings.device != "auto":
                raise
            log.warning("device: the CPU, because %s", error)
    index_variant = index.manifest.variant if index else None
    threads = settings.encode_threads or available_cores()
    choice, towers = load_fastest(bundle, index_variant, settings.variant, threads)
    if bundle.manifest.reader:
        towers |= load_towers(bundle, REFERENCE_VARIANT, threads, ["reader"])
    return CPU, choice, towers


def _search_stage(index: Index, *, own_thread: bool) -> SearchStage:
    """Warms the index up with its own vectors and times its batches."""
    largest = SEARCH_WARMUP_BATCH[index.affinity]
    queries = index.sample(largest)

    def run(batch_size: int, _tokens: int) -> None:
        index.search(np.resize(queries, (batch_size, index.dim)), SEARCH_WARMUP_K)

    table = costs.measure(run, [1], lambda tokens: largest, SEARCH_WARMUP_BUDGET_MS, time.monotonic)
    return SearchStage(index.search, table, own_thread)
