"""What crosses the seam between the front and the engine: plain data only.

No gRPC context, no future and no text: the same values later cross a process boundary. Each submitted Work gets
exactly one Outcome.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

# The canary is a question by which a front sees that all is well; a reading is a question with a passage, for a reader.
Lane = Literal["canary", "questions", "readings", "passages"]
# Why a Work has no answer: refused by admission, shutting down, too late, no longer wanted, the engine failed on it,
# the engine's process died, or it died of this very text or vector before.
Refusal = Literal["overloaded", "draining", "expired", "cancelled", "failed", "down", "poisonous"]


@dataclass(frozen=True, slots=True)
class Work:
    """One text to embed, or one vector to search with.

    `token_ids` (int64, (tokens,)) or `vector` (float32, (dim,)) is set; `k` = 0 means embed only; `deadline_s` is
    absolute, on CLOCK_MONOTONIC. `source` is the stream that it came by; 0 is all calls that are none.
    """

    request_id: int
    lane: Lane
    deadline_s: float
    token_ids: npt.NDArray[np.int64] | None = None
    vector: npt.NDArray[np.float32] | None = None
    k: int = 0
    source: int = 0

    @property
    def tokens(self) -> int:
        """Length in tokens; one for a vector."""
        return 1 if self.token_ids is None else len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds in each stage; texts in the encoder's batch, and tokens each was padded to (0: nothing encoded)."""

    queue_ms: float = 0.0
    encode_ms: float = 0.0
    search_ms: float = 0.0
    batch_size: int = 0
    batch_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to one Work, or the reason why there is none.

    `embedding` is float32 (dim,), or the logits of a reading, flat; `rows` int64 and `scores` float32 are (k,), best
    first, when k was above 0.
    """

    request_id: int
    refusal: Refusal | None = None
    message: str = ""
    retry_after_ms: int = 0
    embedding: npt.NDArray[np.float32] | None = None
    rows: npt.NDArray[np.int64] | None = None
    scores: npt.NDArray[np.float32] | None = None
    timings: Timings = Timings()


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine computes with.

    `tower_ids` are those of both towers; `index_id` stands for every byte of the index (empty: there is none).
    """

    variant: str
    passage_variant: str
    device: str
    tower_ids: tuple[str, str]
    index_id: str
