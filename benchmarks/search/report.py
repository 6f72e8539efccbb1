"""Recorded runs of benchmarks.search.run -> a table in Markdown and a plot for each.

python -m benchmarks.search.report --plots benchmarks/search/plots benchmarks/search/results/*.json
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from narrows_tools.bench.plots import Line, Plot, draw

LEAST_RECALL = 0.8  # drawn
RECALLS = (0.9, 0.95, 0.98, 0.99)


def main() -> int:
    """Prints the tables, and writes the plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--plots", type=Path, required=True, help="folder for the plots")
    options = parser.parse_args()
    for file in options.results:
        result = json.loads(file.read_bytes())
        print(f"\n{result['data']}, {result['queries']} questions one at a time, one thread, k = {result['k']}\n")
        print(table(result["points"]))
        (options.plots / f"{file.stem}.svg").write_bytes(draw(plot(result)))
    return 0


def table(points: Sequence[dict[str, Any]]) -> str:
    """Each system: bytes a vector, build time, and questions a second at its cheapest setting of each recall."""
    head = ["", "bytes a vector", "built in s", *(f"q/s at {recall:g}" for recall in RECALLS), "best recall"]
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for system in dict.fromkeys(point["system"] for point in points):
        own = [point for point in points if point["system"] == system]
        rates = []
        for recall in RECALLS:
            reached = [statistics.median(point["queries_per_s"]) for point in own if point["recall"] >= recall]
            rates.append(f"{max(reached):,.0f}" if reached else "")
        best = max(point["recall"] for point in own)
        cells = [system, f"{own[0]['vector_bytes']:,.0f}", f"{own[0]['build_s']:,.1f}", *rates, f"{best:.4f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def plot(result: dict[str, Any]) -> Plot:
    """Questions a second over recall; FAISS on the same files is in the table only."""
    lines = []
    for system in dict.fromkeys(point["system"] for point in result["points"]):
        own = [point for point in result["points"] if point["system"] == system and point["recall"] >= LEAST_RECALL]
        if not own or system.startswith("faiss"):
            continue
        rates = [point["queries_per_s"] for point in own]
        lines.append(
            Line(
                system,
                system,
                tuple(point["recall"] for point in own),
                tuple(map(statistics.median, rates)),
                tuple(map(min, rates)),
                tuple(map(max, rates)),
            )
        )
    return Plot(result["data"], f"recall at {result['k']}", "questions/s, one at a time, one thread", tuple(lines))


if __name__ == "__main__":
    sys.exit(main())
