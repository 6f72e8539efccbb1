"""Requests that break a rule: the status, the reason and the field that each gets; and that the server goes on."""

import socket
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from server_process import ServerProcess, server

from narrows import Client
from narrows.bundle import Bundle
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc

DIM = 64


@pytest.fixture(scope="module")
def stub(running: ServerProcess) -> Iterator[retrieval_pb2_grpc.RetrievalServiceStub]:
    with grpc.insecure_channel(running.address) as channel:
        yield retrieval_pb2_grpc.RetrievalServiceStub(channel)


def tensor(rows: int = 1, dim: int = DIM, fill: float = 1.0, **changes: object) -> pb.Tensor:
    data = np.full((rows, dim), fill, dtype="<f4").tobytes()
    return pb.Tensor(**{"dtype": pb.DATA_TYPE_FLOAT32, "rows": rows, "dim": dim, "data": data, **changes})  # type: ignore[arg-type]


def search(**fields: object) -> pb.SearchRequest:
    return pb.SearchRequest(**fields)  # type: ignore[arg-type]


def encode(**fields: object) -> pb.EncodeRequest:
    return pb.EncodeRequest(**fields)  # type: ignore[arg-type]


EMPTY_PASSAGE = pb.Passage(id="x", title=" ", text="\n")
LONG = "river " * 400
INVALID = [
    ("Search", search(), "questions"),
    ("Search", search(questions=["a"], question_embeddings=tensor()), "questions"),
    ("Search", search(questions=["a", "  "]), "questions[1]"),
    ("Search", search(questions=["a"] * 65), "questions"),
    ("Search", search(questions=["a", "b", "x" * 16_385]), "questions[2]"),
    ("Search", search(questions=["é" * 8_193]), "questions[0]"),
    ("Search", search(questions=["a"], k=1001), "k"),
    ("Search", search(questions=["a"], view=9), "view"),
    ("Search", search(questions=["a"], on_too_long=9), "on_too_long"),
    ("Search", search(questions=["a", LONG], on_too_long=pb.ON_TOO_LONG_ERROR), "questions[1]"),
    ("Search", search(question_embeddings=tensor(rows=0)), "question_embeddings.rows"),
    ("Search", search(question_embeddings=tensor(rows=65)), "question_embeddings.rows"),
    ("Search", search(question_embeddings=tensor(dim=DIM + 1)), "question_embeddings.dim"),
    ("Search", search(question_embeddings=tensor(data=b"123")), "question_embeddings.data"),
    ("Search", search(question_embeddings=tensor(rows=2, data=b"\0" * 4 * DIM)), "question_embeddings.data"),
    ("Search", search(question_embeddings=tensor(dtype=7)), "question_embeddings.dtype"),
    ("Search", search(question_embeddings=tensor(fill=float("nan"))), "question_embeddings[0]"),
    ("Search", search(question_embeddings=tensor(fill=float("inf"))), "question_embeddings[0]"),
    ("Search", search(question_embeddings=tensor(fill=3e38)), "question_embeddings[0]"),
    ("Search", search(question_embeddings=tensor(fill=0.0)), "question_embeddings[0]"),
    ("Encode", encode(), "questions"),
    ("Encode", encode(questions=["a"] * 60, passages=[pb.Passage(text="b")] * 5), "questions"),
    ("Encode", encode(passages=[pb.Passage(text="b"), EMPTY_PASSAGE]), "passages[1]"),
    ("Encode", encode(passages=[pb.Passage(title="t" * 8_000, text="b" * 9_000)]), "passages[0]"),
    ("Encode", encode(questions=["a"], dtype=5), "dtype"),
    ("Encode", encode(passages=[pb.Passage(text=LONG)], on_too_long=pb.ON_TOO_LONG_ERROR), "passages[0]"),
    ("GetPassages", pb.GetPassagesRequest(), "ids"),
    ("GetPassages", pb.GetPassagesRequest(ids=["a"] * 1001), "ids"),
    ("GetPassages", pb.GetPassagesRequest(ids=["a"], view=4), "view"),
    ("Tokenize", pb.TokenizeRequest(), "questions"),
    ("Tokenize", pb.TokenizeRequest(questions=[""]), "questions[0]"),
]


