"""Times a function that embeds a list of texts, for libraries that have no server of their own."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

Embed = Callable[[list[str]], npt.NDArray[np.float32]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every library's script takes."""
    parser.add_argument("--checkpoint", required=True, help="directory of the model")
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="JSON: {check: [text, ...], seconds, loads: {...}}")
    parser.add_argument("--report", type=Path, required=True, help="file for what was found, as JSON")


def measure(embed: Embed, options: argparse.Namespace) -> None:
    """Embeds each list of texts again and again for its time, and reports texts per second."""
    order = json.loads(options.texts.read_text())
    found = {"check": embed(order["check"]).tolist(), "per_s": {}}
    for load, texts in order["loads"].items():
        embed(texts[: options.batch_size])  # the first run of a shape allocates
        done, start_s = 0, time.perf_counter()
        while time.perf_counter() - start_s < order["seconds"] or not done:
            embed(texts)
            done += len(texts)
        found["per_s"][load] = done / (time.perf_counter() - start_s)
    options.report.write_text(json.dumps(found))
