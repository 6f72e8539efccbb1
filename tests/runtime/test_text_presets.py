"""Each preset against transformers' tokenizer on the text that its rules, written out here, leave; then served."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from checkpoints import Pair
from hypothesis import given, settings
from hypothesis import strategies as st
from server_process import run_narrows, server
from transformers import DPRContextEncoderTokenizerFast

from narrows import Client
from narrows.bundle import TextPreset, open_bundle
from narrows.text_presets import RULES
from narrows.tokenizer import TowerTokenizer, build_tokenizer
from narrows_export import vocabulary
from narrows_export.source import CheckpointFiles
from narrows_tools.cli.main import parser

DATA = Path(__file__).parents[1] / "data" / "golden_tokenizer" / "en-uncased"
PRESETS: tuple[TextPreset, ...] = get_args(TextPreset)
MAX_TOKENS = 16


@cache
def load(preset: TextPreset) -> TowerTokenizer:
    settings, tokens = vocabulary.read(CheckpointFiles(DATA, "en-uncased", "", "", ""), preset)
    return TowerTokenizer(build_tokenizer(settings, tokens), settings, MAX_TOKENS)


@pytest.mark.parametrize("preset", PRESETS)
def test_tokens_that_are_read_are_found_again_in_the_text(preset: TextPreset) -> None:
    text = '"the cafe\u0301\u0301 of Zürich 😀\u2019"'
    [reading] = load(preset).readings("who?", [("", text)])
    places = [reading.characters(place, place) for place in range(reading.first_text, len(reading.ids))]
    found = [text[start:end] for start, end in places]
    assert "".join(found).strip('"') == text.replace(" ", "").strip('"')
    assert reading.characters(reading.first_text, len(reading.ids) - 1) == (places[0][0], places[-1][1])


@cache
def reference() -> DPRContextEncoderTokenizerFast:
    return DPRContextEncoderTokenizerFast(str(DATA / "vocab.txt"), do_lower_case=True)


def question_ids(text: str) -> list[int]:
    return reference()(text, truncation=True, max_length=MAX_TOKENS)["input_ids"]


def pair_ids(title: str | None, text: str) -> list[int]:
    inputs = [text] if title is None else [title, text]
    return reference()(*inputs, truncation="longest_first", max_length=MAX_TOKENS)["input_ids"]


QUESTIONS = [
    # as asked, without a final "?", with straight apostrophes
    ("which river is the longest?", "which river is the longest", "which river is the longest?"),
    ("which river??", "which river?", "which river??"),
    ("which river? ", "which river? ", "which river? "),
    ("which river", "which river", "which river"),
    ("the city\u2019s river?", "the city\u2019s river", "the city's river?"),
    ("?", "", "?"),
]


@pytest.mark.parametrize(("asked", "cut", "straight"), QUESTIONS)
def test_questions(asked: str, cut: str, straight: str) -> None:
    expected = {"hf": asked, "dpr-2020": cut, "dpr-head": straight, "haystack": cut}
    for preset in PRESETS:
        [found] = load(preset).questions([asked])
        assert found.ids.tolist() == question_ids(expected[preset]), preset


PASSAGES = [
    # title, text, what dpr-head makes of the text
    ("The Nile", "the longest river?", "the longest river?"),
    ("The city\u2019s Nile", "the city\u2019s \u2018river\u2019", "the city's \u2018river'"),
    ("The Nile", '"the longest river"', "the longest river"),
    ("The Nile", '""river""', '"river"'),
    ("", "the longest river", "the longest river"),
    ("", "the river " * 20, "the river " * 20),
    ("the river " * 20, "the river " * 20, "the river " * 20),
]


@pytest.mark.parametrize(("title", "text", "head"), PASSAGES)
def test_passages(title: str, text: str, head: str) -> None:
    for preset in PRESETS:
        [found] = load(preset).passages([(title, text)])
        kept_title = title if title or preset == "haystack" else None
        assert found.ids.tolist() == pair_ids(kept_title, head if preset == "dpr-head" else text), preset


def test_haystack_keeps_the_separator_of_a_missing_title() -> None:
    tokenizer = load("haystack")
    [passage] = tokenizer.passages([("", "the river")])
    assert tokenizer.tokens(passage.ids) == ["[CLS]", "[SEP]", "the", "river", "[SEP]"]


@given(texts=st.lists(st.text(st.sampled_from("the river?\u2019'\" \n")), min_size=1, max_size=5))
@settings(derandomize=True, max_examples=100, deadline=None)
def test_a_batch_gives_each_text_the_ids_it_has_alone(texts: list[str]) -> None:
    for preset in PRESETS:
        tokenizer = load(preset)
        alone = [tokenizer.questions([text])[0].ids.tolist() for text in texts]
        assert [found.ids.tolist() for found in tokenizer.questions(texts)] == alone
        pairs = [(texts[0], text) for text in texts]
        alone = [tokenizer.passages([pair])[0].ids.tolist() for pair in pairs]
        assert [found.ids.tolist() for found in tokenizer.passages(pairs)] == alone


def test_every_preset_has_rules_of_its_own_and_a_choice_on_the_command_line() -> None:
    assert set(RULES) == set(PRESETS)
    assert len(set(RULES.values())) == len(PRESETS)
    for preset in PRESETS:
        arguments = ["export", "--question-encoder", "a", "--context-encoder", "b", "--out", "c"]
        assert parser().parse_args([*arguments, "--text-preset", preset]).text_preset == preset


def test_bundle_index_and_server_keep_the_preset(small_pair: Pair, tmp_path: Path) -> None:
    """Exported with `haystack`: the server's tokens and embeddings, and the index's vectors, follow it."""
    bundle, index, passages = tmp_path / "h.bundle", tmp_path / "h.index", tmp_path / "p.jsonl"
    passages.write_text('{"id": "a", "text": "the river"}\n{"id": "b", "title": "Lakes", "text": "the lake"}\n')
    towers = ("--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context))
    exported = run_narrows("export", *towers, "--out", str(bundle), "--text-preset", "haystack", "--allow-unpaired")
    assert exported.returncode == 0, exported.stderr
    build = ("index", "build", "--bundle", str(bundle), "--passages", str(passages), "--out", str(index))
    built = run_narrows(*build)
    assert built.returncode == 0, built.stderr

    manifest = open_bundle(bundle).manifest
    assert {tower.tokenizer.text_preset for tower in manifest.towers.values()} == {"haystack"}
    with server(bundle, index) as running, Client(running.address) as client:
        encoding = client.encode(questions=["which river?", "which river"], passages=[("", "the river")])
        question = encoding.embeddings[0]
        assert (question == encoding.embeddings[1]).all()
        assert encoding.token_counts[2] == 5  # [CLS] [SEP] the river [SEP]
        hits = {hit.id: hit.score for hit in client.search(["which river?"], k=2)[0]}
        assert hits["a"] == pytest.approx(float(question @ encoding.embeddings[2]), rel=1e-5)


def test_tower_id_differs_for_each_preset(small_pair: Pair) -> None:
    from narrows_export import checkpoint, source
    from narrows_export.tower_id import tower_id

    files = source.resolve(str(small_pair.question))
    tower = checkpoint.load(files, "question_encoder", None)
    settings, _ = vocabulary.read(files, "hf")
    assert len({tower_id(tower, replace(settings, text_preset=preset)) for preset in PRESETS}) == len(PRESETS)
