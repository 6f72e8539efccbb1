"""A whole run: rounds of the same steps, each with a server of its own, saved after every round."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from narrows_tools.bench import environment, results
from narrows_tools.bench.plan import UNLOADED, Settings, Step
from narrows_tools.bench.results import Result
from narrows_tools.bench.session import Calibration, Setup, session, traffic_of

Advance = Callable[[int], object]


def run(
    setup: Setup, settings: Settings, steps: Sequence[Step], out: Path | None, start: Callable[[str, int], Advance]
) -> Result:
    """Measures all steps in every round, one after the other, so that what disturbs the machine disturbs all alike.

    Args:
        setup: what is measured.
        settings: what the steps share.
        steps: in the order of a round.
        out: where the result is saved after each round, with the rounds so far; None: nowhere.
        start: begins a progress bar of so many steps.

    Raises:
        BenchmarkError: a server or a measuring process does not start, or ends.
    """
    cores = setup.layout
    found = environment.fingerprint(setup.bundle, setup.index, cores.server, cores.client, settings.seed)
    result = Result("narrows", datetime.now(UTC).isoformat(timespec="seconds"), found, asdict(settings), ())
    traffic = traffic_of(setup.bundle, settings.seed)
    kinds = sorted({step.traffic for step in steps if step.scenario not in UNLOADED}, reverse=True)
    calibration: Calibration | None = None
    for number in range(1, settings.rounds + 1):
        advance = start(f"round {number} of {settings.rounds}", len(steps) + (calibration is None))
        with session(setup, settings, traffic) as open_session:
            if calibration is None:
                calibration = open_session.calibrate(kinds)
                result = replace(result, settings=_with(result.settings, calibration, open_session.info.variant))
                advance(1)
            for step in steps:
                row = open_session.measure(step, calibration, number)
                result = replace(result, rows=(*result.rows, row))
                advance(1)
        if out:
            results.save(out, result)
    return result


def _with(settings: dict[str, Any], calibration: Calibration, variant: str) -> dict[str, Any]:
    return settings | {"variant": variant, "calibration": asdict(calibration)}
