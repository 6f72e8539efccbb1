"""What a real server answers, against the same computed without it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from server_process import ServerProcess

from narrows import Client, InvalidRequestError, MismatchError, NotFoundError
from narrows.bundle import Bundle
from narrows.towers import Tower, load_towers
from narrows_export import corpus


@pytest.fixture(scope="module")
def towers(small_bundle: Bundle) -> dict[str, Tower]:
    return dict(load_towers(small_bundle, "fp32", 1, ["question_encoder", "context_encoder"]))


@pytest.fixture(scope="module")
def passage_vectors(towers: dict[str, Tower]) -> npt.NDArray[np.float32]:
    tower = towers["context_encoder"]
    texts = tower.tokenizer.passages([(p.title, p.text) for p in corpus.passages("en")])
    return np.concatenate([tower.encoder.encode([text.ids]) for text in texts])


@pytest.fixture(scope="module")
def question_vectors(towers: dict[str, Tower]) -> npt.NDArray[np.float32]:
    tower = towers["question_encoder"]
    texts = tower.tokenizer.questions([q.question for q in corpus.questions("en")])
    return np.concatenate([tower.encoder.encode([text.ids]) for text in texts])


QUESTIONS = [question.question for question in corpus.questions("en")]
IDS = [passage.id for passage in corpus.passages("en")]


def expected_hits(
    question: npt.NDArray[np.float32], passages: npt.NDArray[np.float32], k: int
) -> list[tuple[str, float]]:
    """By numpy, in float64, rounded once; by score descending, then id ascending."""
    scores = (passages.astype(np.float64) @ question.astype(np.float64)).astype(np.float32)
    order = sorted(range(len(IDS)), key=lambda row: (-scores[row], IDS[row].encode()))[:k]
    return [(IDS[row], float(scores[row])) for row in order]


def test_search_is_exact(
    client: Client, question_vectors: npt.NDArray[np.float32], passage_vectors: npt.NDArray[np.float32]
) -> None:
    results = client.search(QUESTIONS, k=7)
    assert len(results) == len(QUESTIONS)
    by_id = {passage.id: passage for passage in corpus.passages("en")}
    for result, vector in zip(results, question_vectors, strict=True):
        expected = expected_hits(vector, passage_vectors, 7)
        assert [hit.id for hit in result] == [passage_id for passage_id, _ in expected]
        assert [hit.score for hit in result] == pytest.approx([score for _, score in expected], rel=1e-6)
        assert all((hit.title, hit.text) == (by_id[hit.id].title, by_id[hit.id].text) for hit in result)
        assert not result.truncated


def test_an_answer_does_not_depend_on_who_else_is_asking(client: Client, running: ServerProcess) -> None:
    alone = {question: client.search([question], k=20)[0].hits for question in QUESTIONS[:40]}

    def ask(start: int) -> None:
        for step in range(12):
            first = (start * 7 + step * 3) % 30
            chosen = QUESTIONS[first : first + 1 + (start + step) % 10]
            with_others = client.search(chosen, k=20)
            assert [result.hits for result in with_others] == [alone[question] for question in chosen]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def test_embeddings_are_the_encoders_own_bits(
    client: Client, question_vectors: npt.NDArray[np.float32], passage_vectors: npt.NDArray[np.float32]
) -> None:
    np.testing.assert_array_equal(client.encode_questions(QUESTIONS), question_vectors)
    pairs = [(passage.title, passage.text) for passage in corpus.passages("en")[:100]]
    np.testing.assert_array_equal(client.encode_passages(pairs), passage_vectors[:100])
    both = client.encode(questions=QUESTIONS[:3], passages=pairs[:2])
    np.testing.assert_array_equal(both.embeddings, np.concatenate([question_vectors[:3], passage_vectors[:2]]))
    assert len(both.token_counts) == 5


def test_a_vector_finds_what_its_question_finds(client: Client, question_vectors: npt.NDArray[np.float32]) -> None:
    by_text = client.search(QUESTIONS[:5], k=10)
    by_vector = client.search(question_vectors[:5], k=10)
    assert [result.hits for result in by_vector] == [result.hits for result in by_text]
    timings = by_vector[0].served.timings
    assert (timings.batch_size, timings.batch_tokens) == (0, 0)


def test_k_beyond_the_index_returns_all_of_it_once(client: Client) -> None:
    result = client.search(["rivers"], k=1000, view="id")[0]
    assert sorted(hit.id for hit in result) == sorted(IDS)
    assert [hit.score for hit in result] == sorted((hit.score for hit in result), reverse=True)


@pytest.mark.parametrize(
    ("view", "title", "text"), [("id", False, False), ("title", True, False), ("full", True, True)]
)
def test_a_view_shows_as_much_as_it_says(client: Client, view: str, title: bool, text: bool) -> None:
    hits = client.search(["rivers"], k=3, view=view)[0]  # type: ignore[arg-type]
    assert all(hit.id and bool(hit.title) == title and bool(hit.text) == text for hit in hits)


def test_every_reply_names_what_produced_it(client: Client, small_index: Path) -> None:
    served = client.search(["rivers"])[0].served
    assert (served.bundle, served.index, served.variant, served.generation) == ("small", "demo", "fp32", "g000001")
    timings = served.timings
    assert timings.tokenize_ms > 0
    assert timings.encode_ms > 0
    assert timings.search_ms > 0
    assert timings.fetch_ms > 0
    assert timings.batch_size >= 1
    assert timings.batch_tokens >= 3  # [CLS] rivers [SEP], or longer where another test asked at the same time


def test_passages_are_found_by_id_and_the_missing_are_left_out(client: Client) -> None:
    found = client.get_passages(["en-300", "no-such", "en-001", ""])
    assert list(found) == ["en-300", "en-001"]
    assert found["en-001"].text == corpus.passages("en")[0].text


def test_the_server_says_what_it_is(client: Client, small_bundle: Bundle) -> None:
    info = client.server_info()
    assert info.dim == small_bundle.manifest.dim
    assert info.similarity == "inner_product"
    assert info.corpora == ("demo",)
    assert info.passage_count == 300
    assert info.question_tower_id == small_bundle.tower("question_encoder").tower_id
    assert info.context_tower_id == small_bundle.tower("context_encoder").tower_id
    assert info.device == "cpu"


def test_the_bundle_and_corpus_asked_for_must_be_those_that_answer(client: Client, small_bundle: Bundle) -> None:
    tower_id = small_bundle.tower("question_encoder").tower_id
    for good in ("small", tower_id):
        assert len(client.search(["rivers"], k=1, corpus="demo", expected_bundle=good)) == 1
    with pytest.raises(MismatchError, match="other"):
        client.search(["rivers"], expected_bundle="other")
    with pytest.raises(NotFoundError, match="wikipedia"):
        client.search(["rivers"], corpus="wikipedia")


def test_a_long_question_is_cut_and_says_so(client: Client) -> None:
    long_question = "river " * 400
    results = client.search(["rivers", long_question], k=1)
    assert [result.truncated for result in results] == [False, True]
    encoding = client.encode(questions=[long_question, "rivers"], passages=[("title", "lake " * 400)])
    assert encoding.truncated == (0, 2)
    assert encoding.token_counts[0] == encoding.token_counts[2] == 256


def test_answers_too_large_for_one_reply_come_in_parts(client: Client) -> None:
    together = client.search(QUESTIONS[:64], k=300)
    assert [len(result) for result in together] == [300] * 64
    assert [result.hits for result in together[40:42]] == [client.search([q], k=300)[0].hits for q in QUESTIONS[40:42]]


def test_nothing_asked_is_nothing_answered(client: Client) -> None:
    assert client.search([]) == []
    assert client.encode_questions([]).shape == (0, 64)


def test_one_string_instead_of_a_list_is_a_clear_error(client: Client) -> None:
    with pytest.raises(InvalidRequestError, match="give a list"):
        client.search("who?")
    with pytest.raises(InvalidRequestError, match="give a list"):
        client.get_passages("en-001")
    with pytest.raises(InvalidRequestError, match="pair"):
        client.encode_passages(["ab"])  # type: ignore[list-item]
    with pytest.raises(InvalidRequestError, match="view"):
        client.search(["who?"], view="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [-1, 0, 2**32])
def test_a_k_that_no_message_can_hold_is_an_invalid_request(client: Client, k: int) -> None:
    with pytest.raises(InvalidRequestError):
        client.search(["rivers"], k=k)


def test_a_lone_surrogate_is_an_invalid_request(client: Client) -> None:
    with pytest.raises(InvalidRequestError):
        client.search(["\ud800"])
    with pytest.raises(InvalidRequestError):
        client.encode_passages([("title", "\udfff")])
