"""Which words of a passage are the answer: from the reader's logits to spans of tokens, for a whole batch at once.

A span's score is the sum of its start logit and its end logit. Two rules are in use:

    dpr            within the text; at most 10 tokens, then extended to whole words (dpr/data/reader_data.py,
                   get_best_spans)
    hugging-face   within title and text, which decode_best_spans does not tell apart; at most 64 tokens, as they are
                   (transformers, tokenization_dpr.py)

By both, a span that holds a better one, or lies within one, is passed over.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]
RuleName = Literal["dpr", "hugging-face"]


@dataclass(frozen=True, slots=True)
class SpanRule:
    """`max_tokens` before a span is extended to whole words, if it is; so many spans `per_passage` at most.

    `titles`: whether an answer may lie in the title.
    """

    max_tokens: int
    whole_words: bool
    per_passage: int
    titles: bool = False


RULES: dict[RuleName, SpanRule] = {"dpr": SpanRule(10, True, 1), "hugging-face": SpanRule(64, False, 4, titles=True)}


@dataclass(frozen=True, slots=True)
class Spans:
    """Of each text, best first: `starts` and `ends` (both inclusive) and `scores`, all (texts, per_passage).

    Where a text has fewer spans, the others are -1 and minus infinity.
    """

    starts: Places
    ends: Places
    scores: Logits


def best_spans(
    start_logits: Logits,
    end_logits: Logits,
    firsts: Places,
    lengths: Places,
    continues: npt.NDArray[np.bool_],
    rule: SpanRule,
) -> Spans:
    """Finds the best spans within the passages of a batch.

    Of equal scores the one that begins first counts, then the shorter one.

    Args:
        start_logits: float32 (texts, tokens).
        end_logits: float32 (texts, tokens).
        firsts: int64 (texts,), where the passage begins.
        lengths: int64 (texts,), where it ends; what comes after is padding.
        continues: bool (texts, tokens), whether a token goes on with the word of the one before it.
        rule: how long a span may be, and how many are wanted.
    """
    texts, tokens = start_logits.shape
    width = min(rule.max_tokens, tokens)
    place = np.arange(tokens)
    word_starts, word_ends = _word_bounds(firsts, lengths, continues) if rule.whole_words else (place, place)

    def ends_of(values: npt.NDArray[Any], beyond: float) -> npt.NDArray[Any]:
        """(texts, tokens, width): what each start sees of a value by end, for the spans of 1, 2, ... tokens."""
        padded = np.pad(np.broadcast_to(values, (texts, tokens)), ((0, 0), (0, width - 1)), constant_values=beyond)
        return np.lib.stride_tricks.sliding_window_view(padded, width, axis=1)

    scores = start_logits[:, :, None] + ends_of(end_logits, -np.inf)
    inside = (place >= firsts[:, None])[:, :, None] & (ends_of(place, tokens) < lengths[:, None, None])
    scores = np.where(inside, scores, np.float32(-np.inf)).reshape(texts, -1)
    begins = np.broadcast_to(np.broadcast_to(word_starts, (texts, tokens))[:, :, None], (texts, tokens, width))
    begins, finishes = begins.reshape(texts, -1), ends_of(word_ends, tokens).reshape(texts, -1)

    found = Spans(
        np.full((texts, rule.per_passage), -1, dtype=np.int64),
        np.full((texts, rule.per_passage), -1, dtype=np.int64),
        np.full((texts, rule.per_passage), -np.inf, dtype=np.float32),
    )
    every = np.arange(texts)
    for number in range(rule.per_passage):
        best = scores.argmax(axis=1)
        score = scores[every, best]
        some = np.isfinite(score)
        start, end = begins[every, best], finishes[every, best]
        found.starts[some, number], found.ends[some, number] = start[some], end[some]
        found.scores[some, number] = score[some]
        holds = (begins <= start[:, None]) & (end[:, None] <= finishes)
        within = (start[:, None] <= begins) & (finishes <= end[:, None])
        scores[holds | within] = -np.inf
    return found


def _word_bounds(firsts: Places, lengths: Places, continues: npt.NDArray[np.bool_]) -> tuple[Places, Places]:
    """(texts, tokens) each: the first and the last token of the word that a token belongs to, within the passage."""
    place = np.arange(continues.shape[1])
    begins = ~continues | (place == firsts[:, None])
    starts = np.maximum.accumulate(np.where(begins, place, 0), axis=1)
    last = place == lengths[:, None] - 1
    ends_here = np.concatenate([begins[:, 1:], np.ones((len(begins), 1), dtype=bool)], axis=1) | last
    far = np.where(ends_here, place, continues.shape[1])
    ends = np.minimum.accumulate(far[:, ::-1], axis=1)[:, ::-1]
    return starts, ends
