"""A question and passages in, spans out: convert, call, convert. A search for them first, where none are given."""

import asyncio
import time
from collections.abc import Callable, Sequence

from narrows.answers import Answer, AnswerFinder
from narrows.errors import InvalidRequestError, NoReaderError
from narrows.server import convert
from narrows.server.answers import Answers, check_wait
from narrows.server.application import Application, Backend
from narrows.server.convert import StageMs
from narrows.server.dispatch import Dispatcher
from narrows.spans import RULES, SpanRule
from narrows.tokenizer import TowerTokenizer
from narrows.v1 import retrieval_pb2 as pb
from narrows.work import Outcome

DEFAULT_PASSAGES, DEFAULT_SPANS = 50, 5
SPAN_RULES: dict[int, SpanRule] = {
    pb.SPAN_RULE_UNSPECIFIED: RULES["dpr"],
    pb.SPAN_RULE_DPR: RULES["dpr"],
    pb.SPAN_RULE_HUGGING_FACE: RULES["hugging-face"],
}


class Reading:
    """Reads for one Application. Every method raises the errors that narrows.server.errors has in its table."""

    def __init__(
        self, application: Application, backend: Callable[[], Backend], dispatcher: Dispatcher, answers: Answers
    ) -> None:
        self._app = application
        self._backend = backend
        self._dispatcher = dispatcher
        self._answers = answers
        self._finder = AnswerFinder(application.reader) if application.reader else None

    async def answer(self, request: pb.AnswerRequest, deadline_s: float) -> pb.AnswerResponse:
        """Searches for a question, and reads the passages found."""
        self._reader()
        rule = _checked_rule(request.rule)
        convert.check_view(request.view)
        convert.check_question(request.question, self._app.settings, "question")
        limits = self._app.settings
        most = min(limits.max_items, limits.max_k)
        wanted = convert.checked_count(request.passages, DEFAULT_PASSAGES, most, "passages")
        check_wait(self._backend(), "readings", deadline_s)
        search = pb.SearchRequest(
            questions=[request.question], k=wanted, corpus=request.corpus, expected_bundle=request.expected_bundle
        )
        found = await self._answers.search(search, deadline_s, sent_view=request.view)
        hits = found.results[0].hits
        passages = [(hit.passage.title, hit.passage.text) for hit in hits]
        spans, served = await self._read(request.question, passages, rule, request.spans, deadline_s)
        for hit in hits:
            if convert.STRINGS[request.view] < 3:
                hit.passage.text = ""
            if convert.STRINGS[request.view] < 2:
                hit.passage.title = ""
        found.served.timings.read_ms = served.timings.read_ms
        reply = pb.AnswerResponse(spans=spans, hits=hits, served=found.served, truncated=bool(found.truncated))
        convert.check_reply_bytes(reply.ByteSize(), limits, "Ask for fewer spans, or for less of each passage (view)")
        return reply

    async def read(self, request: pb.ReadRequest, deadline_s: float) -> pb.ReadResponse:
        """Reads the passages of the request."""
        self._reader()
        self._app.check_bundle(request.expected_bundle)
        rule, limits = _checked_rule(request.rule), self._app.settings
        convert.check_count(len(request.passages), limits.max_items, "passages", "passages")
        convert.check_question(request.question, limits, "question")
        passages = convert.checked_passages(request.passages, limits)
        check_wait(self._backend(), "readings", deadline_s)
        spans, served = await self._read(request.question, passages, rule, request.spans, deadline_s)
        reply = pb.ReadResponse(spans=spans, served=served)
        convert.check_reply_bytes(reply.ByteSize(), limits, "Ask for fewer spans")
        return reply

    async def _read(
        self, question: str, passages: Sequence[tuple[str, str]], rule: SpanRule, spans: int, deadline_s: float
    ) -> tuple[list[pb.Span], pb.Served]:
        tokenizer, finder = self._reader()
        backend = self._backend()
        started_s = time.monotonic()
        readings = await self._answers.texts.readings(tokenizer, question, passages)
        tokenized_s = time.monotonic()
        outcomes: list[Outcome] = []
        if readings:
            ids = [reading.ids for reading in readings]
            outcomes = await self._dispatcher.embed(backend.engine, "readings", ids, deadline_s)
        logits = [outcome.embedding for outcome in outcomes if outcome.embedding is not None]
        found = await asyncio.to_thread(finder.find, readings, logits, rule, spans or DEFAULT_SPANS)
        messages = [_span_message(answer) for answer in found]
        front = StageMs((tokenized_s - started_s) * 1e3, read_ms=(time.monotonic() - started_s) * 1e3)
        return messages, self._answers.served(backend, outcomes, front)

    def _reader(self) -> tuple[TowerTokenizer, AnswerFinder]:
        if self._app.reader is None or self._finder is None:
            name = self._app.bundle.manifest.name
            raise NoReaderError(f"bundle {name!r}, which is served here, has no reader: export it with --reader")
        return self._app.reader, self._finder


def _checked_rule(rule: int) -> SpanRule:
    if rule not in SPAN_RULES:
        raise InvalidRequestError(f"{rule} is not a value of SpanRule", "rule")
    return SPAN_RULES[rule]


def _span_message(answer: Answer) -> pb.Span:
    return pb.Span(
        text=answer.text,
        passage=answer.passage,
        start_byte=answer.start_byte,
        end_byte=answer.end_byte,
        span_score=answer.span_score,
        relevance_score=answer.relevance_score,
    )
