"""What a section of the GPU benchmark is told, and the rows that it hands back one by one: a kill loses none."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

Kind = Literal["", "floor", "at least", "at most"]
Outcome = Literal["measured", "skipped", "failed"]
WARM_RUNS, MIN_RUNS, MAX_RUNS = 2, 5, 20_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured. `repeat_s` goes into each figure, `load_s` into each load of a server."""

    matmul: int = 8192
    copy_bytes: int = 2**30
    repeat_s: float = 0.5
    batches: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256)
    passages: int = 8192
    vectors: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    dim: int = 768
    search_batches: tuple[int, ...] = (1, 32, 256)
    ivf_vectors: int = 1_000_000
    served: int = 1_000_000
    frontends: tuple[int, ...] = (1, 4, 8)
    load_s: float = 4.0


FULL = Sizes()
QUICK = Sizes(
    matmul=256, copy_bytes=2**22, repeat_s=0.05, batches=(1, 4), passages=32, vectors=(3000,), dim=64,
    search_batches=(1, 8), ivf_vectors=3000, served=400, frontends=(1,), load_s=0.5,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Floors:
    """What the card can do, as measured; 0: not known."""

    matmul_flop_per_s: float = 0.0
    copy_bytes_per_s: float = 0.0

    def ms(self, operations: float = 0.0, size_bytes: float = 0.0) -> float | None:
        """The least time for so many operations and so many bytes moved; None where nothing is known."""
        times = [
            amount / rate * 1e3
            for amount, rate in ((operations, self.matmul_flop_per_s), (size_bytes, self.copy_bytes_per_s))
            if amount and rate
        ]
        return max(times, default=None)


@dataclass(frozen=True, slots=True)
class Order:
    """What a section is to measure, with what, and by when."""

    section: str
    device: str
    sizes: Sizes
    bundle: Path | None
    checkpoint: Path | None
    questions: Path | None
    passages: Path | None
    scratch: Path
    rows_file: Path
    end_s: float  # by time.time(), which processes share
    floors: Floors


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `bound` is the floor, or the goal, in the row's own unit."""

    section: str
    what: str
    value: float | None = None
    unit: str = ""
    bound: float | None = None
    kind: Kind = ""
    remark: str = ""
    outcome: Outcome = "measured"

    @property
    def ratio(self) -> float | None:
        """Value to bound."""
        return None if self.value is None or not self.bound else self.value / self.bound

    @property
    def met(self) -> bool | None:
        """Whether a goal was met; None: it is no goal."""
        if self.value is None or self.bound is None or self.kind in ("", "floor"):
            return None
        return self.value >= self.bound if self.kind == "at least" else self.value <= self.bound


@dataclass(frozen=True, slots=True)
class Times:
    """Of one call, in milliseconds."""

    p50_ms: float
    p99_ms: float
    runs: int


class Bench:
    """A section at work: its order, its rows, its time."""

    def __init__(self, order: Order) -> None:
        self.order = order

    def left_s(self) -> float:
        """Until the section is ended."""
        return self.order.end_s - time.time()

    def say(self, what: str) -> None:
        """Tells what goes on."""
        print(f"[{self.order.section}] {what} ({self.left_s():.0f} s left)", file=sys.stderr, flush=True)

    def row(
        self, what: str, value: float | None, unit: str, bound: float | None = None, kind: Kind = "", remark: str = ""
    ) -> None:
        """Hands a figure back."""
        self._write(Row(self.order.section, what, value, unit, bound, kind if bound else "", remark))

    def text(self, what: str, text: str) -> None:
        """Hands something back that is no number."""
        self._write(Row(self.order.section, what, remark=text))

    def skip(self, what: str, why: str) -> None:
        """Says what was not measured."""
        self._write(Row(self.order.section, what, remark=why, outcome="skipped"))

    def fail(self, what: str, why: str) -> None:
        """Says what went wrong."""
        self._write(Row(self.order.section, what, remark=why, outcome="failed"))

    def attempt(self, what: str, run: Callable[[], object], needed_s: float = 0.0) -> None:
        """Runs a part of the section that may fail, or lack the time, without the others."""
        if self.left_s() < needed_s:
            self.skip(what, f"{self.left_s():.0f} s were left, {needed_s:.0f} s are needed")
            return
        self.say(what)
        try:
            run()
        except Exception as error:
            self.fail(what, reason(error))

    def timed(self, run: Callable[[], object]) -> Times:
        """Times calls, after some that warm up."""
        for _ in range(WARM_RUNS):
            run()
        times: list[float] = []
        begin_s = time.perf_counter()
        while len(times) < MIN_RUNS or (
            time.perf_counter() - begin_s < self.order.sizes.repeat_s and len(times) < MAX_RUNS
        ):
            start_s = time.perf_counter()
            run()
            times.append(time.perf_counter() - start_s)
        p50, p99 = np.percentile(times, (50, 99)) * 1e3
        return Times(float(p50), float(p99), len(times))

    def _write(self, row: Row) -> None:
        with self.order.rows_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(row)) + "\n")


def read_rows(file: Path) -> list[Row]:
    """The rows that a section handed back; a last line that was cut short is left out."""
    lines = file.read_text("utf-8").split("\n")[:-1] if file.exists() else []
    return [Row(**json.loads(line)) for line in lines]


def reason(error: BaseException) -> str:
    """An error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


def floors_of(rows: list[Row]) -> Floors:
    """The best rates that section `floors` found."""
    best = {
        unit: max((row.value or 0.0 for row in rows if row.unit == unit), default=0.0) for unit in ("TFLOP/s", "GB/s")
    }
    return Floors(best["TFLOP/s"] * 1e12, best["GB/s"] * 1e9)


def table(rows: list[Row]) -> str:
    """Plain text: section, what, value, unit, floor or goal, ratio, remark."""
    cells = [("section", "what", "value", "unit", "floor or goal", "ratio", "")]
    for row in rows:
        bound = "" if row.bound is None else f"{row.kind} {_number(row.bound)}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        outcome = "" if row.outcome == "measured" else row.outcome.upper() + ":"
        remark = " ".join(part for part in (verdict, outcome, row.remark) if part)
        value = "" if row.value is None else _number(row.value)
        cells.append((row.section, row.what, value, row.unit, bound, ratio, remark))
    widths = [max(len(line[column]) for line in cells) for column in range(6)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in (2, 5) else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, [*widths, 0], strict=True))
        ).rstrip()
        for line in cells
    )


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.6f}" if 0.9 < value <= 1.1 else f"{value:.4g}"