@pytest.mark.parametrize(("method", "request_message", "field"), INVALID, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_invalid_and_names_its_field(
    stub: retrieval_pb2_grpc.RetrievalServiceStub, method: str, request_message: object, field: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request_message, timeout=30)
    error = caught.value
    assert isinstance(error, grpc.Call)
    trailers = dict(error.trailing_metadata() or ())
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert trailers["narrows-reason"] == "INVALID_FIELD"
    assert trailers["narrows-field"] == field
    assert (error.details() or "").startswith(f"{field}: ")


def test_a_reply_over_the_limit_is_refused_and_names_n_and_k(stub: retrieval_pb2_grpc.RetrievalServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Search(search(questions=["rivers"] * 64, k=300), timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "64 questions x 300 passages" in (caught.value.details() or "")
    assert dict(caught.value.trailing_metadata() or ())["narrows-reason"] == "REPLY_TOO_LARGE"


def test_a_huge_name_is_not_echoed_whole(stub: retrieval_pb2_grpc.RetrievalServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.Search(search(questions=["rivers"], corpus="x" * 100_000), timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_name_of_many_bytes_is_cut_so_that_the_error_gets_through(
    stub: retrieval_pb2_grpc.RetrievalServiceStub,
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetPassages(pb.GetPassagesRequest(ids=["x"], corpus="\U0001f600" * 1000), timeout=30)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND, caught.value.details()
    assert (caught.value.details() or "").startswith("corpus '\U0001f600")


def test_ids_that_are_not_found_count_towards_the_size_of_a_reply(small_bundle: Bundle, small_index: Path) -> None:
    with (
        server(small_bundle.path, small_index, max_reply_bytes="20000") as small,
        grpc.insecure_channel(small.address) as channel,
    ):
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        fits = stub.GetPassages(pb.GetPassagesRequest(ids=[f"{number:500}" for number in range(30)]), timeout=30)
        assert len(fits.missing_ids) == 30
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetPassages(pb.GetPassagesRequest(ids=[f"{number:500}" for number in range(300)]), timeout=30)
        assert isinstance(caught.value, grpc.Call)
        assert dict(caught.value.trailing_metadata() or ())["narrows-reason"] == "REPLY_TOO_LARGE"


def test_embeddings_within_the_limits_are_read_where_texts_are_small(small_bundle: Bundle, small_index: Path) -> None:
    limits = {"max_items": "2048", "max_queued_passages": "2048", "max_text_bytes": "16", "max_ids": "1"}
    with server(small_bundle.path, small_index, **limits) as small, Client(small.address) as client:
        vectors = np.ones((2048, DIM), dtype=np.float32)
        assert len(client.search(vectors, k=1, view="id")) == 2048


def test_two_long_parts_of_a_passage_are_tokenized_in_memory_and_time(
    stub: retrieval_pb2_grpc.RetrievalServiceStub,
) -> None:
    # The tokenizers library's own truncation needs gigabytes for these.
    passages = [pb.Passage(title="a " * 4096, text="b " * 4096)] * 32
    reply = stub.Tokenize(pb.TokenizeRequest(passages=passages), timeout=30)
    assert {(len(result.ids), result.truncated) for result in reply.results} == {(256, True)}


def test_half_precision_embeddings_come_back_as_such(stub: retrieval_pb2_grpc.RetrievalServiceStub) -> None:
    full = stub.Encode(encode(questions=["rivers"]), timeout=30).embeddings
    half = stub.Encode(encode(questions=["rivers"], dtype=pb.DATA_TYPE_FLOAT16), timeout=30).embeddings
    assert (full.dtype, half.dtype) == (pb.DATA_TYPE_FLOAT32, pb.DATA_TYPE_FLOAT16)
    assert len(half.data) * 2 == len(full.data) == 4 * DIM
    expected = np.frombuffer(full.data, "<f4").astype("<f2")
    np.testing.assert_array_equal(np.frombuffer(half.data, "<f2"), expected)
    reply = stub.Search(search(question_embeddings=half, k=3), timeout=30)
    assert len(reply.results[0].hits) == 3


def test_tokens_are_shown(stub: retrieval_pb2_grpc.RetrievalServiceStub) -> None:
    request = pb.TokenizeRequest(questions=["rivers"], passages=[pb.Passage(title="Lakes", text="Deep water")])
    question, passage = stub.Tokenize(request, timeout=30).results
    assert question.tokens[0] == passage.tokens[0] == "[CLS]"
    assert question.tokens[-1] == passage.tokens[-1] == "[SEP]"
    assert list(passage.tokens).count("[SEP]") == 2
    assert len(question.ids) == len(question.tokens)


@pytest.mark.parametrize(
    "garbage", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff"]
)
def test_garbage_on_the_socket_harms_nobody(running: ServerProcess, client: Client, garbage: bytes) -> None:
    host, port = running.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(garbage)
    assert len(client.search(["rivers"], k=1)[0]) == 1


def test_a_malformed_message_harms_nobody(running: ServerProcess, client: Client) -> None:
    with grpc.insecure_channel(running.address) as channel:
        raw = channel.unary_unary("/narrows.v1.RetrievalService/Search")
        with pytest.raises(grpc.RpcError):
            raw(b"\xff\xff\xff\xff", timeout=10)
    assert len(client.search(["rivers"], k=1)[0]) == 1


def test_the_limits_said_are_those_of_the_settings(small_bundle: Bundle, small_index: Path) -> None:
    with (
        server(
            small_bundle.path, small_index, max_queued_questions="70", max_queued_passages="80", max_k="9"
        ) as limited,
        grpc.insecure_channel(limited.address) as channel,
    ):
        stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
        limits = stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=30).limits
        found = stub.Search(pb.SearchRequest(questions=["who?"]), timeout=30)
    assert (limits.max_queued_questions, limits.max_queued_passages, limits.max_k) == (70, 80, 9)
    assert len(found.results[0].hits) == 9, "the default of 10 is over the limit"
    assert (limits.max_items, limits.max_ids, limits.max_stream_in_flight) == (64, 1000, 64)
