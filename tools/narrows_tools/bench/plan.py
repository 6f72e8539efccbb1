"""What a run measures: steps, as data, and the settings that they share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from narrows_tools.bench.results import Scenario

TrafficKind = Literal["short", "mixed"]
SWEEP = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 1.2)  # of the saturation
QUICK_SWEEP = (0.1, 0.7, 1.2)
MIXED_SWEEP = (0.1, 0.7)
MIXED_LANES_LOAD = 0.3
UNLOADED: tuple[Scenario, ...] = ("start", "single")  # need no saturation


@dataclass(frozen=True, slots=True)
class Step:
    """One measurement. An open loop's rate is `rate_per_s`, or `load` times the saturation where that is 0."""

    scenario: Scenario
    traffic: TrafficKind = "short"
    load: float = 0.0
    rate_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What all steps share; kept with the results."""

    method: Literal["encode", "search"] = "encode"
    rounds: int = 5
    seconds: float = 5.0  # of each load, and of the whole grid of a ceiling
    clients: int = 32  # of a closed loop
    seed: int = 0


def standard(sweep: Sequence[float] = SWEEP) -> tuple[Step, ...]:
    """The standard set, in the order of a round."""
    return (
        Step("start"),
        Step("single"),
        Step("ceiling"),
        Step("closed"),
        *(Step("open", load=load) for load in sweep),
        Step("ceiling", "mixed"),
        Step("closed", "mixed"),
        *(Step("open", "mixed", load=load) for load in MIXED_SWEEP),
        Step("mixed_lanes", load=MIXED_LANES_LOAD),
        Step("server"),
        Step("offline"),
        Step("offline", "mixed"),
    )


def only(steps: Iterable[Step], scenarios: Sequence[str]) -> tuple[Step, ...]:
    """The steps of these scenarios; all of them where none is named."""
    return tuple(step for step in steps if not scenarios or step.scenario in scenarios)
