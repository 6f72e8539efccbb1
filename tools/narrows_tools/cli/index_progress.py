"""Progress of the commands that make an index, on stderr."""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from narrows.index.progress import Progress


class Bars(Progress):
    """Counts of what is read, encoded and filled, with rates and times to go; and lines for what takes a moment."""

    def __init__(self) -> None:
        """Begins with a count of what is read."""
        self.bar = tqdm(desc="reading", unit=" passages", file=sys.stderr)
        self._kept = 0

    def reading(self, passages: int) -> None:
        """So many were read."""
        self.bar.update(passages - self.bar.n)

    def noted(self, lines: Sequence[str]) -> None:
        """Says what is to be known."""
        self._say(*lines)

    def resuming(self, encoded: int, passages: int) -> None:
        """Says where a build goes on."""
        self._kept = encoded
        self._say(f"resuming at {encoded} of {passages} passages")

    def estimated(self, passages: int, seconds: float) -> None:
        """Says how long encoding should take, and begins a bar for it."""
        minutes, rest = divmod(round(seconds), 60)
        self._say(f"encoding {passages} passages should take about {minutes} min {rest} s")
        self._begin("encoding", self._kept + passages, self._kept, smoothing=0.05)

    def encoded(self, passages: int) -> None:
        """So many more."""
        self.bar.update(passages)

    def importing(self, vectors: int, passages: int) -> None:
        """So many are in."""
        if self.bar.desc != "importing":
            self._begin("importing", passages, 0)
        self.bar.update(vectors - self.bar.n)

    def training(self, rows: int) -> None:
        """Says that training begins; FAISS does not tell how far it is."""
        self._say(f"training on {rows} vectors")

    def filling(self, rows: int, count: int) -> None:
        """So many vectors are in."""
        if self.bar.desc != "filling":
            self._begin("filling", count, rows)
        self.bar.update(rows - self.bar.n)

    def step(self, what: str) -> None:
        """Says what is measured."""
        self._say(what)

    def close(self) -> None:
        """Ends the bar."""
        self.bar.close()

    def _say(self, *lines: str) -> None:
        self.bar.close()
        for line in lines:
            print(line, file=sys.stderr)

    def _begin(self, what: str, total: int, done: int, smoothing: float = 0.3) -> None:
        self.bar.close()
        self.bar = tqdm(desc=what, total=total, initial=done, unit=" passages", file=sys.stderr, smoothing=smoothing)
