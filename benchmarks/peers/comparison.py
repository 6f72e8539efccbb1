"""The comparison: the search for each peer's best setting, then rounds in which all systems are measured in turn."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.peers.rules import SHARES, DiscardRule, Saturation, best_setting, rates
from benchmarks.peers.systems import PeerInProcess, PeerServer, Running, ServedSystem
from narrows.errors import BenchmarkError
from narrows.towers import Tower
from narrows_tools.bench import results
from narrows_tools.bench.generator import Generator, generator
from narrows_tools.bench.load import ClosedLoop, Load, LoadReport, OpenLoop
from narrows_tools.bench.metrics import histograms_of, metrics_of
from narrows_tools.bench.pinned import Layout, on_cores
from narrows_tools.bench.results import Result, Row
from narrows_tools.bench.schedule import poisson
from narrows_tools.bench.targets import Text
from narrows_tools.bench.traffic import Traffic

TRAFFICS = ("short", "mixed")
TIMEOUT_S = 30.0
WARM_UP_S = 0.5
REFERENCE_BATCH = (8, 16)  # texts, tokens


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, by which rule; kept with the results."""

    rounds: int
    extra_rounds: int  # at most so many in place of discarded ones
    search_s: dict[str, float]  # by traffic, as the next two
    closed_s: dict[str, float]
    open_s: dict[str, float]
    offline_s: float
    clients: int
    seed: int
    deadline_ms: float
    most_per_s: dict[str, float]  # by traffic: no system answers more
    rule: DiscardRule


@dataclass(frozen=True, slots=True)
class Reference:
    """The encoder alone, in process, on the server's cores: how fast the machine is right now."""

    tower: Tower
    layout: Layout
    seconds: float

    def per_s(self) -> float:
        """Texts per second."""
        size, tokens = REFERENCE_BATCH
        batch = [np.full(tokens, self.tower.tokenizer.pad_id, dtype=np.int64)] * size
        with on_cores(self.layout.server):
            done, start_s = 0, time.perf_counter()
            while time.perf_counter() - start_s < self.seconds:
                self.tower.encoder.encode(batch)
                done += size
            return done / (time.perf_counter() - start_s)


