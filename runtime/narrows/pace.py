"""What batches have lately taken under load, beside what the cost table says of them."""

WINDOW = 0.9  # what a batch still counts when the next one has been timed
PRIOR_MS = 100.0  # so much work is taken to have cost what the table says
BOUNDS = (0.5, 4.0)  # a process that was suspended must not be refusing for long


class Pace:
    """Learns from batches that left something waiting: all the time until the next one went into such a batch."""

    def __init__(self) -> None:
        self._running: tuple[float, float, float] | None = None  # such a batch: when it began, worth, predicted time
        self.forget()

    def forget(self) -> None:
        """Goes back to the table."""
        self._taken_ms = self._worth_ms = self._predicted_ms = PRIOR_MS

    @property
    def slowdown(self) -> float:
        """How many times longer work takes than in full batches by the table: padding, small batches, noise, others."""
        return _bounded(self._taken_ms / self._worth_ms)

    @property
    def overrun(self) -> float:
        """How many times longer a batch takes than the table says."""
        return _bounded(self._taken_ms / self._predicted_ms)

    def began(self, now_s: float, worth_ms: float, predicted_ms: float) -> None:
        """A batch begins and leaves something waiting; its works are worth `worth_ms` in full batches."""
        self._running = now_s, worth_ms, predicted_ms

    def free(self, now_s: float) -> None:
        """The stage is ready for the next batch."""
        if self._running is None:
            return
        began_s, worth_ms, predicted_ms = self._running
        taken_ms = min((now_s - began_s) * 1e3, predicted_ms * BOUNDS[1])
        self._taken_ms = WINDOW * self._taken_ms + taken_ms
        self._worth_ms = WINDOW * self._worth_ms + worth_ms
        self._predicted_ms = WINDOW * self._predicted_ms + predicted_ms
        self._running = None


def _bounded(ratio: float) -> float:
    low, high = BOUNDS
    return min(max(ratio, low), high)
