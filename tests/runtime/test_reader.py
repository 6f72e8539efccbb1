"""The reader, against transformers' DPRReader and DPRReaderTokenizer on real text."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import Pair, write_reader
from transformers import DPRReader, DPRReaderTokenizer
from transformers.models.dpr.modeling_dpr import DPRReaderOutput

from narrows.answers import Answer
from narrows.bundle import Bundle, SegmentIds, open_bundle
from narrows.encoder import Golden
from narrows.errors import BundleError
from narrows.reader import Reader
from narrows.spans import RULES
from narrows.towers import load_towers
from narrows_export import checkpoint, corpus, source
from narrows_tools.cli.main import main

DPR, HUGGING_FACE = RULES["dpr"], RULES["hugging-face"]
SEGMENTS: tuple[SegmentIds, ...] = ("zero", "pair")


@pytest.fixture(scope="module")
def bundles(
    reading_bundle: Bundle, small_pair: Pair, reader_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[SegmentIds, Bundle]:
    """The same reader with segment ids zero, and with those of question and passage."""
    out = tmp_path_factory.mktemp("bundles") / "pair.bundle"
    towers = ["--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    reader = ["--reader", str(reader_checkpoint), "--reader-segments", "pair"]
    assert main(["export", *towers, *reader, "--out", str(out), "--allow-unpaired"]) == 0
    return {"zero": reading_bundle, "pair": open_bundle(out)}


@pytest.fixture(scope="module")
def readers(bundles: dict[SegmentIds, Bundle]) -> dict[SegmentIds, Reader]:
    return {segments: Reader(bundle, "fp32", threads=1) for segments, bundle in bundles.items()}


@pytest.fixture(scope="module")
def reader(readers: dict[SegmentIds, Reader]) -> Reader:
    return readers["zero"]


class Reference:
    """A checkpoint as transformers reads with it. Its reader takes no segment ids; the BERT inside of it does."""

    def __init__(self, checkpoint: Path, segments: SegmentIds) -> None:
        self.tokenizer = DPRReaderTokenizer.from_pretrained(checkpoint)
        self.model = DPRReader.from_pretrained(checkpoint).eval()
        if segments == "pair":
            bert = self.model.span_predictor.encoder.bert_model
            bert.register_forward_pre_hook(self._with_segments, with_kwargs=True)

    def logits(self, **inputs: torch.Tensor) -> DPRReaderOutput:
        with torch.no_grad():
            return self.model(**inputs)

    def _with_segments(
        self, bert: torch.nn.Module, given: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """As DPR has them: 0 for [CLS] question [SEP], 1 for title [SEP] text and padding."""
        input_ids = given[0] if given else named["input_ids"]
        segment_ids = torch.ones_like(input_ids)
        for row, ids in zip(segment_ids, input_ids.tolist(), strict=True):
            row[: ids.index(self.tokenizer.sep_token_id) + 1] = 0
        return given, {**named, "token_type_ids": segment_ids}


def some_passages(count: int, first: int = 0) -> list[tuple[str, str]]:
    return [(passage.title, passage.text) for passage in corpus.passages("en")[first : first + count]]


def by_transformers(
    reference: Reference, question: str, passages: list[tuple[str, str]], spans: int
) -> list[tuple[int, str, float, float]]:
    """(passage, decoded words, span score, relevance score), best first."""
    titles, texts = [title for title, _ in passages], [text for _, text in passages]
    inputs = reference.tokenizer([question] * len(texts), titles, texts, padding=True, return_tensors="pt")
    found = reference.tokenizer.decode_best_spans(inputs, reference.logits(**inputs), num_spans=spans)
    return [(span.doc_id, span.text, float(span.span_score), float(span.relevance_score)) for span in found]


@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("number", range(6))
def test_hugging_faces_rule_gives_the_spans_of_transformers(
    readers: dict[SegmentIds, Reader], reader_checkpoint: Path, number: int, segments: SegmentIds
) -> None:
    question = corpus.questions("en")[number].question
    passages = some_passages(11, first=11 * number)
    expected = by_transformers(Reference(reader_checkpoint, segments), question, passages, spans=16)
    found = readers[segments].read(question, passages, HUGGING_FACE, count=16)
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
    assert tokenizer.readings(question, passages)[-1].ids.size == 350
    for (title, text), reading in zip(passages, tokenizer.readings(question, passages), strict=True):
        expected = reference([question], [title], [text], truncation=True, max_length=350)["input_ids"][0]
        assert reading.ids.tolist() == expected


@pytest.mark.parametrize("segments", SEGMENTS)
def test_logits_are_those_of_pytorch(
    bundles: dict[SegmentIds, Bundle], reader_checkpoint: Path, segments: SegmentIds
) -> None:
    tower = load_towers(bundles[segments], "fp32", 1, ["reader"])["reader"]
    reference = Reference(reader_checkpoint, segments)
    passages = [*some_passages(4), ("[SEP] in a title", "and [SEP] in a text"), ("", ""), ("long", "words " * 400)]
    for reading in tower.tokenizer.readings(corpus.questions("en")[0].question, passages):
        ids = torch.from_numpy(reading.ids[None])
        expected = reference.logits(input_ids=ids, attention_mask=torch.ones_like(ids))
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


@pytest.mark.parametrize("segments", SEGMENTS)
def test_an_answer_does_not_depend_on_what_else_is_read(
    readers: dict[SegmentIds, Reader], segments: SegmentIds
) -> None:
    reader = readers[segments]
    question, passages = corpus.questions("en")[0].question, some_passages(30)
    together = {answer.passage: answer for answer in reader.read(question, passages, DPR, count=30)}
    for number, passage in enumerate(passages):
        [alone] = reader.read(question, [passage], DPR, count=30)
        expected = together[number]
        assert alone == Answer(
            expected.text, 0, expected.start_byte, expected.end_byte, expected.span_score, expected.relevance_score
        )


@pytest.mark.parametrize("segments", SEGMENTS)
def test_a_passage_that_is_cut_away_has_no_answer(readers: dict[SegmentIds, Reader], segments: SegmentIds) -> None:
    reader = readers[segments]
    assert reader.read("who " * 400, some_passages(2), DPR, count=5) == []
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


# --- segment ids of question and passage


def test_other_segment_ids_are_another_reader(
    bundles: dict[SegmentIds, Bundle], readers: dict[SegmentIds, Reader]
) -> None:
    manifests = {segments: bundle.tower("reader") for segments, bundle in bundles.items()}
    assert {segments: tower.segment_ids for segments, tower in manifests.items()} == {"zero": "zero", "pair": "pair"}
    assert manifests["zero"].tower_id != manifests["pair"].tower_id
    assert bundles["zero"].tower_ids == bundles["pair"].tower_ids  # of the encoders, which have zeros always
    question, passages = corpus.questions("en")[0].question, some_passages(8)
    zero, pair = (readers[segments].read(question, passages, DPR, count=8) for segments in SEGMENTS)
    assert max(abs(a.relevance_score - b.relevance_score) for a, b in zip(zero, pair, strict=True)) > 0.1


def test_golden_logits_are_of_question_and_passage(bundles: dict[SegmentIds, Bundle]) -> None:
    """So a machine, or a later version, that has other segment ids is refused."""
    tower = load_towers(bundles["pair"], "fp32", 1, ["reader"])["reader"]
    manifest = bundles["pair"].tower("reader")
    golden = Golden.load(bundles["pair"].file(manifest, manifest.variants["fp32"].golden_file))
    separator = tower.tokenizer.sep_id
    assert sum(separator in ids[:-1] for ids in golden.token_ids) >= 8
    zero = load_towers(bundles["zero"], "fp32", 1, ["reader"])["reader"].encoder
    for ids, expected in zip(golden.token_ids, golden.embeddings, strict=True):
        if separator in ids[:-1]:
            assert np.abs(zero.encode([ids])[0] - expected).max() > 100 * manifest.variants["fp32"].golden_tolerance


def test_the_bundle_shows_segment_ids(bundles: dict[SegmentIds, Bundle], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "info", str(bundles["pair"].path)]) == 0
    towers = [line.split() for line in capsys.readouterr().out.splitlines()[2:6]]
    assert "segments" in towers[0]
    assert [next(word for word in row if word in SEGMENTS) for row in towers[1:]] == ["zero", "zero", "pair"]


@pytest.mark.parametrize("option", [["--reader-segments", "zero"], ["--reader-max-tokens", "0"]])
def test_what_is_for_a_reader_is_refused_without_one(
    tmp_path: Path, small_pair: Pair, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    towers = ["--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    assert main(["export", *towers, *option, "--out", str(tmp_path / "b")]) == 1
    assert "--reader-max-tokens are for a reader: give one as --reader" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_encoders_and_reader_have_lengths_of_their_own(
    tmp_path: Path, small_pair: Pair, reader_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    command += ["--reader", str(reader_checkpoint), "--allow-unpaired", "--max-tokens", "32", "--out"]
    for number, (option, expected) in enumerate([([], 350), (["--reader-max-tokens", "64"], 64)]):
        out = tmp_path / str(number)
        assert main([*command, str(out), *option]) == 0
        lengths = {role: tower.max_tokens for role, tower in open_bundle(out).manifest.by_role.items()}
        assert lengths == {"question_encoder": 32, "context_encoder": 32, "reader": expected}
    assert main([*command, str(tmp_path / "long"), "--reader-max-tokens", "513"]) == 1
    assert "it must be 8 to 512; choose with --reader-max-tokens" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", [8, 23])
def test_a_reader_may_be_short(tmp_path: Path, small_pair: Pair, reader_checkpoint: Path, tokens: int) -> None:
    command = ["export", "--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    command += ["--reader", str(reader_checkpoint), "--allow-unpaired", "--reader-max-tokens", str(tokens)]
    assert main([*command, "--out", str(tmp_path / "b")]) == 0
    [answer] = Reader(open_bundle(tmp_path / "b"), "fp32", threads=1).read("who?", [("", "someone")], DPR, count=5)
    assert answer.text == "someone"


def test_a_reader_is_no_longer_than_its_positions(tmp_path: Path, vocabulary: list[str]) -> None:
    short = write_reader(tmp_path / "short", vocabulary, seed=6, positions=128)
    assert checkpoint.load(source.resolve(str(short)), "reader", None).max_tokens == 128
