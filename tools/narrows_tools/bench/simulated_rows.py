"""Simulations as rows of results: what the load generator would find of a server without overhead."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from narrows_tools.bench import environment
from narrows_tools.bench.batch_costs import BatchCosts
from narrows_tools.bench.results import Result, Row, values
from narrows_tools.bench.schedule import poisson
from narrows_tools.bench.simulation import ceiling_per_s, closed_loop, open_loop, saturation_per_s, simulate
from narrows_tools.bench.traffic import lengths

SYSTEM = "simulation"
K = 10
CLIENTS = 32  # of the closed loop, as many as the load generator's
# Heading, metric, factor, digits.
COLUMNS = (
    ("p50 ms", "p50_ms", 1.0, 1),
    ("p99 ms", "p99_ms", 1.0, 1),
    ("padding %", "padding_share", 100.0, 1),
    ("batch", "batch_size_mean", 1.0, 2),
    ("busy %", "utilisation_share", 100.0, 0),
    ("refused %", "refused_share", 100.0, 1),
    ("late %", "late_share", 100.0, 1),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated for each traffic: `rates` in questions/s or, where there are none, shares of saturation.

    Each of `rounds` has so many questions, and a seed of its own, from `seed` on, for arrivals, the order of the
    lengths and, with `noise`, what a batch takes.
    """

    traffic: tuple[str, ...]
    rates: tuple[float, ...]
    loads: tuple[float, ...]
    questions: int
    rounds: int
    seed: int
    noise: bool

    @property
    def simulations(self) -> int:
        """How many simulations that is."""
        return len(self.traffic) * (1 + len(self.rates or self.loads) * self.rounds)


def simulate_plan(costs: BatchCosts, plan: Plan, advance: Callable[[int], object]) -> Result:
    """Simulates everything: for each traffic its ceiling, offline (all at once), a closed loop, and open loops.

    Questions are searched for where the costs have an index. `advance` is called with 1 after each simulation.
    """
    rows = [row for traffic in plan.traffic for row in _rows(costs, traffic, plan, advance)]
    found = {"bundle": costs.bundle, "variant": costs.variant, "threads": costs.threads}
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Result("simulation", created, {"git_commit": environment.git_commit(), **found}, asdict(plan), tuple(rows))


def _rows(costs: BatchCosts, traffic: str, plan: Plan, advance: Callable[[int], object]) -> Iterator[Row]:
    tokens = lengths(traffic, plan.questions, costs.actual.buckets[-1].tokens)
    k = K if costs.search else 0
    ceiling = ceiling_per_s(tokens, costs.actual.ms)
    saturation = saturation_per_s(_shuffled(tokens, plan.seed), costs.server(), k)
    advance(1)
    yield Row(SYSTEM, "ceiling", traffic, 0.0, 1, {"throughput_per_s": ceiling})
    yield Row(SYSTEM, "offline", traffic, 0.0, 1, {"throughput_per_s": saturation})
    closed = closed_loop(_shuffled(tokens, plan.seed), CLIENTS, costs.server(), k=k)
    yield Row(SYSTEM, "closed", traffic, 0.0, 1, {**closed.metrics(), "client_count": float(CLIENTS)})
    for rate in plan.rates or [float(f"{load * saturation:.3g}") for load in plan.loads]:
        for number in range(plan.rounds):
            seed = plan.seed + number
            calls = open_loop(poisson(rate, plan.questions, seed), _shuffled(tokens, seed), k=k)
            found = simulate(calls, costs.server(seed if plan.noise else None))
            histograms = {"batch_size": found.batch_sizes()}
            yield Row(SYSTEM, "open", traffic, rate, number + 1, found.metrics(), histograms)
            advance(1)


def _shuffled(tokens: Sequence[int], seed: int) -> list[int]:
    return [int(length) for length in np.random.default_rng(seed).permutation(tokens)]


def table(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Cells for a terminal, the heading first: medians over the rounds; how `offline` compares with the ceiling."""
    lines = [("traffic", "questions/s", "share of max", *(heading for heading, *_ in COLUMNS))]
    for traffic in dict.fromkeys(row.traffic for row in rows):
        own = [row for row in rows if row.traffic == traffic]
        ceiling, most, closed = (row.metrics["throughput_per_s"] for row in own if row.scenario != "open")
        for load in dict.fromkeys(row.load for row in own if row.scenario == "open"):
            rounds = [row for row in own if row.scenario == "open" and row.load == load]
            cells = [_cell(rounds, metric, factor, digits) for _, metric, factor, digits in COLUMNS]
            lines.append((traffic, f"{load:g}", f"{load / most:.2f}", *cells))
        for name, per_s in (("all at once", most), (f"{CLIENTS} clients", closed)):
            lines.append((traffic, f"{per_s:.4g}", f"{name}: {per_s / ceiling:.3f} of ceiling", *("",) * len(COLUMNS)))
    return lines


def _cell(rounds: Sequence[Row], metric: str, factor: float, digits: int) -> str:
    found = values(rounds, metric, factor)
    return f"{statistics.median(found):.{digits}f}" if found else ""
