"""Which sound variant of the question encoder is the fastest on this machine: each is loaded, checked and timed."""

import ctypes
import logging
import time
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from narrows import variants
from narrows.bundle import Bundle, Role
from narrows.errors import BundleError
from narrows.tokenizer import TokenIds
from narrows.towers import Tower, load_towers
from narrows.variants import Choice

log = logging.getLogger(__name__)

BATCHES = ((8,), (12,), (16,), (24,), (16,) * 8)  # tokens of short questions: alone, and eight at a time
BUDGET_MS = 150.0  # for each variant, after one round of the batches and before at least one more


def load_fastest(
    bundle: Bundle, index_variant: str | None, wanted: str, threads: int
) -> tuple[Choice, dict[Role, Tower]]:
    """Loads the towers to serve with: the passages' as the index needs it, the questions' as `variants.choose` says.

    A variant that is off its golden embeddings on this machine is left out while there is another. A wanted one is
    timed against none.

    Raises:
        BundleError: as `load_towers`.
    """
    passage = variants.passage_variant(index_variant, wanted)
    loaded: dict[tuple[str, str], Tower] = {}
    context = load_towers(bundle, passage, threads, ["context_encoder"], loaded)
    names = variants.candidates(bundle.manifest, passage, wanted)
    found: dict[str, Tower] = {}
    for name in names:
        try:
            found[name] = load_towers(bundle, name, threads, ["question_encoder"], loaded)["question_encoder"]
        except BundleError as error:
            if not found and name == names[-1]:
                raise
            log.warning("left out: %s", error)
    times_ms = time_questions(found) if len(found) > 1 else dict.fromkeys(found, 0.0)
    question = variants.fastest(times_ms)
    if len(found) > 1:
        measured = ", ".join(f"{name} {ms:.1f} ms" for name, ms in times_ms.items())
        log.info("questions by %s: a mix of short ones took %s", question, measured)
    choice = Choice(question, passage, variants.pair_warning(bundle.manifest, question, passage))
    towers: dict[Role, Tower] = {"question_encoder": found[question], **context}
    found.clear()
    loaded.clear()
    _give_back_memory()
    return choice, towers


def time_questions(towers: Mapping[str, Tower]) -> dict[str, float]:
    """Milliseconds that each tower takes for the same short questions; the shortest run of each batch counts.

    The towers take turns, so that a disturbance meets them all.
    """
    clock = time.monotonic
    best_s = {name: [float("inf")] * len(BATCHES) for name in towers}
    texts = [[_token_ids(tokens) for tokens in batch] for batch in BATCHES]
    for tower in towers.values():  # the first runs allocate
        for batch in texts:
            tower.encoder.encode(batch)
    end_s = clock() + BUDGET_MS / 1e3 * len(towers)
    while True:
        for name, tower in towers.items():
            for number, batch in enumerate(texts):
                started_s = clock()
                tower.encoder.encode(batch)
                best_s[name][number] = min(best_s[name][number], clock() - started_s)
        if clock() >= end_s:
            return {name: 1e3 * sum(times) for name, times in best_s.items()}


def _give_back_memory() -> None:
    """Returns to the system what towers had that are gone; glibc would keep it."""
    with suppress(AttributeError, OSError):  # other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def _token_ids(tokens: int) -> TokenIds:
    return np.zeros(tokens, dtype=np.int64)  # any will do: the time depends on their number
