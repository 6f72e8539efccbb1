"""`make bench-peers`: Narrows beside what people would use instead, on the same cores.

Each peer runs with the settings of peers.toml, and the best one for each traffic is kept. Then, in rounds, every system
is started in turn, checked (its embeddings must be Narrows' own fp32 ones, cosine 0.9999), loaded by 32 clients that
send when they have an answer (its saturation), and loaded at fixed rates: 50 and 80 % of the saturation of the best
peer with the bundle's own graph. Two peers are also there with the graph that their users have without Narrows.
A round in which the machine or the load generator was disturbed does not count, by a rule that is kept with the result.

A run that was cut off goes on where it was, when started again with the same options.

  python -m benchmarks.peers.environments                      # once: each peer's own environment
  python -m benchmarks.peers.run --bundle .demo/minilm.bundle  # over half an hour, on a quiet machine
  python -m benchmarks.peers.run --bundle .demo/minilm.bundle --quick --peers mosec triton
  python -m benchmarks.peers.run --show benchmarks/results/peers.json
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.peers.comparison import TRAFFICS, Comparison, Plan, Reference, resumed
from benchmarks.peers.description import Peer, load_peers
from benchmarks.peers.prepare import prepare
from benchmarks.peers.processes import marked
from benchmarks.peers.rules import DiscardRule
from benchmarks.peers.systems import Check, NarrowsServer, PeerInProcess, PeerServer
from benchmarks.peers.table import table
from narrows import Client
from narrows.bundle import open_bundle
from narrows.errors import BenchmarkError, NarrowsError
from narrows.towers import Tower, load_towers
from narrows_tools.bench import results
from narrows_tools.bench.ceiling import ROLE
from narrows_tools.bench.environment import fingerprint
from narrows_tools.bench.metrics import goodput_deadline_ms
from narrows_tools.bench.pinned import Layout, default_layout, on_cores, parse_cores
from narrows_tools.bench.results import Result
from narrows_tools.bench.servers import narrows_server
from narrows_tools.bench.traffic import Traffic, single_token_words

CHECK_TEXTS = 16  # of each traffic
DEFAULT_VARIANT_MIN_COSINE = 0.9  # its ranking was judged by its gate; this only catches a broken one
MAX_LAG_MS = 2.0  # it is part of the latency: small beside the 20 ms and more that p99 is here
QUICK = {
    "rounds": 1,
    "extra_rounds": 0,
    "clients": 8,
    "search_s": {"short": 0.5, "mixed": 1.0},
    "closed_s": {"short": 0.5, "mixed": 1.0},
    "open_s": {"short": 1.0, "mixed": 2.0},
    "offline_s": 0.5,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs or shows a comparison."""
    options = _parser().parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        if options.show:
            print(table(results.load(options.show)))
            return 0
        print(table(_run(options)))
    except NarrowsError as error:
        print(f"bench-peers: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"bench-peers: interrupted; {options.out} holds what was measured so far", file=sys.stderr)
        return 130
    return 0


def _interrupt(number: int, frame: object) -> None:
    """Ends the run, servers first, in some seconds; a second signal (`timeout` sends two) must not cut that short."""
    for again in (signal.SIGINT, signal.SIGTERM):
        signal.signal(again, signal.SIG_IGN)
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench-peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--bundle", type=Path, default=Path(".demo/minilm.bundle"), help="MiniLM, as `make demo` exports it")
    add("--index", type=Path, help="an index of the bundle, if Narrows' default variant depends on it")
    add(
        "--peers",
        nargs="+",
        default=list(load_peers()),
        choices=list(load_peers()),
        metavar="NAME",
        help="default: all",
    )
    add("--out", type=Path, default=Path("benchmarks/results/peers.json"), help="result (default: %(default)s)")
    add("--show", type=Path, metavar="FILE", help="print what is in a result, and measure nothing")
    add("--quick", action="store_true", help="one short round, to see that all start: one setting a peer, no figures")
    add("--settings", type=int, default=0, metavar="N", help="try the first N settings of each peer only")
    add("--server-cores", type=parse_cores, default=default_layout().server, help="such as 0 or 0,2-3")
    add("--client-cores", type=parse_cores, default=default_layout().client)
    add("--rounds", type=int, default=5, help="that count (default: %(default)s)")
    add("--extra-rounds", type=int, default=2, help="at most, in place of those that do not (default: %(default)s)")
    for name, default, of in (
        ("search", (1.0, 2.5), "each closed loop of the search"),
        ("closed", (2.5, 4.0), "each closed loop of a round"),
        ("open", (3.0, 7.0), "each open loop"),
    ):
        add(
            f"--{name}-s",
            type=float,
            nargs=2,
            default=default,
            metavar=("SHORT", "MIXED"),
            help=f"seconds of {of}, with short questions and with mixed lengths (default: %(default)s)",
        )
    add("--offline-s", type=float, default=2.0, help="of each library in process (default: %(default)s)")
    add("--clients", type=int, default=32, help="of a closed loop (default: %(default)s)")
    add("--seed", type=int, default=0)
    add("--max-deviation", type=float, default=0.1, help="of the machine's speed, in a round (default: %(default)s)")
    add("--max-lag-ms", type=float, default=MAX_LAG_MS, help="of the generator, at p99 (default: %(default)s)")
    add("--max-others", type=float, default=0.1, help="share of the server's cores that others took (default: 0.1)")
    return parser


def _run(options: argparse.Namespace) -> Result:
    if left := marked():
        pids = ", ".join(str(process.pid) for process in left)
        raise BenchmarkError(f"servers of another run are still there (processes {pids}): end them first")
    if options.quick:
        options.settings = options.settings or 1
        vars(options).update(QUICK)
    else:
        for name in ("search_s", "closed_s", "open_s"):
            setattr(options, name, dict(zip(TRAFFICS, getattr(options, name), strict=True)))
    layout = Layout(options.server_cores, options.client_cores)
    with on_cores(layout.server):
        towers = load_towers(open_bundle(options.bundle), "fp32", len(layout.server), [ROLE])
    tower = towers[ROLE]
    words = single_token_words(tower.tokenizer)
    peers, skipped = _installed({name: load_peers()[name] for name in options.peers})
    for name, why in skipped.items():
        print(f"bench-peers: {name} is skipped: {why}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        work = Path(folder)
        material = prepare(options.bundle, work)
        check = _check(tower, words)
        if options.settings:
            peers = {name: replace(peer, settings=peer.settings[: options.settings]) for name, peer in peers.items()}
        place = (material, layout.server, work, check)
        served = [PeerServer(name, peer, *place) for name, peer in peers.items() if peer.target]
        in_process = [PeerInProcess(name, peer, *place) for name, peer in peers.items() if not peer.target]
        narrows = _narrows(options, layout, check)
        plan = _plan(options, tower, words, layout)
        cores = (layout.server, layout.client)
        fresh = Result(
            kind="peers",
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            environment=fingerprint(options.bundle, options.index, *cores, options.seed),
            settings={
                "systems": {one.name: one.variant or "default" for one in narrows}
                | {name: peer.runs for name, peer in peers.items()},
                "graphs": {name: peer.graph for name, peer in peers.items()},
                "skipped": skipped,
            },
            rows=(),
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        result, plan = resumed(options.out, fresh, plan)
        comparison = Comparison(
            plan=plan,
            peers=served,
            narrows=narrows,
            in_process=in_process,
            words=words,
            max_tokens=tower.manifest.max_tokens,
            layout=layout,
            reference=Reference(tower, layout, 0.5),
            out=options.out,
            result=result,
            say=_say(time.monotonic()),
        )
        return comparison.run()


def _plan(options: argparse.Namespace, tower: Tower, words: Sequence[str], layout: Layout) -> Plan:
    single_ms = _single_ms(tower, words, layout)
    short_per_s = 4e3 / single_ms
    return Plan(
        rounds=options.rounds,
        extra_rounds=options.extra_rounds,
        search_s=options.search_s,
        closed_s=options.closed_s,
        open_s=options.open_s,
        offline_s=options.offline_s,
        clients=options.clients,
        seed=options.seed,
        deadline_ms=goodput_deadline_ms(single_ms),
        most_per_s={"short": short_per_s, "mixed": short_per_s / 4},
        rule=DiscardRule(options.max_deviation, options.max_lag_ms, options.max_others),
    )


def _installed(peers: dict[str, Peer]) -> tuple[dict[str, Peer], dict[str, str]]:
    there = {name: peer for name, peer in peers.items() if peer.python.exists()}
    missing = "its environment is missing; `python -m benchmarks.peers.environments` makes it, or says why not"
    return there, dict.fromkeys(sorted(set(peers) - set(there)), missing)


def _check(tower: Tower, words: Sequence[str]) -> Check:
    traffic = Traffic(words, tower.manifest.max_tokens, seed=7)
    texts = [text for kind in TRAFFICS for text in traffic.named(kind, CHECK_TEXTS)]
    ids = [text.ids for text in tower.tokenizer.questions([text.text for text in texts])]
    return Check(texts, tower.encoder.encode(ids))


def _narrows(options: argparse.Namespace, layout: Layout, check: Check) -> list[NarrowsServer]:
    """Narrows in fp32; and in the variant that it serves by itself, where that is another."""
    with (
        narrows_server(options.bundle, options.index, layout.server) as server,
        Client(server.address) as client,
    ):
        variant = client.server_info().variant
    fp32 = NarrowsServer("narrows-fp32", options.bundle, options.index, "fp32", layout.server, check)
    if variant == "fp32":
        return [fp32]
    loose = Check(check.texts, check.expected, DEFAULT_VARIANT_MIN_COSINE)
    return [fp32, NarrowsServer(f"narrows-{variant}", options.bundle, options.index, variant, layout.server, loose)]


def _single_ms(tower: Tower, words: Sequence[str], layout: Layout) -> float:
    texts = Traffic(words, tower.manifest.max_tokens, seed=8).short(40)
    times_ms = []
    with on_cores(layout.server):
        for text in texts:
            start_s = time.perf_counter()
            tower.encoder.encode([tower.tokenizer.questions([text.text])[0].ids])
            times_ms.append((time.perf_counter() - start_s) * 1e3)
    return sorted(times_ms)[len(times_ms) // 2]


def _say(started_s: float) -> Callable[[str], None]:
    return lambda words: print(f"{time.monotonic() - started_s:6.0f} s  {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
