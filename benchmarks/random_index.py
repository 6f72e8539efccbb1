"""A large index of random vectors, made through the code that makes every index but for tokenizer and encoder."""

import time
from pathlib import Path

import numpy as np

from narrows.bundle import Bundle
from narrows.index import sealing, store, unfinished
from narrows.index.progress import Progress
from narrows.index.sealing import Origin
from narrows.index.target import Target
from narrows.index.unfinished import BUILD, Appender, Inputs
from narrows.passages import Passage, Passages, PassageWriter
from narrows.tokenizer import TokenizedText

BLOCK_ROWS = 16_384
TEXT = " ".join(f"word{number}" for number in range(90))[:600]


def make(path: Path, bundle: Bundle, count: int, dim: int, variant: str = "fp32", text: str = TEXT) -> dict[str, float]:
    """Makes it at `path`, as if the bundle's context encoder in `variant` had filled it; returns what took how long."""
    took: dict[str, float] = {}
    with store.building(path):
        directory = path / BUILD
        directory.mkdir()
        started_s = time.perf_counter()
        with PassageWriter(directory) as writer:
            for number in range(count):
                writer.append(Passage(f"passage-{number * 7919 % count:08d}", f"Title {number}", text))
            took["append, s"] = time.perf_counter() - started_s
            started_s = time.perf_counter()
        took["id tables, s"] = time.perf_counter() - started_s
        inputs = Inputs("benchmark", bundle.tower("context_encoder").tower_id, variant, "", "", skip_bad=False)
        started_s = time.perf_counter()
        journal = unfinished.begin(path, inputs, dim, count, {})
        took["passages synced and hashed, s"] = time.perf_counter() - started_s
        random = np.random.default_rng(0)
        tokens = TokenizedText(np.zeros(128, dtype=np.int64), 0)
        started_s = time.perf_counter()
        with Appender(directory, journal, Passages(directory)) as appender:
            for start in range(0, count, BLOCK_ROWS):
                rows = min(BLOCK_ROWS, count - start)
                appender.append(random.standard_normal((rows, dim), dtype=np.float32), [tokens] * rows)
        took["vectors written, s"] = time.perf_counter() - started_s
        started_s = time.perf_counter()
        origin = Origin(bundle.manifest.name, "random", "")
        sealing.seal(bundle, appender.journal, origin, Target(path, "random", 1), Progress())
        took["vectors hashed and published, s"] = time.perf_counter() - started_s
    return took
