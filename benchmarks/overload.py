"""What three times too many questions do to a server: goodput, refusals, memory, and how soon it is well again.

    python -m benchmarks.overload --bundle minilm.bundle --frontends 0 2

For each number of fronts, in one run: saturation by a closed loop, latency at a tenth of it, an open loop at three
times saturation for --seconds with the deadline that goodput has in every benchmark, and a tenth again, whose first two
seconds and the rest are shown apart. The server has the first cores, the load the last one.
"""

import argparse
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from narrows_tools.bench.generator import Generator, generator
from narrows_tools.bench.load import ClosedLoop, LoadReport, OpenLoop
from narrows_tools.bench.metrics import goodput_deadline_ms
from narrows_tools.bench.pinned import default_layout
from narrows_tools.bench.schedule import poisson
from narrows_tools.bench.servers import Server, narrows_server
from narrows_tools.bench.session import traffic_of
from narrows_tools.bench.targets import TargetSpec
from narrows_tools.bench.traffic import Traffic

CLIENTS, SATURATION_S, LOW_S, AFTER_S = 32, 6.0, 6.0, 2.0
LONG_S = 60.0
LOW, HIGH = 0.1, 3.0
FIRST_SAMPLE_S = 10.0


@contextmanager
def sampled_rss(server: Server) -> Iterator[list[tuple[float, int]]]:
    """Samples (seconds, bytes) of the server's memory once a second."""
    samples: list[tuple[float, int]] = []
    end, started_s = threading.Event(), time.monotonic()

    def sample() -> None:
        while not end.wait(1.0):
            if usage := server.usage():
                samples.append((time.monotonic() - started_s, usage.rss_bytes))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        end.set()
        thread.join()


def open_loop(
    load: Generator, traffic: Traffic, rate_per_s: float, seconds: float, deadline_ms: float, seed: int
) -> LoadReport:
    """An open loop of short questions."""
    count = max(1, round(rate_per_s * seconds))
    return load.ask(OpenLoop(traffic.short(count), poisson(rate_per_s, count, seed), deadline_ms / 1e3, deadline_ms))


def measure(bundle: Path, fronts: int, seconds: float, flags: list[str]) -> dict[str, float]:
    """All of it, for one number of fronts."""
    layout, traffic = default_layout(), traffic_of(bundle, fronts)
    with narrows_server(bundle, None, layout.server, ["--frontends", str(fronts), *flags]) as server:
        spec = TargetSpec("narrows_tools.bench.targets:NarrowsTarget", {"address": server.address})
        load = generator(spec, layout.client)
        try:
            single = load.ask(ClosedLoop(traffic.short(100), 1, LONG_S, LONG_S, LONG_S * 1e3))
            deadline_ms = goodput_deadline_ms(single.latency.p50_ms)
            texts = traffic.short(20_000)
            saturation = load.ask(ClosedLoop(texts, CLIENTS, SATURATION_S, LONG_S, deadline_ms)).throughput_per_s
            before = open_loop(load, traffic, LOW * saturation, LOW_S, deadline_ms, 1)
            with sampled_rss(server) as rss:
                over = open_loop(load, traffic, HIGH * saturation, seconds, deadline_ms, 2)
            after = open_loop(load, traffic, LOW * saturation, AFTER_S, deadline_ms, 3)
            later = open_loop(load, traffic, LOW * saturation, LOW_S, deadline_ms, 4)
        finally:
            load.close()
    held = [size for at_s, size in rss if at_s >= FIRST_SAMPLE_S]
    return {
        "saturation_per_s": saturation,
        "deadline_ms": deadline_ms,
        "goodput_of_saturation": over.goodput_per_s / saturation,
        "ok_of_saturation": over.throughput_per_s / saturation,
        "refused_share": over.counts["refused"] / over.requests,
        "late_share": over.counts["late"] / over.requests,
        "failed_count": float(over.counts["failed"]),
        "refusal_p50_ms": over.refusal.p50_ms,
        "refusal_p99_ms": over.refusal.p99_ms,
        "send_lag_p99_ms": over.send_lag.p99_ms,
        "rss_growth_share": held[-1] / held[0] - 1 if held else 0.0,
        "before_p50_ms": before.latency.p50_ms,
        "before_p99_ms": before.latency.p99_ms,
        "after_p50_ms": after.latency.p50_ms,
        "after_p99_ms": after.latency.p99_ms,
        "later_p50_ms": later.latency.p50_ms,
        "later_p99_ms": later.latency.p99_ms,
    }


def main() -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--frontends", type=int, nargs="+", default=[0, 2], metavar="N")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload (default: 60)")
    parser.add_argument("--variant", default="fp32")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    flags = ["--variant", options.variant]
    found = {fronts: measure(options.bundle, fronts, options.seconds, flags) for fronts in options.frontends}
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{'':24}" + "".join(f"{fronts:>10} fronts" for fronts in found))
    for name in next(iter(found.values())):
        print(f"{name:24}" + "".join(f"{each[name]:17.3f}" for each in found.values()))


if __name__ == "__main__":
    main()
