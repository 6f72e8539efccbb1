"""One round of measurements: a server, the load generator and the towers in process, and a method for each scenario."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from narrows.bundle import open_bundle
from narrows.client import Client
from narrows.errors import BenchmarkError
from narrows.messages import ServerInfo
from narrows.tokenizer import load_tokenizer
from narrows_tools.bench.ceiling import (
    BATCH_SIZES,
    ROLE,
    Ceiling,
    CeilingOrder,
    InProcess,
    InProcessTowers,
    Single,
    SingleOrder,
    in_process,
)
from narrows_tools.bench.generator import Generator, generator
from narrows_tools.bench.load import Background, ClosedLoop, Load, Offline, OpenLoop
from narrows_tools.bench.metrics import goodput_deadline_ms, histograms_of, metrics_of
from narrows_tools.bench.pinned import Layout
from narrows_tools.bench.plan import Settings, Step, TrafficKind
from narrows_tools.bench.rates import highest_rate
from narrows_tools.bench.results import Row
from narrows_tools.bench.schedule import poisson
from narrows_tools.bench.servers import Server, Usage, narrows_server, others_share, usage_of
from narrows_tools.bench.targets import TargetSpec
from narrows_tools.bench.traffic import Traffic, single_token_words

TARGET = "narrows_tools.bench.targets:NarrowsTarget"
PATIENCE = 10.0  # below saturation a request may take so many times the deadline of goodput
LONG_TIMEOUT_S = 120.0  # where a queue is the point
OFFLINE_ITEMS, OFFLINE_IN_FLIGHT = 64, 8
SINGLE_TEXTS = 100
SPACED_TEXTS, SPACING_S = 50, 0.02  # as at a low load
MAX_CEILING_TEXTS = 512
MIN_REQUESTS = 20
TAIL_REQUESTS = 200  # what a p99 needs; a low load lasts up to 4 times as long as others for it
PATIENT_FACTOR = 4
SERVER_RATES = (0.3, 1.1)  # between these shares of the saturation `server` looks for its rate
SERVER_RESOLUTION = 0.03
SERVER_SHARE = 0.99  # of all requests sent, OK within the bound


@dataclass(frozen=True, slots=True)
class Setup:
    """What is measured: a bundle, and a server of it that is started here, or runs at `address` already."""

    bundle: Path
    index: Path | None
    layout: Layout
    system: str = "narrows"
    address: str = ""
    pid: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Calibration:
    """Measured once, before the first round, and used by all: so every round has the same loads."""

    single_ms: float
    deadline_ms: float
    saturation_per_s: dict[TrafficKind, float]


def traffic_of(bundle: Path, seed: int) -> Traffic:
    """The texts for a bundle's question tower.

    Raises:
        BundleError: it cannot be opened, or its vocabulary has too few words.
    """
    opened = open_bundle(bundle)
    tower = opened.tower(ROLE)
    return Traffic(single_token_words(load_tokenizer(opened, tower)), tower.max_tokens, seed)


@contextmanager
def session(setup: Setup, settings: Settings, traffic: Traffic) -> Iterator["Session"]:
    """Starts a server (unless one is given), a load generator and the towers in process, each on its cores.

    Raises:
        BenchmarkError: one of them does not start, or the given server has other towers than the bundle.
    """
    with ExitStack() as stack:
        if setup.address:
            server = Server(setup.address, setup.pid, cores=setup.layout.server)
        else:
            server = stack.enter_context(narrows_server(setup.bundle, setup.index, setup.layout.server, setup.flags))
        ready = server.usage()
        with Client(server.address) as client:
            info = client.server_info()
        _check_towers(setup, info)
        towers = stack.enter_context(in_process(InProcess(setup.bundle, info.variant), setup.layout.server))
        arguments = {"address": server.address, "method": settings.method, "max_items": OFFLINE_ITEMS}
        loads = stack.enter_context(generator(TargetSpec(TARGET, arguments), setup.layout.client))
        yield Session(setup, settings, traffic, server, ready, info, towers, loads)


def _check_towers(setup: Setup, info: ServerInfo) -> None:
    tower_id = open_bundle(setup.bundle).tower(ROLE).tower_id
    if info.question_tower_id != tower_id:
        raise BenchmarkError(
            f"{setup.address} serves {info.bundle}, whose question encoder is not that of {setup.bundle}; "
            "give the bundle that it serves"
        )


@dataclass(frozen=True, slots=True)
class Session:
    """What a round has open."""

    setup: Setup
    settings: Settings
    traffic: Traffic
    server: Server
    ready: Usage | None
    info: ServerInfo
    towers: InProcessTowers
    loads: Generator

    def calibrate(self, kinds: Iterable[TrafficKind]) -> Calibration:
        """Finds out how fast this is: one question alone, and these kinds of traffic at saturation.

        Raises:
            BenchmarkError: the server answers nothing.
        """
        single = self.towers.ask(SingleOrder(self.traffic.short(SINGLE_TEXTS)))
        assert isinstance(single, Single)
        rough = Calibration(single.p50_ms, goodput_deadline_ms(single.p50_ms), {})
        saturation: dict[TrafficKind, float] = {}
        for kind in kinds:
            self.loads.ask(self._closed(kind, rough, self.settings.seconds / 5))  # warms up both sides
            report = self.loads.ask(self._closed(kind, rough, self.settings.seconds))
            if not report.counts["ok"]:
                self.server.usage()  # fails if it is gone
                ended = ", ".join(f"{count} {status}" for status, count in report.counts.items() if count)
                raise BenchmarkError(f"{self.server.address} answered no request ({ended}); its log says why")
            saturation[kind] = report.throughput_per_s
        return replace(rough, saturation_per_s=saturation)

    def measure(self, step: Step, calibration: Calibration, number: int) -> Row:
        """Does one step in round `number`."""
        rate_per_s = step.rate_per_s or (step.load and step.load * calibration.saturation_per_s[step.traffic])
        row = Row(self.setup.system, step.scenario, step.traffic, rate_per_s, number, {})
        match step.scenario:
            case "start":
                return replace(row, traffic="", metrics=self._start())
            case "single":
                return replace(row, metrics=self._single(step.traffic))
            case "ceiling":
                return replace(row, metrics=self._alone(lambda: self._ceiling(step.traffic, calibration)))
            case "closed":
                return self._load(row, self._closed(step.traffic, calibration, self.settings.seconds))
            case "open" | "mixed_lanes":
                above = rate_per_s > calibration.saturation_per_s[step.traffic]
                return self._load(row, self._open(step, rate_per_s, calibration, number, above))
            case "server":
                return self._server(row, step, calibration, number)
            case "offline":
                count = math.ceil(calibration.saturation_per_s[step.traffic] * self.settings.seconds)
                texts = self.traffic.named(step.traffic, max(count, MIN_REQUESTS))
                return self._load(row, Offline(texts, OFFLINE_IN_FLIGHT, LONG_TIMEOUT_S))

    def _load(self, row: Row, load: Load) -> Row:
        before = self.server.usage()
        report = self.loads.ask(load)
        metrics = metrics_of(report, before, self.server.usage())
        match load:
            case OpenLoop(deadline_ms=deadline_ms, timeout_s=timeout_s):
                metrics |= {"deadline_ms": deadline_ms, "timeout_ms": timeout_s * 1e3}
            case ClosedLoop(clients=clients):
                metrics |= {"client_count": float(clients)}
        return replace(row, metrics=metrics, histograms=histograms_of(report))

    def _closed(self, kind: TrafficKind, calibration: Calibration, seconds: float) -> ClosedLoop:
        # More texts than any batching of these towers could answer in the time.
        most_per_s = calibration.saturation_per_s.get(kind, 4e3 / calibration.single_ms)
        texts = self.traffic.named(kind, math.ceil(1.5 * most_per_s * seconds) + self.settings.clients)
        return ClosedLoop(texts, self.settings.clients, seconds, LONG_TIMEOUT_S, calibration.deadline_ms)

    def _open(self, step: Step, rate_per_s: float, calibration: Calibration, number: int, above: bool) -> OpenLoop:
        """Above saturation each request carries the deadline of goodput, so that the server can refuse it in time."""
        usual = rate_per_s * self.settings.seconds
        count = max(MIN_REQUESTS, usual, min(TAIL_REQUESTS, PATIENT_FACTOR * usual))
        if step.scenario == "server":
            count = max(count, TAIL_REQUESTS)
        texts = self.traffic.named(step.traffic, math.ceil(count))
        deadline_ms = calibration.deadline_ms
        background = None
        if step.scenario == "mixed_lanes":
            target = TargetSpec(TARGET, {"address": self.server.address, "lane": "passages"})
            background = Background(target, self.traffic.mixed(64), LONG_TIMEOUT_S)
        timeout_s = deadline_ms / 1e3 * (1 if above else PATIENCE)
        schedule = poisson(rate_per_s, len(texts), self.settings.seed + number)
        return OpenLoop(texts, schedule, timeout_s, deadline_ms, background)

    def _server(self, row: Row, step: Step, calibration: Calibration, number: int) -> Row:
        def measure(rate_per_s: float) -> Row:
            return self._load(row, self._open(step, rate_per_s, calibration, number, above=False))

        low, high = (share * calibration.saturation_per_s[step.traffic] for share in SERVER_RATES)
        rate_per_s, best = highest_rate(measure, keeps_bound, low, high, SERVER_RESOLUTION)
        return found_rate(best, rate_per_s, calibration.deadline_ms)

    def _alone(self, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Measures the towers in process, and what else took their cores meanwhile."""
        cores = self.setup.layout.server
        before = usage_of(self.towers.pid, cores)
        metrics = measure()
        return metrics | {"others_cpu_share": others_share(before, usage_of(self.towers.pid, cores)) or 0.0}

    def _single(self, kind: TrafficKind) -> dict[str, float]:
        def measure() -> dict[str, float]:
            single = self.towers.ask(SingleOrder(self.traffic.named(kind, SINGLE_TEXTS)))
            assert isinstance(single, Single)
            return {"p50_ms": single.p50_ms, "p99_ms": single.p99_ms}

        spaced = self.towers.ask(SingleOrder(self.traffic.named(kind, SPACED_TEXTS), SPACING_S))
        assert isinstance(spaced, Single)
        return self._alone(measure) | {"spaced_p50_ms": spaced.p50_ms}

    def _ceiling(self, kind: TrafficKind, calibration: Calibration) -> dict[str, float]:
        seconds = self.settings.seconds / len(BATCH_SIZES)
        largest = max(BATCH_SIZES)
        wanted = calibration.saturation_per_s[kind] * seconds
        count = min(MAX_CEILING_TEXTS, largest * max(1, round(wanted / largest)))  # whole batches of every size
        ceiling = self.towers.ask(CeilingOrder(self.traffic.named(kind, count), seconds))
        assert isinstance(ceiling, Ceiling)
        best = {
            "throughput_per_s": ceiling.per_s,
            "cpu_ms_per_text": ceiling.cpu_ms_per_text,
            "threads": ceiling.threads,
            "batch_size": ceiling.batch_size,
        }
        grid = {f"threads_x_batch_{name}_per_s": per_s for name, per_s in ceiling.grid.items()}
        return {**best, **grid}

    def _start(self) -> dict[str, float]:
        towers = open_bundle(self.setup.bundle).manifest.towers
        served = {"question_encoder": self.info.variant, "context_encoder": self.info.passage_variant}
        files = {  # a tower that is both, in one variant, is loaded once
            (tower.directory, served[role]): tower.variants[served[role]].size_bytes for role, tower in towers.items()
        }
        metrics = {
            "model_bytes": float(sum(files.values())),
            "vectors_bytes": float(self.info.passage_count * self.info.dim * 4),
            "passage_count": float(self.info.passage_count),
        }
        if self.server.ready_s:
            metrics["ready_ms"] = self.server.ready_s * 1e3
        if self.ready:
            metrics["rss_bytes"] = float(self.ready.rss_bytes)
        return metrics


def keeps_bound(row: Row) -> bool:
    """As MLPerf's `server`, and stricter: of all requests sent, 99 % were answered within the bound."""
    return row.metrics["in_time_share"] >= SERVER_SHARE


def found_rate(best: Row, rate_per_s: float, bound_ms: float) -> Row:
    """The row of `server`: of the highest rate that kept the bound; of rate 0, and no throughput, if none did."""
    nothing = {} if rate_per_s else {"throughput_per_s": 0.0, "goodput_per_s": 0.0}
    return replace(best, load=rate_per_s, metrics=best.metrics | nothing | {"bound_ms": bound_ms})
