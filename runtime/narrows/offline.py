"""Many texts -> embeddings, as fast as the cores allow: batches of like length, several at a time on one session.

On a CPU two threads that each run a batch of their own do more than two that share one, and a batch need only be large
enough to keep a core's multiplications busy: beyond some hundred tokens its activations outgrow the cache and it gets
slower again (decision 036). So the towers are loaded with one thread each, and called from many. A GPU runs one batch
at a time, a large one, while other threads wait for their turn.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from narrows.encoder import Embeddings
from narrows.tokenizer import TokenizedText
from narrows.towers import Tower

GPU_THREADS = 2  # one pads the next batch while one waits for the card
CHUNKS_AHEAD = 1  # begun before the one that is waited for is done: no thread idles at a chunk's end


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Texts whose batches were handed to the threads; each writes the rows of its batch."""

    texts: Sequence[TokenizedText]
    embeddings: Embeddings
    batches: Sequence["Future[int]"]  # each gives how many texts it had


def embed(
    tower: Tower, texts: Sequence[TokenizedText], threads: int, encoded: Callable[[int], object] = lambda count: None
) -> Embeddings:
    """The embeddings of texts, float32 (texts, dim); as `embed_chunks`."""
    [(_, embeddings)] = embed_chunks(tower, [texts], threads, encoded)
    return embeddings


def embed_chunks(
    tower: Tower, chunks: Iterable[Sequence[TokenizedText]], threads: int, encoded: Callable[[int], object]
) -> Iterator[tuple[Sequence[TokenizedText], Embeddings]]:
    """Yields each chunk of texts with its embeddings, float32 (texts, dim), in order.

    While one is awaited the next is encoded already, so what the caller does to make a chunk and to use its embeddings
    stops no thread. Which texts share a batch depends on the texts of the chunk alone, not on threads or machine.

    Args:
        tower: loaded with one thread.
        chunks: of any size; taken when there is room for them.
        threads: batches run at a time.
        encoded: told, in the calling thread, how many more texts are done.

    Raises:
        BundleError: an embedding is not finite.
    """
    pool = ThreadPoolExecutor(min(threads, GPU_THREADS) if tower.encoder.device.is_gpu else threads, "encode")
    under_way: deque[_Chunk] = deque()
    try:
        for texts in chunks:
            under_way.append(_begin(pool, tower, texts))
            if len(under_way) > CHUNKS_AHEAD:
                yield _end(under_way.popleft(), encoded)
        while under_way:
            yield _end(under_way.popleft(), encoded)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(pool: ThreadPoolExecutor, tower: Tower, texts: Sequence[TokenizedText]) -> _Chunk:
    embeddings = np.empty((len(texts), tower.manifest.dim), dtype=np.float32)

    def run(batch: list[int]) -> int:
        embeddings[batch] = tower.encoder.encode([texts[number].ids for number in batch])
        return len(batch)

    grouped = batches([len(text.ids) for text in texts], tower.encoder.offline_texts)
    return _Chunk(texts, embeddings, [pool.submit(run, batch) for batch in grouped])


def _end(chunk: _Chunk, encoded: Callable[[int], object]) -> tuple[Sequence[TokenizedText], Embeddings]:
    for batch in chunk.batches:
        encoded(batch.result())
    return chunk.texts, chunk.embeddings


def batches(lengths: Sequence[int], most_texts: Callable[[int], int]) -> list[list[int]]:
    """Positions of texts, grouped by like length; the groups shuffled with a fixed seed, for an even progress.

    `most_texts` says how many go together, given the length of the longest.
    """
    longest_first = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    grouped, start = [], 0
    while start < len(longest_first):
        size = most_texts(lengths[longest_first[start]])
        grouped.append(longest_first[start : start + size])
        start += size
    random.Random(0).shuffle(grouped)  # noqa: S311  (no secret)
    return grouped