@dataclass(slots=True)
class Comparison:
    """A run. `result` grows, and is saved after every step, so that a run that was cut off goes on from there."""

    plan: Plan
    peers: Sequence[PeerServer]
    narrows: Sequence[ServedSystem]
    in_process: Sequence[PeerInProcess]
    words: Sequence[str]
    max_tokens: int
    layout: Layout
    reference: Reference
    out: Path
    result: Result
    say: Callable[[str], None]

    def run(self) -> Result:
        """Searches, measures, and drops the rounds that do not count."""
        self._search()
        number = 0
        while number < self.plan.rounds + len(self._discarded(number)) and number < self._most_rounds:
            number += 1
            self._round(number)
        discarded = self._discarded(number)
        kept = tuple(row for row in self.result.rows if row.round not in discarded)
        dropped = [msgspec.to_builtins(row) for row in self.result.rows if row.round in discarded]
        self._note(discarded={str(number): why for number, why in discarded.items()}, discarded_rows=dropped)
        self._note(complete=True)
        self.result = replace(self.result, rows=kept)
        self._save()
        return self.result

    @property
    def _most_rounds(self) -> int:
        return self.plan.rounds + self.plan.extra_rounds

    def _discarded(self, last: int) -> dict[int, str]:
        return self.plan.rule.discarded(row for row in self.result.rows if row.round <= last)

    def _search(self) -> None:
        found: dict[str, list[dict[str, Any]]] = self.result.settings.get("search", {})
        systems: list[PeerServer | PeerInProcess] = [*self.peers, *self.in_process]
        for system in systems:
            entries = found.setdefault(system.name, [])
            for number in range(len(entries), len(system.settings)):
                self.say(f"search: {system.name}, setting {number + 1} of {len(system.settings)}")
                entries.append({"setting": system.settings[number], **self._tried(system, number)})
                self._note(search=found)
        best = {name: chosen for name, entries in found.items() if (chosen := _best(entries))}
        most = {
            traffic: {
                system.name: found[system.name][best[system.name][traffic]][traffic]["throughput_per_s"]
                for system in self.peers
                if system.name in best and system.peer.graph == "bundle"
            }
            for traffic in TRAFFICS
        }
        if "rates" not in self.result.settings:
            offered = {traffic: list(rates(per_s)) for traffic, per_s in most.items() if per_s}
            self._note(best=best, rates=offered, shares=list(SHARES))
        if not self.result.settings["rates"]:
            reasons = [entry["error"] for entries in found.values() for entry in entries[:1] if "error" in entry]
            raise BenchmarkError(
                "no peer with the bundle's graph could be measured, of whose saturation the rates are shares: "
                + ("; ".join(reasons) or "none was asked for")
            )

    def _tried(self, system: PeerServer | PeerInProcess, number: int) -> dict[str, Any]:
        texts = self._traffic(0)
        try:
            if isinstance(system, PeerInProcess):
                per_s = system.measure(number, self._offline_texts(texts), self.plan.offline_s)
                return {traffic: {"throughput_per_s": per_s[traffic], "p99_ms": 0.0} for traffic in TRAFFICS}
            with self._loaded(system, number) as (running, loads):
                found: dict[str, Any] = {"ready_ms": running.server.ready_s * 1e3, "min_cosine": running.min_cosine}
                for traffic in TRAFFICS:
                    report = loads.ask(self._closed(texts, traffic, self.plan.search_s[traffic]))
                    found[traffic] = {"throughput_per_s": _saturation_per_s(report), "p99_ms": report.latency.p99_ms}
                return found
        except BenchmarkError as error:
            self.say(str(error))
            return {"error": str(error)}

    def _round(self, number: int) -> None:
        """All systems in turn; each round begins with another."""
        systems: list[ServedSystem | PeerInProcess] = [*self.narrows, *self.peers, *self.in_process]
        shift = number % len(systems)
        for system in systems[shift:] + systems[:shift]:
            if any(row.round == number and row.system == system.name for row in self.result.rows):
                continue  # of a run that was cut off
            best = self.result.settings["best"].get(system.name)
            if best is None and system not in self.narrows:
                continue  # none of its settings worked
            self.say(f"round {number}: {system.name}")
            try:
                if isinstance(system, PeerInProcess):
                    rows = self._in_process_rows(system, best, number)
                else:
                    rows = self._served_rows(system, best or dict.fromkeys(TRAFFICS, 0), number)
            except BenchmarkError as error:
                self.say(str(error))
                failures = self.result.settings.get("failures", [])
                self._note(failures=[*failures, {"round": number, "system": system.name, "error": str(error)}])
                continue
            self.result = replace(self.result, rows=(*self.result.rows, *rows))
            self._save()

    def _served_rows(self, system: ServedSystem, best: dict[str, int], number: int) -> list[Row]:
        rows: list[Row] = []
        texts = self._traffic(number)
        for setting in sorted(set(best.values())):
            before = {"reference_per_s": self.reference.per_s()}
            with self._loaded(system, setting) as (running, loads):
                before |= {"ready_ms": running.server.ready_s * 1e3, "min_cosine": running.min_cosine}
                for traffic in (traffic for traffic in TRAFFICS if best[traffic] == setting):
                    closed = self._closed(texts, traffic, self.plan.closed_s[traffic])
                    row = Row(system.name, "closed", traffic, 0.0, number, before)
                    rows.append(_measured(row, running, loads, closed))
                    for rate_per_s in self.result.settings["rates"][traffic]:
                        row = Row(system.name, "open", traffic, rate_per_s, number, before)
                        rows.append(_measured(row, running, loads, self._open(texts, traffic, rate_per_s, number)))
        return rows

    def _in_process_rows(self, system: PeerInProcess, best: dict[str, int], number: int) -> list[Row]:
        rows: list[Row] = []
        texts = self._offline_texts(self._traffic(number))
        for setting in sorted(set(best.values())):
            reference_per_s = self.reference.per_s()
            wanted = {traffic: texts[traffic] for traffic in TRAFFICS if best[traffic] == setting}
            for traffic, per_s in system.measure(setting, wanted, self.plan.offline_s).items():
                metrics = {"throughput_per_s": per_s, "reference_per_s": reference_per_s}
                rows.append(Row(system.name, "offline", traffic, 0.0, number, metrics))
        return rows

    @contextmanager
    def _loaded(self, system: ServedSystem, setting: int) -> Iterator[tuple[Running, Generator]]:
        with system.running(setting) as running, generator(running.target, self.layout.client) as loads:
            loads.ask(self._closed(self._traffic(-1), "short", WARM_UP_S))
            yield running, loads

    def _traffic(self, number: int) -> Traffic:
        """Texts of a round: the same for each system, which meets each of them once."""
        return Traffic(self.words, self.max_tokens, self.plan.seed + 1000 + number)

    def _closed(self, texts: Traffic, traffic: str, seconds: float) -> ClosedLoop:
        clients = self.plan.clients
        wanted = texts.named(traffic, math.ceil(self.plan.most_per_s[traffic] * seconds) + clients)
        return ClosedLoop(wanted, clients, seconds, TIMEOUT_S, self.plan.deadline_ms)

    def _open(self, texts: Traffic, traffic: str, rate_per_s: float, number: int) -> OpenLoop:
        count = math.ceil(rate_per_s * self.plan.open_s[traffic])
        schedule = poisson(rate_per_s, count, self.plan.seed + number)
        return OpenLoop(texts.named(traffic, count), schedule, TIMEOUT_S, self.plan.deadline_ms)

    def _offline_texts(self, texts: Traffic) -> dict[str, list[Text]]:
        """About a second of texts, in whole batches."""
        counts = {traffic: 64 * math.ceil(self.plan.most_per_s[traffic] / 4 / 64) for traffic in TRAFFICS}
        return {traffic: texts.named(traffic, count) for traffic, count in counts.items()}

    def _note(self, **settings: Any) -> None:  # noqa: ANN401
        self.result = replace(self.result, settings=self.result.settings | settings)
        self._save()

    def _save(self) -> None:
        results.save(self.out, self.result)


