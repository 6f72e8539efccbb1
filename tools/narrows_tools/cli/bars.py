"""Progress bars on stderr for work in parts."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from narrows_tools.evaluation.steps import Advance, Start


@contextmanager
def bars() -> "Iterator[Start]":
    """Yields what begins a bar; the bar before it ends there."""
    from tqdm import tqdm

    with ExitStack() as shown:

        def start(what: str, total: int) -> "Advance":
            shown.close()
            return shown.enter_context(tqdm(desc=what, total=total, file=sys.stderr, unit="")).update

        yield start
