"""What clients send to a reader and get from it: plain values, and the contract's messages (narrows.messages)."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from narrows import errors
from narrows.messages import VIEWS, Hit, Served, View, build, hit_of, named, pair, served_of
from narrows.v1 import retrieval_pb2 as pb

Rule = Literal["dpr", "hugging-face"]
RULES: dict[Rule, "pb.SpanRule.ValueType"] = {
    "dpr": pb.SPAN_RULE_DPR,
    "hugging-face": pb.SPAN_RULE_HUGGING_FACE,
}


@dataclass(frozen=True, slots=True)
class Span:
    """Words of a passage that answer a question, and how sure the reader is.

    `passage` is the position of its passage among those that were read; `start_byte` and `end_byte` (exclusive) are in
    the UTF-8 of its text, both 0 for words of its title.
    """

    text: str
    passage: int
    start_byte: int
    end_byte: int
    span_score: float
    relevance_score: float


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to a question, best first, and the passages that were read (none where they were given)."""

    spans: tuple[Span, ...]
    hits: tuple[Hit, ...]
    served: Served


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read: an AnswerRequest or a ReadRequest beside its question and its passages."""

    spans: int
    rule: Rule
    expected_bundle: str

    def answer_request(self, question: str, passages: int | None, view: View, corpus: str) -> pb.AnswerRequest:
        """The request to find so many passages and to read them; raises as SearchOptions.request does."""
        if passages is not None and passages < 1:
            raise errors.InvalidRequestError("it must be at least 1", "passages")
        return build(
            pb.AnswerRequest,
            question=question,
            passages=passages or 0,
            view=named(VIEWS, view, "view"),
            corpus=corpus,
            **self._common(),
        )

    def read_request(self, question: str, passages: Iterable[tuple[str, str]]) -> pb.ReadRequest:
        """The request to read these passages; raises as SearchOptions.request does."""
        messages = [build(pb.Passage, title=title, text=text) for title, text in map(pair, passages)]
        return build(pb.ReadRequest, question=question, passages=messages, **self._common())

    def _common(self) -> dict[str, object]:
        if self.spans < 1:
            raise errors.InvalidRequestError("it must be at least 1", "spans")
        rule = named(RULES, self.rule, "rule")
        return {"spans": self.spans, "rule": rule, "expected_bundle": self.expected_bundle}


def answers_of(reply: pb.AnswerResponse | pb.ReadResponse) -> Answers:
    """The spans, and the passages where the server found them."""
    spans = tuple(
        Span(s.text, s.passage, s.start_byte, s.end_byte, s.span_score, s.relevance_score) for s in reply.spans
    )
    hits = reply.hits if isinstance(reply, pb.AnswerResponse) else ()
    return Answers(spans, tuple(map(hit_of, hits)), served_of(reply.served))


def merged(answers: Sequence[Answers], parts: Sequence[Sequence[object]], count: int) -> Answers:
    """The best spans of several calls that each read a part of the passages: what one call would have answered.

    `served` is that of the call that took longest.
    """
    firsts = itertools.accumulate(map(len, parts), initial=0)
    spans = [
        replace(span, passage=first + span.passage)
        for first, found in zip(firsts, answers, strict=False)  # the last sum is of all passages
        for span in found.spans
    ]
    spans.sort(key=lambda span: -span.relevance_score)  # stable: of equally relevant passages the earlier one is first
    slowest = max(answers, key=lambda found: found.served.timings.read_ms)
    return Answers(tuple(spans[:count]), (), slowest.served)
