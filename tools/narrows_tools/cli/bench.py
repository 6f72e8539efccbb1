"""`narrows bench`: measures a server under load, and the towers without one."""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.errors import BenchmarkError, SettingsError
from narrows_tools.cli import bench_report, bench_simulate
from narrows_tools.cli.arguments import check_output, natural, number, positive
from narrows_tools.cli.bars import bars

if TYPE_CHECKING:
    from narrows_tools.bench.pinned import Cores, Layout
    from narrows_tools.bench.plan import Settings, Step
    from narrows_tools.bench.results import Result
    from narrows_tools.bench.session import Setup

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SCENARIOS = ("start", "single", "ceiling", "closed", "open", "mixed_lanes", "server", "offline")
FAILURES_SHOWN = 3

ABOUT = """Measures what a bundle's server does under load, on this machine.

The server runs on its own cores, and the load generator in a process of its own on others; with two cores, on core 0
and core 1. Every request carries a new text, made of the words of the bundle's own vocabulary.

scenarios:
  start        time until the server answers, its memory, the sizes of its files
  single       one question at a time in this process, no server: the raw time
  ceiling      the same towers with no server, texts sorted by length, best of threads x batch sizes
  closed       a number of clients that each wait for their answer: what the server can do, no latency under a load
  open         Poisson arrivals fixed beforehand; latency counts from the time when a request was due
  mixed_lanes  the same, while another connection has passages encoded in bulk
  server       the highest Poisson rate at which 99 % of the requests are answered within the deadline
  offline      all texts at once, in large requests

An answer is in time within 100 ms, or 10 times what one question takes alone if that is more. A run in which requests
fail (are neither answered, nor refused, nor late) ends with status 1, after all else."""

RUN_EXAMPLES = """examples:
  narrows bench run --bundle minilm.bundle --index wiki.index --out result.json
  narrows bench run --bundle minilm.bundle --quick
  narrows bench run --bundle minilm.bundle --only closed ceiling --rounds 3
  narrows bench run --bundle minilm.bundle --server localhost:50051 --pid 4711 --server-cores 0 --client-cores 1"""

SWEEP_EXAMPLES = """examples:
  narrows bench sweep --bundle minilm.bundle --rates 50,100,150,200 --out before.json
  narrows bench sweep --bundle minilm.bundle --rates 5,10 --traffic mixed"""


def add(commands: "Commands") -> None:
    """Adds the commands and their arguments."""
    group = commands.add_parser("bench", help="measure a server under load", description=ABOUT)
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_run(actions)
    _add_sweep(actions)
    _add_ceiling(actions)
    bench_simulate.add(actions)
    bench_report.add(actions)


def _add_run(actions: "Commands") -> None:
    command = actions.add_parser(
        "run",
        help="the standard set: ceiling, saturation, a sweep of loads, mixed lengths and lanes, server and offline",
        description="Measures the standard set in several rounds, each with a server of its own and every step in "
        "turn, so that what disturbs the machine disturbs all alike. Loads are shares of the saturation that a closed "
        "loop reaches before the first round.",
        epilog=RUN_EXAMPLES,
    )
    _add_system(command)
    command.add_argument(
        "--only", nargs="+", choices=SCENARIOS, default=[], metavar="SCENARIO", help="only these scenarios"
    )
    command.add_argument("--quick", action="store_true", help="one round of short loads, in about two minutes")
    _add_extent(command, rounds="5; 1 with --quick", seconds="5, or 2 with --quick")
    command.set_defaults(run=run_standard, extra="bench")


def _add_sweep(actions: "Commands") -> None:
    command = actions.add_parser(
        "sweep",
        help="an open loop at rates of your choice",
        description="Measures an open loop at each rate, in several rounds: Poisson arrivals fixed beforehand, latency "
        "from the time when a request was due. `narrows bench compare` needs two such results at the same rates.",
        epilog=SWEEP_EXAMPLES,
    )
    _add_system(command)
    command.add_argument("--rates", required=True, type=_rates, metavar="R,...", help="requests per second")
    command.add_argument("--traffic", choices=("short", "mixed"), default="short", help="texts (default: short)")
    _add_extent(command, rounds="5", seconds="5")
    command.set_defaults(run=run_sweep, extra="bench", quick=False)


