"""The reader, against transformers' DPRReader and DPRReaderTokenizer on real text."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DPRReader, DPRReaderTokenizer

from narrows.answers import Answer
from narrows.bundle import Bundle, open_bundle
from narrows.errors import BundleError
from narrows.reader import Reader
from narrows.spans import RULES
from narrows.towers import load_towers
from narrows_export import corpus
from narrows_tools.cli.main import main

DPR, HUGGING_FACE = RULES["dpr"], RULES["hugging-face"]


@pytest.fixture(scope="module")
def reader(reading_bundle: Bundle) -> Reader:
    return Reader(reading_bundle, "fp32", threads=1)


def some_passages(count: int, first: int = 0) -> list[tuple[str, str]]:
    return [(passage.title, passage.text) for passage in corpus.passages("en")[first : first + count]]


def by_transformers(
    checkpoint: Path, question: str, passages: list[tuple[str, str]], spans: int
) -> list[tuple[int, str, float, float]]:
    """(passage, decoded words, span score, relevance score), best first."""
    tokenizer = DPRReaderTokenizer.from_pretrained(checkpoint)
    model = DPRReader.from_pretrained(checkpoint).eval()
    titles, texts = [title for title, _ in passages], [text for _, text in passages]
    inputs = tokenizer([question] * len(texts), titles, texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    found = tokenizer.decode_best_spans(inputs, outputs, num_spans=spans)
    return [(span.doc_id, span.text, float(span.span_score), float(span.relevance_score)) for span in found]


@pytest.mark.parametrize("number", range(6))
def test_hugging_faces_rule_gives_the_spans_of_transformers(
    reader: Reader, reader_checkpoint: Path, number: int
) -> None:
    question = corpus.questions("en")[number].question
    passages = some_passages(11, first=11 * number)
    expected = by_transformers(reader_checkpoint, question, passages, spans=16)
    found = reader.read(question, passages, HUGGING_FACE, count=16)
    assert [answer.passage for answer in found] == [passage for passage, *_ in expected]
    scores = np.array([(answer.span_score, answer.relevance_score) for answer in found])
    np.testing.assert_allclose(scores, [span[2:] for span in expected], atol=1e-4)
    for answer, (_, words, *_) in zip(found, expected, strict=True):
        assert letters(answer.text) == letters(words)


def letters(text: str) -> str:
    """What is left of words when case, accents, blanks and separators are not looked at."""
    plain = unicodedata.normalize("NFD", text.lower().replace("[sep]", "").replace("[unk]", ""))
    return "".join(character for character in plain if character.isascii() and character.isalnum())


def test_token_ids_are_those_of_transformers(reading_bundle: Bundle, reader_checkpoint: Path) -> None:
    tokenizer = load_towers(reading_bundle, "fp32", 1, ["reader"])["reader"].tokenizer
    reference = DPRReaderTokenizer.from_pretrained(reader_checkpoint)
    question = corpus.questions("en")[3].question
    passages = [*some_passages(5), ("", "no title"), ("only a title", ""), ("long", "many words " * 300)]
    for (title, text), reading in zip(passages, tokenizer.readings(question, passages), strict=True):
        expected = reference([question], [title], [text], truncation=True, max_length=256)["input_ids"][0]
        assert reading.ids.tolist() == expected


def test_logits_are_those_of_pytorch(reading_bundle: Bundle, reader_checkpoint: Path) -> None:
    tower = load_towers(reading_bundle, "fp32", 1, ["reader"])["reader"]
    model = DPRReader.from_pretrained(reader_checkpoint).eval()
    for reading in tower.tokenizer.readings(corpus.questions("en")[0].question, some_passages(4)):
        with torch.no_grad():
            expected = model(torch.from_numpy(reading.ids[None]), torch.ones((1, len(reading.ids)), dtype=torch.int64))
        logits = tower.encoder.encode([reading.ids])[0]
        np.testing.assert_allclose(logits[:, 0], expected.start_logits[0], atol=1e-5)
        np.testing.assert_allclose(logits[:, 1], expected.end_logits[0], atol=1e-5)
        np.testing.assert_allclose(logits[0, 2], expected.relevance_logits[0], atol=1e-5)


def test_dprs_rule_gives_whole_words_of_the_text_and_where_they_are(reader: Reader) -> None:
    passages = [(title, text + " Zürich’s “naïve” café 😀") for title, text in some_passages(20)]
    for question in corpus.questions("en")[:4]:
        found = reader.read(question.question, passages, DPR, count=50)
        assert len(found) == len(passages)
        assert [answer.relevance_score for answer in found] == sorted((a.relevance_score for a in found), reverse=True)
        for answer in found:
            data = passages[answer.passage][1].encode()
            assert data[answer.start_byte : answer.end_byte].decode() == answer.text != ""
            before, after = data[: answer.start_byte].decode()[-1:], data[answer.end_byte :].decode()[:1]
            assert not (before.isalnum() and answer.text[0].isalnum())
            assert not (after.isalnum() and answer.text[-1].isalnum())


def test_an_answer_does_not_depend_on_what_else_is_read(reader: Reader) -> None:
    question, passages = corpus.questions("en")[0].question, some_passages(30)
    together = {answer.passage: answer for answer in reader.read(question, passages, DPR, count=30)}
    for number, passage in enumerate(passages):
        [alone] = reader.read(question, [passage], DPR, count=30)
        expected = together[number]
        assert alone == Answer(
            expected.text, 0, expected.start_byte, expected.end_byte, expected.span_score, expected.relevance_score
        )


def test_a_passage_that_is_cut_away_has_no_answer(reader: Reader) -> None:
    assert reader.read("who " * 300, some_passages(2), DPR, count=5) == []
    assert reader.read("who", [("title", "")], DPR, count=5) == []
    assert reader.read("who", [], DPR, count=5) == []


def test_a_bundle_without_a_reader_says_so(small_bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="has no reader; export it with --reader"):
        Reader(small_bundle, "fp32", threads=1)


def test_a_damaged_reader_is_found(reading_bundle: Bundle) -> None:
    file = reading_bundle.path / "reader" / "model.fp32.onnx"
    data = file.read_bytes()
    try:
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"reader/model\.fp32\.onnx does not match the manifest's hash"):
            open_bundle(reading_bundle.path)
    finally:
        file.write_bytes(data)


def test_the_bundle_shows_its_reader(reading_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "info", str(reading_bundle.path)]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("reader")] == ["reader", "reader"]
    assert reading_bundle.tower("reader").tower_id in shown
