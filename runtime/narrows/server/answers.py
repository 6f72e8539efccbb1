"""One request in, its answer out: convert, call, convert. The same for a unary call and for a request of a stream."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

import narrows
from narrows.bundle import TowerManifest
from narrows.errors import InvalidRequestError, OverloadedError
from narrows.index.corpus import Corpus
from narrows.server import convert
from narrows.server.application import Application, Backend
from narrows.server.convert import StageMs
from narrows.server.dispatch import Dispatcher
from narrows.server.texts import Texts
from narrows.tokenizer import TokenizedText
from narrows.v1 import retrieval_pb2 as pb
from narrows.work import Lane, Outcome

DEFAULT_K = 10
# Up to so many passages are looked up on the event loop: handing them to a thread would take longer.
INLINE_PASSAGES = 200
# What GetServerInfo lists; the first need an index.
SEARCH_FEATURES = ("search", "search_stream", "get_passages")
ENCODE_FEATURES = ("encode", "encode_stream", "tokenize")
READER_FEATURES = ("answer", "read")  # the first needs an index

CANARY = "is anybody there?"

T = TypeVar("T")


class Answers:
    """Answers for one Application, with the backend of the moment.

    Deadlines are absolute, on CLOCK_MONOTONIC; `source` is the stream that a request came by, 0 for a call of its own.

    Every method raises the errors that narrows.server.errors has in its table.
    """

    def __init__(self, application: Application, backend: Callable[[], Backend], dispatcher: Dispatcher) -> None:
        self._app = application
        self._backend = backend
        self._dispatcher = dispatcher
        self.texts = Texts(application.questions, application.passages)

    async def search(
        self, request: pb.SearchRequest, deadline_s: float, source: int = 0, sent_view: int | None = None
    ) -> pb.SearchResponse:
        """Answers questions, or searches with ready embeddings.

        `sent_view` is the view that must fit into a reply, where the caller sends less of each passage than it needs.
        """
        app, backend = self._app, self._backend()
        app.check_bundle(request.expected_bundle)
        corpus = backend.named_corpus(request.corpus)
        check_wait(backend, "questions", deadline_s, source)
        k = convert.checked_count(request.k, DEFAULT_K, app.settings.max_k, "k")
        convert.check_view(request.view)
        if bool(request.questions) == request.HasField("question_embeddings"):
            raise InvalidRequestError("give exactly one of questions and question_embeddings", "questions")
        if request.questions:
            outcomes, truncated, front = await self._search_texts(request, backend, k, deadline_s, source)
        else:
            tensor = request.question_embeddings
            convert.check_count(tensor.rows, app.settings.max_items, "question_embeddings.rows", "embeddings")
            vectors = convert.checked_vectors(tensor, corpus.manifest.dim, corpus.manifest.max_norm)
            outcomes = await self._dispatcher.search(backend.engine, vectors, deadline_s, k, source)
            truncated, front = [], StageMs()
        started_s = time.monotonic()
        rows = np.concatenate([outcome.rows for outcome in outcomes if outcome.rows is not None])
        advice = f"{len(outcomes)} questions x {k} passages: ask for fewer of either, or for less of each (view)"
        size = convert.passages_bytes(corpus.passages, rows, request.view if sent_view is None else sent_view)
        convert.check_reply_bytes(size, app.settings, advice)
        results = await _off_loop(len(rows), convert.hit_lists, outcomes, corpus.passages, request.view)
        front = StageMs(front.tokenize_ms, (time.monotonic() - started_s) * 1e3)
        return pb.SearchResponse(
            results=results, served=self.served(backend, outcomes, front, corpus), truncated=truncated
        )

    async def encode(self, request: pb.EncodeRequest, deadline_s: float, source: int = 0) -> pb.EncodeResponse:
        """Embeds questions with one tower and passages with the other."""
        app, limits, backend = self._app, self._app.settings, self._backend()
        app.check_bundle(request.expected_bundle)
        convert.check_dtype(request.dtype)
        count = len(request.questions) + len(request.passages)
        convert.check_count(count, limits.max_items, "questions", "texts (questions and passages)")
        if request.questions:
            check_wait(backend, "questions", deadline_s, source)
        if request.passages:
            check_wait(backend, "passages", deadline_s, source)
        size = count * app.bundle.manifest.dim * convert.DTYPES[request.dtype].itemsize
        convert.check_reply_bytes(size, limits, "Send fewer texts in one call")
        questions = convert.checked_questions(request.questions, limits)
        pairs = convert.checked_passages(request.passages, limits)
        texts, front = await self._tokenize(questions, pairs)
        question_texts, passage_texts = texts[: len(questions)], texts[len(questions) :]
        on_too_long = request.on_too_long
        truncated = convert.check_lengths(question_texts, on_too_long, app.questions.max_tokens, "questions")
        truncated_passages = convert.check_lengths(passage_texts, on_too_long, app.passages.max_tokens, "passages")
        outcomes = await self._embed_both(backend, question_texts, passage_texts, deadline_s, source)
        embeddings = np.stack([outcome.embedding for outcome in outcomes if outcome.embedding is not None])
        return pb.EncodeResponse(
            embeddings=convert.tensor_message(embeddings, request.dtype),
            token_counts=[len(text.ids) for text in texts],
            truncated=truncated + [len(questions) + number for number in truncated_passages],
            served=self.served(backend, outcomes, front),
        )

    async def get_passages(self, request: pb.GetPassagesRequest) -> pb.GetPassagesResponse:
        """Looks passages up by id."""
        started_s = time.monotonic()
        backend = self._backend()
        corpus = backend.named_corpus(request.corpus)
        convert.check_view(request.view)
        convert.check_count(len(request.ids), self._app.settings.max_ids, "ids", "ids")
        rows = await _off_loop(len(request.ids), lambda: [corpus.passages.find(wanted) for wanted in request.ids])
        found = np.array([row for row in rows if row is not None], dtype=np.int64)
        missing = [wanted for wanted, row in zip(request.ids, rows, strict=True) if row is None]
        size = convert.passages_bytes(corpus.passages, found, request.view) + convert.strings_bytes(missing)
        convert.check_reply_bytes(size, self._app.settings, "Ask for fewer ids in one call")
        messages = await _off_loop(len(found), convert.passage_messages, corpus.passages, found, request.view)
        front = StageMs(fetch_ms=(time.monotonic() - started_s) * 1e3)
        return pb.GetPassagesResponse(
            passages=messages,
            missing_ids=missing,
            served=self.served(backend, [], front, corpus),
        )

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        """Shows the tokens that the towers would see."""
        limits = self._app.settings
        count = len(request.questions) + len(request.passages)
        convert.check_count(count, limits.max_items, "questions", "texts (questions and passages)")
        questions = convert.checked_questions(request.questions, limits)
        pairs = convert.checked_passages(request.passages, limits)
        texts, front = await self._tokenize(questions, pairs)
        tokenizers = [self._app.questions] * len(questions) + [self._app.passages] * len(pairs)
        results = [
            pb.TokenList(ids=text.ids.tolist(), tokens=tokenizer.tokens(text.ids), truncated=text.truncated)
            for tokenizer, text in zip(tokenizers, texts, strict=True)
        ]
        reply = pb.TokenizeResponse(results=results, served=self.served(self._backend(), [], front))
        convert.check_reply_bytes(reply.ByteSize(), limits, "Send fewer or shorter texts in one call")
        return reply

    def server_info(self) -> pb.GetServerInfoResponse:
        """Says what answers here."""
        app, limits, backend = self._app, self._app.settings, self._backend()
        corpus = backend.corpus
        reader = app.bundle.manifest.reader
        question, context = app.bundle.tower("question_encoder"), app.bundle.tower("context_encoder")
        return pb.GetServerInfoResponse(
            api_version="v1",
            server_version=narrows.__version__,
            dim=app.bundle.manifest.dim,
            similarity=app.bundle.manifest.similarity,
            served=self.served(backend, [], StageMs(), corpus),
            limits=pb.Limits(
                max_items=limits.max_items,
                max_k=limits.max_k,
                max_text_bytes=limits.max_text_bytes,
                max_reply_bytes=limits.max_reply_bytes,
                max_queued_questions=limits.max_queued_questions,
                max_queued_passages=limits.max_queued_passages,
                max_ids=limits.max_ids,
                max_stream_in_flight=limits.max_stream_in_flight,
            ),
            license=question.source.license,
            language=question.source.language,
            features=[
                *(SEARCH_FEATURES if corpus else ()),
                *ENCODE_FEATURES,
                *(READER_FEATURES[0 if corpus else 1 :] if reader else ()),
            ],
            corpora=[corpus.manifest.name] if corpus else [],
            question_encoder=_tower_message(question),
            context_encoder=_tower_message(context),
            passage_count=corpus.manifest.count if corpus else 0,
            device=backend.served.device,
            reader=_tower_message(reader) if reader else None,
        )

    async def canary(self, deadline_s: float) -> None:
        """Asks one question all the way, in the lane that is kept for it."""
        backend = self._backend()
        (text,) = await self.texts.tokenize([CANARY], [])
        k = 1 if backend.corpus else 0
        (outcome,) = await self._dispatcher.embed(backend.engine, "canary", [text.ids], deadline_s, k)
        if backend.corpus and outcome.rows is not None:
            backend.corpus.passages.get(outcome.rows)

    async def _tokenize(
        self, questions: Sequence[str], pairs: Sequence[tuple[str, str]]
    ) -> tuple[list[TokenizedText], StageMs]:
        """Tokenizes questions, then passages, and tells how long it took."""
        started_s = time.monotonic()
        texts = await self.texts.tokenize(questions, pairs)
        return texts, StageMs(tokenize_ms=(time.monotonic() - started_s) * 1e3)

    async def _search_texts(
        self, request: pb.SearchRequest, backend: Backend, k: int, deadline_s: float, source: int
    ) -> tuple[list[Outcome], list[int], StageMs]:
        """The outcomes of a request's questions, the positions of those that were cut, and the time it took here."""
        app = self._app
        convert.check_count(len(request.questions), app.settings.max_items, "questions", "questions")
        texts, front = await self._tokenize(convert.checked_questions(request.questions, app.settings), [])
        truncated = convert.check_lengths(texts, request.on_too_long, app.questions.max_tokens, "questions")
        ids = [text.ids for text in texts]
        return await self._dispatcher.embed(backend.engine, "questions", ids, deadline_s, k, source), truncated, front

    async def _embed_both(
        self,
        backend: Backend,
        questions: Sequence[TokenizedText],
        passages: Sequence[TokenizedText],
        deadline_s: float,
        source: int,
    ) -> list[Outcome]:
        """Embeds both lanes at once; the questions' outcomes come first."""
        engine, embed = backend.engine, self._dispatcher.embed
        lanes: dict[Lane, Sequence[TokenizedText]] = {"questions": questions, "passages": passages}
        if not (questions and passages):  # the usual call has one lane, and needs no tasks
            lane: Lane = "questions" if questions else "passages"
            return await embed(engine, lane, [text.ids for text in lanes[lane]], deadline_s, 0, source)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(embed(engine, lane, [text.ids for text in texts], deadline_s, 0, source))
                    for lane, texts in lanes.items()
                ]
        except ExceptionGroup as failures:  # the first failure has cancelled the other lane
            raise failures.exceptions[0] from None
        return [outcome for task in tasks for outcome in task.result()]

    def served(
        self, backend: Backend, outcomes: Sequence[Outcome], front: StageMs, corpus: Corpus | None = None
    ) -> pb.Served:
        """What produced an answer, and where the time went."""
        return pb.Served(
            bundle=self._app.bundle.manifest.name,
            variant=backend.served.variant,
            passage_variant=backend.served.passage_variant,
            index=corpus.manifest.name if corpus else "",
            generation=corpus.generation if corpus else "",
            timings=convert.timings_message(outcomes, front),
        )


def check_wait(backend: Backend, lane: Lane, deadline_s: float, source: int = 0) -> None:
    """Turns a call away that cannot be in time, before anything is done for it. A stream has turns of its own.

    Raises:
        OverloadedError: its predicted wait exceeds its deadline.
    """
    if source:
        return
    begins_s = backend.engine.begins_s(lane)
    if begins_s > deadline_s:
        now_s = time.monotonic()
        wait_ms, left_ms = (begins_s - now_s) * 1e3, (deadline_s - now_s) * 1e3
        message = f"the predicted wait is {wait_ms:.0f} ms, and the deadline leaves {left_ms:.0f} ms"
        raise OverloadedError(message, max(1, round(wait_ms)))


def _tower_message(tower: TowerManifest) -> pb.Tower:
    return pb.Tower(tower_id=tower.tower_id, max_tokens=tower.max_tokens, text_preset=tower.tokenizer.text_preset)


async def _off_loop(passages: int, run: Callable[..., T], *arguments: object) -> T:
    """Runs a look-up of so many passages: few at once, many on a thread, so that the event loop goes on."""
    return run(*arguments) if passages <= INLINE_PASSAGES else await asyncio.to_thread(run, *arguments)
