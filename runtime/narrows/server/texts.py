"""Tokenizing for the front: short texts at once, long ones on one thread of their own, never more than it can take."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from narrows.errors import OverloadedError
from narrows.tokenizer import TokenizedText, TowerTokenizer

# Calls up to this size are tokenized on the event loop: handing them to a thread would take longer.
INLINE_CHARS = 4096
# Text that may wait for the thread. It takes 1 to 3 microseconds a character, so the last in waits some seconds.
MAX_WAITING_CHARS = 2_000_000
RETRY_AFTER_MS = 1000


class Texts:
    """Tokenizes with a bundle's two tokenizers. Lives on one event loop."""

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
        chars = sum(map(len, questions)) + sum(len(title) + len(text) for title, text in pairs)
        if chars <= INLINE_CHARS:
            return self._run(questions, pairs)
        if self._waiting_chars and self._waiting_chars + chars > MAX_WAITING_CHARS:
            message = f"{self._waiting_chars} characters wait to be tokenized; at most {MAX_WAITING_CHARS} may"
            raise OverloadedError(message, RETRY_AFTER_MS)
        self._waiting_chars += chars
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._run, questions, pairs)
        finally:
            self._waiting_chars -= chars

    def _run(self, questions: Sequence[str], pairs: Sequence[tuple[str, str]]) -> list[TokenizedText]:
        return self._questions.questions(questions) + self._passages.passages(pairs)
