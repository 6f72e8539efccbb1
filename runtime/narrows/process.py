"""How a process that serves is set up: logging, threads, garbage."""

import gc
import logging
import os
import sys

SWITCH_INTERVAL_S = 0.0005  # threads hand the GIL to one another 10 times sooner than by default
# Garbage is looked for after so many new objects, not 700: a request makes hundreds, and its cycles are few and small.
GARBAGE_THRESHOLD = 50_000


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def log_to_stderr(level: str) -> None:
    """Sends what is at least as severe as `level` to stderr."""
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True)
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells which instructions it was built for


def prepare_threads() -> None:
    """Sets up what the threads of a process share."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread: the other cores are the encoder's


def freeze_loaded() -> None:
    """What has been loaded stays, and need not be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD)
