"""Tokenizing for the front: short texts at once, long ones on one thread of their own, never more than it can take."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from narrows.errors import OverloadedError
from narrows.tokenizer import Reading, TokenizedText, TowerTokenizer

# Calls up to this size are tokenized on the event loop: handing them to a thread would take longer.
INLINE_CHARS = 4096
# Text that may wait for the thread. It takes 1 to 3 microseconds a character, so the last in waits some seconds.
MAX_WAITING_CHARS = 2_000_000
RETRY_AFTER_MS = 1000

T = TypeVar("T")


class Texts:
    """Tokenizes with a bundle's tokenizers. Lives on one event loop."""

    def __init__(self, questions: TowerTokenizer, passages: TowerTokenizer) -> None:
        self._questions = questions
        self._passages = passages
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="narrows-tokenizer")
        self._waiting_chars = 0

    async def tokenize(self, questions: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[TokenizedText]:
        """Tokenizes questions, then (title, text) pairs.

        Raises:
            OverloadedError: too much text is waiting to be tokenized.
        """

        def run() -> list[TokenizedText]:
            return self._questions.questions(questions) + self._passages.passages(pairs)

        return await self._run(run, sum(map(len, questions)) + _chars(pairs))

    async def readings(self, reader: TowerTokenizer, question: str, pairs: Sequence[tuple[str, str]]) -> list[Reading]:
        """Tokenizes a question with each of some (title, text), for a reader; raises as `tokenize`."""
        return await self._run(lambda: reader.readings(question, pairs), len(question) + _chars(pairs))

    async def _run(self, run: Callable[[], T], chars: int) -> T:
        if chars <= INLINE_CHARS:
            return run()
        if self._waiting_chars and self._waiting_chars + chars > MAX_WAITING_CHARS:
            message = f"{self._waiting_chars} characters wait to be tokenized; at most {MAX_WAITING_CHARS} may"
            raise OverloadedError(message, RETRY_AFTER_MS)
        self._waiting_chars += chars
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)
        finally:
            self._waiting_chars -= chars


def _chars(pairs: Sequence[tuple[str, str]]) -> int:
    return sum(len(title) + len(text) for title, text in pairs)