def resumed(out: Path, fresh: Result, plan: Plan) -> tuple[Result, Plan]:
    """What to go on with: the result and plan in `out` if a run with the same options was cut off, else fresh ones.

    Raises:
        BenchmarkError: `out` holds a finished run, or one with other options.
    """
    fresh = replace(fresh, settings=fresh.settings | {"plan": asdict(plan), "complete": False})
    if not out.exists():
        return fresh, plan
    found = results.load(out)
    if found.settings.get("complete"):
        raise BenchmarkError(f"{out} holds a finished run; name another file with --out, or delete it")
    try:
        before = msgspec.convert(found.settings["plan"], Plan)
    except (KeyError, msgspec.ValidationError):
        raise BenchmarkError(f"{out} holds something else; name another file with --out, or delete it") from None
    same = replace(before, deadline_ms=plan.deadline_ms, most_per_s=plan.most_per_s)  # these were measured
    if same != plan or found.settings["systems"] != fresh.settings["systems"]:
        raise BenchmarkError(f"{out} holds a run with other options; name another file with --out, or delete it")
    return found, before


def _measured(row: Row, running: Running, loads: Generator, load: Load) -> Row:
    before = running.server.usage()
    report = loads.ask(load)
    metrics = metrics_of(report, before, running.server.usage())
    client_ms = report.client_cpu_share * report.duration_s * 1e3 / max(report.requests, 1)
    metrics |= {"client_cpu_ms_per_request": client_ms}
    if isinstance(load, ClosedLoop):
        metrics |= {"throughput_per_s": _saturation_per_s(report)}
    return replace(row, metrics=row.metrics | metrics, histograms=histograms_of(report))


def _saturation_per_s(report: LoadReport) -> float:
    """All answers over all of the time, the last ones included, for which the server worked as well.

    Answers come a batch at a time, and there are few of mixed lengths: a rate between two answers would depend on where
    a batch happened to end.
    """
    return report.counts["ok"] / max(report.duration_s, 1e-9)


def _best(entries: Sequence[dict[str, Any]]) -> dict[str, int]:
    """For each traffic the best setting of a system; empty where none worked."""
    best = {}
    for traffic in TRAFFICS:
        chosen = best_setting([Saturation(**entry[traffic]) if traffic in entry else None for entry in entries])
        if chosen is not None:
            best[traffic] = chosen
    return best
