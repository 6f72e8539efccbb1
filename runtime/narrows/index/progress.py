"""What the makers of an index tell of their progress."""

from collections.abc import Sequence


class Progress:
    """Told how it goes; this one says nothing."""

    def reading(self, passages: int) -> None:
        """So many passages were read and checked."""

    def noted(self, lines: Sequence[str]) -> None:
        """What is to be known of the index that is made, such as why a preset was picked."""

    def resuming(self, encoded: int, passages: int) -> None:
        """So many of the passages were encoded by a build that was stopped; this one goes on from there."""

    def estimated(self, passages: int, seconds: float) -> None:
        """Encoding of so many passages begins; it should take so long."""

    def encoded(self, passages: int) -> None:
        """So many more passages were encoded."""

    def importing(self, vectors: int, passages: int) -> None:
        """So many vectors of other files are in, of as many as there are passages."""

    def training(self, rows: int) -> None:
        """Training on so many vectors begins."""

    def filling(self, rows: int, count: int) -> None:
        """So many of the vectors are in the structure."""

    def step(self, what: str) -> None:
        """This is checked or measured next."""
