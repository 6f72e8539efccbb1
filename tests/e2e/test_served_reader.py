"""A served reader: real questions over real sockets, in one process and with fronts; the answers of the offline one."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from server_process import ServerProcess, server

from narrows import (
    Answers,
    AsyncClient,
    Client,
    DeadlineExceededError,
    InvalidRequestError,
    MismatchError,
    NoReaderError,
    NotFoundError,
    OverloadedError,
    ReplyTooLargeError,
)
from narrows.answers import Answer
from narrows.bundle import Bundle
from narrows.messages import Timings
from narrows.reader import Reader
from narrows.spans import RULES
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc
from narrows_export import corpus

QUESTIONS = [question.question for question in corpus.questions("en")[:4]]
PASSAGES = [(passage.title, passage.text) for passage in corpus.passages("en")[:30]]


@pytest.fixture(scope="module")
def reading_server(reading_bundle: Bundle, small_index: Path, frontends: str) -> Iterator[ServerProcess]:
    with server(reading_bundle.path, small_index, frontends=frontends) as process:
        yield process
        assert process.stop() == 0


@pytest.fixture(scope="module")
def asking(reading_server: ServerProcess) -> Iterator[Client]:
    with Client(reading_server.address, timeout_s=60.0) as made:
        yield made


@pytest.fixture(scope="module")
def offline(reading_bundle: Bundle) -> Reader:
    return Reader(reading_bundle, "fp32", threads=1)


def plain(answers: Answers) -> list[Answer]:
    return [Answer(s.text, s.passage, s.start_byte, s.end_byte, s.span_score, s.relevance_score) for s in answers.spans]


@pytest.mark.parametrize("rule", ["dpr", "hugging-face"])
def test_reading_gives_the_answers_of_the_offline_reader(asking: Client, offline: Reader, rule: str) -> None:
    for question in QUESTIONS:
        found = asking.read(question, PASSAGES, spans=7, rule=rule)
        assert plain(found) == offline.read(question, PASSAGES, RULES[rule], count=7)
        assert found.hits == ()
        assert (found.served.bundle, found.served.index) == ("reading", "")
        assert found.served.timings.encode_ms > 0


def test_answering_reads_what_a_search_finds(asking: Client, offline: Reader) -> None:
    for question in QUESTIONS:
        found = asking.answer(question, passages=20, spans=3)
        [searched] = asking.search([question], k=20)
        assert found.hits == searched.hits
        read = [(hit.title, hit.text) for hit in searched]
        assert plain(found) == offline.read(question, read, RULES["dpr"], count=3)
        best = found.spans[0]
        text = found.hits[best.passage].text.encode()
        assert text[best.start_byte : best.end_byte].decode() == best.text
        assert found.served.index == "demo"


def test_the_defaults(asking: Client) -> None:
    found = asking.answer(QUESTIONS[0])
    assert (len(found.hits), len(found.spans)) == (50, 5)
    assert found.spans[0].relevance_score >= found.spans[1].relevance_score


def test_a_view_leaves_texts_out(asking: Client) -> None:
    found = asking.answer(QUESTIONS[0], passages=3, view="id")
    assert [(hit.title, hit.text) for hit in found.hits] == [("", "")] * 3
    titles = asking.answer(QUESTIONS[0], passages=3, view="title")
    assert all(hit.title and not hit.text for hit in titles.hits)
    assert found.spans == titles.spans


def test_the_timings_tell_reading_from_searching(asking: Client) -> None:
    def of(answers: Answers) -> Timings:
        return answers.served.timings

    read = of(asking.read(QUESTIONS[0], PASSAGES))
    assert read.read_ms > read.tokenize_ms + read.encode_ms > read.encode_ms > 0
    assert read.search_ms == read.fetch_ms == 0
    answered = of(asking.answer(QUESTIONS[0], passages=30))
    assert answered.read_ms > 0
    assert answered.search_ms > 0
    assert answered.fetch_ms > 0
    assert 0 < answered.batch_tokens < 64  # of the question, not of the passages
    assert asking.search([QUESTIONS[0]])[0].served.timings.read_ms == 0


def test_many_tasks_at_a_time(reading_server: ServerProcess, offline: Reader) -> None:
    async def ask() -> list[Answers]:
        async with AsyncClient(reading_server.address, timeout_s=60.0) as client:
            reads = (client.read(question, PASSAGES[:10]) for question in QUESTIONS * 3)
            answers = (client.answer(question, passages=5) for question in QUESTIONS)
            return list(await asyncio.gather(*reads, *answers))

    found = asyncio.run(ask())
    for number, question in enumerate(QUESTIONS * 3):
        assert plain(found[number]) == offline.read(question, PASSAGES[:10], RULES["dpr"], count=5)
    assert all(len(answers.hits) == 5 for answers in found[-len(QUESTIONS) :])


@pytest.mark.parametrize("rule", ["dpr", "hugging-face"])
def test_more_passages_than_one_call_may_hold(
    reading_server: ServerProcess, asking: Client, offline: Reader, rule: str
) -> None:
    """The answers are those of one call, though equally relevant passages lie in different parts."""

    async def read(question: str) -> Answers:
        async with AsyncClient(reading_server.address, timeout_s=60.0) as client:
            return await client.read(question, passages, spans=20, rule=rule)

    passages = [*PASSAGES, *PASSAGES[::-1], *PASSAGES, *PASSAGES]  # parts of 64 and 56
    for question in QUESTIONS[:2]:
        together = offline.read(question, passages, RULES[rule], count=20)
        assert {answer.passage >= 64 for answer in together} == {True, False}
        found = asking.read(question, passages, spans=20, rule=rule)
        assert plain(found) == plain(asyncio.run(read(question))) == together
        assert (found.served.bundle, found.hits) == ("reading", ())


def test_the_server_says_that_it_reads(asking: Client, reading_server: ServerProcess, reading_bundle: Bundle) -> None:
    assert {"answer", "read"} <= set(asking.server_info().features)
    with grpc.insecure_channel(reading_server.address) as channel:
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        info = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=30)
    assert (info.reader.tower_id, info.reader.max_tokens) == (reading_bundle.tower("reader").tower_id, 350)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        ({"question": " "}, "question", "the question is empty"),
        ({"question": "x" * 20_000}, "question", "20000 bytes of text; at most 16384"),
        ({"passages": []}, "passages", "at least one of passages"),
        ({"passages": [("", " ")]}, r"passages[0]", "neither title nor text"),
    ],
)
def test_bad_readings(asking: Client, change: dict[str, object], field: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as raised:
        asking.read(**{"question": "who?", "passages": PASSAGES[:2], **change})  # type: ignore[arg-type]
    assert raised.value.field == field


def test_bad_answers(asking: Client) -> None:
    with pytest.raises(InvalidRequestError, match="65 is over the limit of 64") as raised:
        asking.answer("who?", passages=65)
    assert raised.value.field == "passages"
    with pytest.raises(InvalidRequestError, match="the question is empty"):
        asking.answer(" ")
    with pytest.raises(NotFoundError, match="corpus 'other' is not served here"):
        asking.answer("who?", corpus="other")
    for call in (
        lambda: asking.answer("?", expected_bundle="b"),
        lambda: asking.read("?", PASSAGES, expected_bundle="b"),
    ):
        with pytest.raises(MismatchError, match="bundle 'b' is expected"):
            call()
    for bad in ({"spans": 0}, {"rule": "best"}):
        with pytest.raises(InvalidRequestError):
            asking.read("who?", PASSAGES, **bad)  # type: ignore[arg-type]


def test_limits_of_a_search_hold_for_an_answer(reading_bundle: Bundle, small_index: Path) -> None:
    with (
        server(reading_bundle.path, small_index, max_k="20") as process,
        Client(process.address, timeout_s=30.0) as client,
    ):
        assert len(client.answer(QUESTIONS[0]).hits) == 20
        with pytest.raises(InvalidRequestError, match="21 is over the limit of 20") as raised:
            client.answer(QUESTIONS[0], passages=21)
        assert raised.value.field == "passages"


def test_a_reply_counts_what_is_sent(reading_bundle: Bundle, small_index: Path) -> None:
    with (
        server(reading_bundle.path, small_index, max_reply_bytes="4000") as process,
        Client(process.address, timeout_s=30.0) as client,
    ):
        found = client.answer(QUESTIONS[0], passages=30, view="id")
        assert len(found.hits) == 30
        assert found.spans
        with pytest.raises(ReplyTooLargeError, match=r"1 questions x 30 passages: .* less of each \(view\)"):
            client.answer(QUESTIONS[0], passages=30)
        words = [("", letter * 3000) for letter in "abc"]
        assert len(client.read("who?", words, spans=1).spans) == 1
        with pytest.raises(ReplyTooLargeError, match="Ask for fewer spans"):
            client.read("who?", words, spans=3)


def test_an_unknown_rule_or_view_is_refused_by_the_server(reading_server: ServerProcess) -> None:
    with grpc.insecure_channel(reading_server.address) as channel:
        stub = retrieval_pb2_grpc.ReaderServiceStub(channel)
        for request, field in (
            (pb.AnswerRequest(question="who?", rule=9), "rule"),  # type: ignore[arg-type]
            (pb.AnswerRequest(question="who?", view=9), "view"),  # type: ignore[arg-type]
        ):
            with pytest.raises(grpc.RpcError) as raised:
                stub.Answer(request, timeout=30)
            assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert dict(raised.value.trailing_metadata())["narrows-field"] == field


def test_too_many_passages_in_one_call_are_refused_by_the_server(reading_server: ServerProcess) -> None:
    request = pb.ReadRequest(question="who?", passages=[pb.Passage(text="x")] * 65)
    with grpc.insecure_channel(reading_server.address) as channel:
        stub = retrieval_pb2_grpc.ReaderServiceStub(channel)
        with pytest.raises(grpc.RpcError, match="65 passages in one call; at most 64") as raised:
            stub.Read(request, timeout=30)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_question_that_fills_the_reader_has_no_answer_and_harms_nobody(asking: Client) -> None:
    assert asking.read("who " * 400, PASSAGES[:3]).spans == ()
    assert asking.read("who?", PASSAGES[:3]).spans


def test_a_deadline_that_cannot_be_kept(asking: Client) -> None:
    long = [("title", "many words " * 200)] * 64
    started_s = time.monotonic()
    with pytest.raises((DeadlineExceededError, OverloadedError)):
        asking.read("who?", long, timeout_s=0.02)
    assert time.monotonic() - started_s < 5
    assert asking.read("who?", PASSAGES[:2]).spans  # what is too late is not computed


def test_a_server_without_a_reader(client: Client) -> None:
    for call in (lambda: client.answer("who?"), lambda: client.read("who?", PASSAGES[:2])):
        with pytest.raises(NoReaderError, match="bundle 'small', which is served here, has no reader: export it with"):
            call()
    assert not {"answer", "read"} & set(client.server_info().features)


def test_a_server_without_an_index_reads_what_it_is_given(reading_bundle: Bundle) -> None:
    with server(reading_bundle.path, None, frontends="0") as process, Client(process.address, timeout_s=30.0) as client:
        assert client.read(QUESTIONS[0], PASSAGES[:5]).spans
        with pytest.raises(NotFoundError, match="no index"):
            client.answer(QUESTIONS[0])
        features = client.server_info().features
        assert "read" in features
        assert "answer" not in features
