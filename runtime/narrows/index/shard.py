"""Parts of a file of passages, encoded by several machines."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several parts of a file of passages: consecutive rows, as many as in any other part, or one more."""

    number: int  # from 1
    of: int

    def rows(self, count: int) -> range:
        """The part's rows of a file with so many."""
        return range((self.number - 1) * count // self.of, self.number * count // self.of)

    def __str__(self) -> str:
        """As it is given: i/n."""
        return f"{self.number}/{self.of}"