def _add_ceiling(actions: "Commands") -> None:
    command = actions.add_parser(
        "ceiling",
        help="what the towers do with no server around them",
        description="Encodes texts in a process on the given cores, tokenized beforehand and sorted by length, with "
        "each number of threads and each batch size.",
        epilog="example: narrows bench ceiling --bundle minilm.bundle --traffic mixed --server-cores 0",
    )
    command.add_argument("--bundle", required=True, type=Path)
    command.add_argument("--variant", default="fp32", metavar="V", help="of the question encoder (default: fp32)")
    command.add_argument("--traffic", choices=("short", "mixed"), default="short", help="texts (default: short)")
    command.add_argument("--texts", type=positive, default=256, metavar="N", help="how many (default: 256)")
    command.add_argument(
        "--seconds", type=_seconds, default=1.0, metavar="S", help="for each cell of the grid (default: 1)"
    )
    command.add_argument("--server-cores", type=_cores, metavar="0,2-3", help="cores (default: all but the last)")
    command.add_argument("--seed", type=natural, default=0, metavar="S", help="of the texts (default: 0)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=run_ceiling, extra="bench")


def _add_system(command: argparse.ArgumentParser) -> None:
    system = command.add_argument_group("what is measured")
    system.add_argument("--bundle", required=True, type=Path, help="the towers, and the vocabulary of the texts")
    system.add_argument("--index", type=Path, help="index for the server")
    system.add_argument("--method", choices=("encode", "search"), default="encode", help="RPC (default: encode)")
    system.add_argument("--variant", default="", metavar="V", help="variant served (default: the server's choice)")
    system.add_argument("--server", default="", metavar="HOST:PORT", help="measure this running server of the bundle")
    system.add_argument("--pid", type=positive, default=0, help="its process, for CPU time and memory")
    system.add_argument("--system", default="narrows", metavar="NAME", help="name in the results (default: narrows)")
    system.add_argument("--server-cores", type=_cores, metavar="0,2-3", help="default: all but the last")
    system.add_argument("--client-cores", type=_cores, metavar="4", help="default: the last")


def _add_extent(command: argparse.ArgumentParser, rounds: str, seconds: str) -> None:
    command.add_argument("--rounds", type=positive, metavar="N", help=f"default: {rounds}")
    command.add_argument("--seconds", type=_seconds, metavar="S", help=f"of each load; default: {seconds}")
    command.add_argument("--clients", type=positive, default=32, metavar="N", help="of a closed loop (default: 32)")
    command.add_argument("--seed", type=natural, default=0, metavar="S", help="of texts and times (default: 0)")
    command.add_argument("--out", type=Path, metavar="FILE", help="save the result, after every round")
    command.add_argument("--json", action="store_true", help="print the result as JSON")


def run_standard(options: argparse.Namespace) -> int:
    """Measures the standard set."""
    from narrows_tools.bench import plan

    steps = plan.standard(plan.QUICK_SWEEP if options.quick else plan.SWEEP)
    return _run(options, plan.only(steps, options.only))


def run_sweep(options: argparse.Namespace) -> int:
    """Measures an open loop at each rate."""
    from narrows_tools.bench.plan import Step

    return _run(options, tuple(Step("open", options.traffic, rate_per_s=rate) for rate in options.rates))


def run_ceiling(options: argparse.Namespace) -> int:
    """Measures the towers alone."""
    from narrows_tools.bench.ceiling import Ceiling, CeilingOrder, InProcess, in_process
    from narrows_tools.bench.pinned import default_layout
    from narrows_tools.bench.session import traffic_of

    texts = traffic_of(options.bundle, options.seed).named(options.traffic, options.texts)
    cores = options.server_cores or default_layout().server
    with _ended_in_order(), in_process(InProcess(options.bundle, options.variant), cores) as towers:
        ceiling = towers.ask(CeilingOrder(texts, options.seconds))
    assert isinstance(ceiling, Ceiling)
    if options.json:
        print(json.dumps(asdict(ceiling)))
        return 0
    print(f"{'threads x batch':<17}texts/s")
    for name, per_s in ceiling.grid.items():
        print(f"{name:<17}{per_s:7.1f}{'  best' if per_s == ceiling.per_s else ''}")
    return 0


def _run(options: argparse.Namespace, steps: "tuple[Step, ...]") -> int:
    if options.out:
        check_output(options.out)
    setup = _setup(options)
    from narrows_tools.bench.checks import failures
    from narrows_tools.bench.run import run

    with _ended_in_order(), bars() as start:
        result = run(setup, _settings(options), steps, options.out, start)
    _print(result, as_json=options.json)
    if failed := failures(result):
        more = f"; and in {len(failed) - FAILURES_SHOWN} more loads" if len(failed) > FAILURES_SHOWN else ""
        raise BenchmarkError(f"requests failed ({'; '.join(failed[:FAILURES_SHOWN])}{more}); the server's log says why")
    return 0


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, and with it the server and the processes that it has started."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _print(result: "Result", *, as_json: bool) -> None:
    from narrows_tools.bench.checks import checks
    from narrows_tools.bench.tables import checks_table, result_table

    if as_json:
        print(json.dumps({**asdict(result), "checks": [{**asdict(c), "kept": c.kept} for c in checks(result)]}))
        return
    print(result_table(result))
    if found := checks(result):
        print(f"\n{checks_table(found)}")


def _settings(options: argparse.Namespace) -> "Settings":
    from narrows_tools.bench.plan import Settings

    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (2.0 if options.quick else 5.0)
    return Settings(options.method, rounds, seconds, options.clients, options.seed)


def _setup(options: argparse.Namespace) -> "Setup":
    from narrows_tools.bench.session import Setup

    if options.method == "search" and not (options.index or options.server):
        raise SettingsError("--method search needs an --index for the server")
    if options.pid and not options.server:
        raise SettingsError("--pid goes with --server")
    if options.pid and not Path(f"/proc/{options.pid}").exists():
        raise SettingsError(f"--pid {options.pid}: there is no such process")
    if options.server and (options.variant or options.index):
        raise SettingsError("--variant and --index go with a server that is started here; a --server has its own")
    flags = ("--variant", options.variant) if options.variant else ()
    layout = _layout(options.server_cores, options.client_cores)
    return Setup(options.bundle, options.index, layout, options.system, options.server, options.pid, flags)


def _layout(server: "Cores | None", client: "Cores | None") -> "Layout":
    from narrows_tools.bench.pinned import Layout, default_layout, listed

    default = default_layout()
    layout = Layout(server or default.server, client or default.client)
    shared = set(layout.server) & set(layout.client)
    if shared and (server or client):
        raise BenchmarkError(f"server and clients would share core {listed(shared)}; give both their own")
    if shared:
        print("WARNING: one core for server and clients: each slows the other down", file=sys.stderr)
    return layout


def _cores(text: str) -> "Cores":
    from narrows_tools.bench.pinned import parse_cores

    try:
        return parse_cores(text)
    except ValueError:
        raise argparse.ArgumentTypeError("must be cores such as 0,2-3") from None


def _seconds(text: str) -> float:
    seconds = number(text)
    if not 0.05 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be 0.05 to 3600")
    return seconds


def _rates(text: str) -> list[float]:
    rates = list(dict.fromkeys(number(rate) for rate in text.split(",")))
    if not all(0 < rate < 1e6 for rate in rates):
        raise argparse.ArgumentTypeError("must be above 0, and below a million")
    return rates
