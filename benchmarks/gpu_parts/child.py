"""A section in a process of its own: what crashes there, or leaves a card broken, harms no other section."""

import importlib
import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress

from benchmarks.gpu_parts.rows import Bench, Order, Row, read_rows, reason

GRACE_S = 5.0  # beyond its end, for a section that looks at the clock too seldom


def run_apart(order: Order) -> list[Row]:
    """Runs a section, ends it and all that it started when its time is over, and returns its rows."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(order,))
    process.start()
    assert process.pid is not None
    process.join(max(0.0, order.end_s - time.time()) + GRACE_S)
    is_late = process.is_alive()
    with suppress(OSError):  # all are gone, as they should be
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    rows = read_rows(order.rows_file)
    if is_late:
        why = "its time was over; what it had measured is above"
    elif process.exitcode:
        why = f"its process ended with status {process.exitcode}; if it said why, that is in the messages"
    elif not rows:
        why = "it measured nothing"
    else:
        return rows
    return [*rows, Row(order.section, "the section", remark=why, outcome="failed")]


def _run(order: Order) -> None:
    with suppress(OSError):
        os.setsid()  # a group with the servers that it starts
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # the table alone is for standard output
    bench = Bench(order)
    try:
        importlib.import_module(f"benchmarks.gpu_parts.{order.section}").run(bench)
    except Exception as error:
        bench.fail("the section", reason(error))
