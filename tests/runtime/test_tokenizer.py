"""Text -> token ids, against ids that transformers 4.57 made (tests/data/golden_tokenizer) and against it live."""

import json
import unicodedata
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import DPRQuestionEncoderTokenizerFast

from narrows.errors import BundleError
from narrows.tokenizer import TokenizedText, TowerTokenizer, build_tokenizer, vocabulary_sha256
from narrows_export import vocabulary
from narrows_export.source import CheckpointFiles

DATA = Path(__file__).parents[1] / "data" / "golden_tokenizer"
GOLDEN = json.loads((DATA / "golden.json").read_text("utf-8"))
VOCABULARIES = ("en-uncased", "es-cased")
CASES = [pytest.param(name, case, id=f"{name}: {case['name']}") for name in VOCABULARIES for case in GOLDEN[name]]
MAX_TOKENS = 32


@cache
def read(name: str):
    return vocabulary.read(CheckpointFiles(DATA / name, name, "", "", ""), "hf")


@cache
def saved(name: str) -> str:
    """The tokenizer.json of a vocabulary."""
    return build_tokenizer(*read(name)).to_str()


def load(tmp_path: Path, name: str, max_tokens: int) -> TowerTokenizer:
    """The tokenizer as a server loads it: from a bundle's tokenizer.json."""
    file = tmp_path / "tokenizer.json"
    build_tokenizer(*read(name)).save(str(file))
    return TowerTokenizer.load(file, read(name)[0], max_tokens)


def encode(tokenizer: TowerTokenizer, case: dict) -> TokenizedText:
    if case["kind"] == "question":
        return tokenizer.questions([case["text"]])[0]
    return tokenizer.passages([(case["title"], case["text"])])[0]


def words(tokenizer: TowerTokenizer, text: str) -> list[str]:
    """The tokens of a text, without [CLS] and [SEP]."""
    return tokenizer.tokens(tokenizer.questions([text])[0].ids)[1:-1]


def as_read(name: str, text: str) -> str:
    """A text as it is tokenized."""
    return unicodedata.normalize("NFC", text) if read(name)[0].composes else text


def is_read_as_it_is(name: str, case: dict) -> bool:
    """Whether nothing in a text of the golden file is composed before it is tokenized."""
    return as_read(name, case["title"]) + as_read(name, case["text"]) == case["title"] + case["text"]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_token_ids_are_those_of_transformers(tmp_path: Path, name: str, case: dict) -> None:
    ids = encode(load(tmp_path, name, case["max_tokens"]), case).ids.tolist()
    if is_read_as_it_is(name, case):
        assert ids == case["ids"]
    else:
        parts = [as_read(name, part) for part in (case["title"], case["text"]) if part]
        assert ids == transformers_tokenizer(name)(*parts)["input_ids"]


def test_few_golden_texts_are_composed_first() -> None:
    composed = [case["name"] for case in GOLDEN["es-cased"] if not is_read_as_it_is("es-cased", case)]
    assert "accents combining" in composed
    assert len(composed) <= 6
    assert all(is_read_as_it_is("en-uncased", case) for case in GOLDEN["en-uncased"])


def test_golden_file_covers_both_vocabularies_and_says_where_it_is_from() -> None:
    assert GOLDEN["transformers"].startswith("4.57.")
    assert (DATA.parents[2] / GOLDEN["made_by"]).is_file()
    for name in VOCABULARIES:
        assert {case["kind"] for case in GOLDEN[name]} == {"question", "passage"}
        assert len(GOLDEN[name]) > 50


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_batch_gives_each_text_the_ids_it_has_alone(tmp_path: Path, name: str) -> None:
    cases = [case for case in GOLDEN[name] if case["max_tokens"] == 256 and is_read_as_it_is(name, case)]
    questions = [case for case in cases if case["kind"] == "question"]
    passages = [case for case in cases if case["kind"] == "passage"]
    tokenizer = load(tmp_path, name, 256)

    asked = tokenizer.questions([case["text"] for case in questions])
    encoded = tokenizer.passages([(case["title"], case["text"]) for case in passages])

    assert [text.ids.tolist() for text in asked] == [case["ids"] for case in questions]
    assert [text.ids.tolist() for text in encoded] == [case["ids"] for case in passages]


def test_no_texts_give_no_tokens(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "en-uncased", MAX_TOKENS)
    assert tokenizer.questions([]) == []
    assert tokenizer.passages([]) == []


@pytest.mark.parametrize(
    ("title", "text"),
    [
        pytest.param("", "the longest river of the country", id="text"),
        pytest.param("The Nile", "the longest river of the country", id="short title"),
        pytest.param("the longest river of the country", "The Nile", id="short text"),
        pytest.param("the longest river of the country", "", id="title"),
    ],
)
def test_truncated_says_whether_a_text_was_cut(tmp_path: Path, title: str, text: str) -> None:
    whole = load(tmp_path, "en-uncased", 256).passages([(title, text)])[0]
    length = len(whole.ids)

    [at_the_limit] = load(tmp_path, "en-uncased", length).passages([(title, text)])
    [one_over] = load(tmp_path, "en-uncased", length - 1).passages([(title, text)])

    assert not whole.truncated
    assert not at_the_limit.truncated
    assert at_the_limit.ids.tolist() == whole.ids.tolist()
    assert one_over.truncated
    assert len(one_over.ids) == length - 1


def test_truncated_of_a_question_at_and_over_the_limit(tmp_path: Path) -> None:
    question = "which river is the longest"
    length = len(load(tmp_path, "en-uncased", 256).questions([question])[0].ids)

    assert not load(tmp_path, "en-uncased", length).questions([question])[0].truncated
    assert load(tmp_path, "en-uncased", length - 1).questions([question])[0].truncated


def test_one_long_text_of_a_batch_is_cut_and_marked_alone(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "en-uncased", 8)
    texts = tokenizer.questions(["the river", "the river " * 50, "the city"])

    assert [text.truncated for text in texts] == [False, True, False]
    assert [len(text.ids) for text in texts] == [4, 8, 4]


def test_padding_and_truncation_of_a_tokenizer_json_are_ignored(tmp_path: Path) -> None:
    rust = build_tokenizer(*read("en-uncased"))
    rust.enable_padding(length=128)
    rust.enable_truncation(5)
    file = tmp_path / "tokenizer.json"
    rust.save(str(file))
    stored = json.loads(file.read_text("utf-8"))
    assert stored["padding"]["strategy"] == {"Fixed": 128}
    assert stored["truncation"]["max_length"] == 5

    case = next(case for case in GOLDEN["en-uncased"] if case["name"] == "passage 1")
    text = encode(TowerTokenizer.load(file, read("en-uncased")[0], case["max_tokens"]), case)

    assert text.ids.tolist() == case["ids"]
    assert not text.truncated


@pytest.mark.parametrize(("one", "other"), [("año", "ano"), ("Él", "el"), ("Él", "él"), ("sí", "si"), ("Río", "río")])
def test_a_cased_vocabulary_keeps_case_accents_and_tilde(tmp_path: Path, one: str, other: str) -> None:
    tokenizer = load(tmp_path, "es-cased", MAX_TOKENS)

    assert words(tokenizer, one) != words(tokenizer, other)
    for word in (one, other):
        assert "".join(words(tokenizer, word)).replace("##", "") == word


@pytest.mark.parametrize("name", VOCABULARIES)
@given(text=st.text(st.sampled_from("áéíóúüñÁÉÍÓÚÜÑaeiouñ ¿?")))
@settings(derandomize=True, max_examples=60, deadline=None)
def test_composed_and_decomposed_text_is_the_same(name: str, text: str) -> None:
    tokenizer = ours(name)
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD")]
    questions = tokenizer.questions(forms)
    passages = tokenizer.passages([(form, form) for form in forms])
    for one, other in (questions, passages):
        assert one.ids.tolist() == other.ids.tolist()


@pytest.mark.parametrize(
    ("one", "other"), [("año", "ano"), ("Él", "el"), ("RIVER", "river"), ("Zürich", "zurich"), ("e\u0301", "é")]
)
def test_an_uncased_vocabulary_folds_case_accents_and_tilde(tmp_path: Path, one: str, other: str) -> None:
    tokenizer = load(tmp_path, "en-uncased", MAX_TOKENS)

    assert words(tokenizer, one) == words(tokenizer, other)
    assert "[UNK]" not in words(tokenizer, one)


def test_an_empty_title_leaves_the_text_alone(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "en-uncased", MAX_TOKENS)
    [passage] = tokenizer.passages([("", "the river")])
    [titled] = tokenizer.passages([("river", "the river")])

    assert tokenizer.tokens(passage.ids) == ["[CLS]", "the", "river", "[SEP]"]
    assert tokenizer.tokens(titled.ids) == ["[CLS]", "river", "[SEP]", "the", "river", "[SEP]"]


def test_pad_id_is_the_id_of_the_pad_token(tmp_path: Path) -> None:
    settings_, tokens = read("en-uncased")
    moved = [tokens[1], tokens[0], *tokens[2:]]  # [PAD] at 1
    file = tmp_path / "tokenizer.json"
    build_tokenizer(settings_, moved).save(str(file))

    assert TowerTokenizer.load(file, settings_, MAX_TOKENS).pad_id == 1
    assert load(tmp_path, "en-uncased", MAX_TOKENS).pad_id == 0


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[: len(data) // 2], id="cut short"),
        pytest.param(lambda data: b"{}", id="no model"),
        pytest.param(lambda data: b"\xff\xfe" + data, id="not UTF-8"),
        pytest.param(lambda data: data.replace(b'"WordPiece"', b'"Unheard"'), id="unknown model"),
    ],
)
def test_a_damaged_tokenizer_json_raises_bundle_error_naming_the_file(tmp_path: Path, damage) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(damage(saved("en-uncased").encode()))

    with pytest.raises(BundleError, match="export the bundle again") as raised:
        TowerTokenizer.load(file, read("en-uncased")[0], MAX_TOKENS)
    assert str(file) in str(raised.value)


def test_a_missing_tokenizer_json_raises_bundle_error_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"absent\.json"):
        TowerTokenizer.load(tmp_path / "absent.json", read("en-uncased")[0], MAX_TOKENS)


def test_vocabulary_hash_depends_on_tokens_and_their_order() -> None:
    hashes = {vocabulary_sha256(tokens) for tokens in (["a", "b"], ["b", "a"], ["ab"], ["a"], [])}
    assert len(hashes) == 5
    # printf 'a\nb\n' | sha256sum
    assert vocabulary_sha256(["a", "b"]) == "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"


@cache
def ours(name: str) -> TowerTokenizer:
    return TowerTokenizer(Tokenizer.from_str(saved(name)), read(name)[0], MAX_TOKENS)


@cache
def transformers_tokenizer(name: str) -> DPRQuestionEncoderTokenizerFast:
    return DPRQuestionEncoderTokenizerFast(str(DATA / name / "vocab.txt"), do_lower_case=name == "en-uncased")


# Arbitrary characters alone are mostly unknown to the vocabularies; what they know makes longer, richer texts.
PIECES = [
    "the ", "river", "El ", "año", "Él", "cigüeña", "Nile ", "2012", "?", "¿", "##s", "[SEP]", "[MASK]", "[cls]", " ",
    "é", "e\u0301", "n\u0303", "\u0308", "\u200d", "\ufeff", "\x00", "\ufffd", "\u3000", "東京", "😀", "שלום", "\n",
    "İ", "ẞ",
]  # fmt: skip
UNICODE = st.characters(exclude_categories=["Cs"])
TEXTS = st.text(UNICODE) | st.lists(st.sampled_from(PIECES) | UNICODE, max_size=40).map("".join)


@pytest.mark.parametrize("name", VOCABULARIES)
@given(text=TEXTS)
@settings(derandomize=True, max_examples=150, deadline=None)
def test_any_question_has_the_ids_of_transformers(name: str, text: str) -> None:
    reference = transformers_tokenizer(name)
    read_as = as_read(name, text)
    expected = reference([read_as], truncation=True, max_length=MAX_TOKENS)["input_ids"][0]
    whole = reference([read_as])["input_ids"][0]

    [question] = ours(name).questions([text])

    assert question.ids.tolist() == expected
    assert question.truncated == (len(whole) > MAX_TOKENS)


@pytest.mark.parametrize("name", VOCABULARIES)
@given(title=TEXTS, text=TEXTS)
@settings(derandomize=True, max_examples=150, deadline=None)
def test_any_passage_has_the_ids_of_transformers(name: str, title: str, text: str) -> None:
    reference = transformers_tokenizer(name)
    inputs = ([as_read(name, title)], [as_read(name, text)]) if title else ([as_read(name, text)],)
    expected = reference(*inputs, truncation="longest_first", max_length=MAX_TOKENS)["input_ids"][0]
    whole = reference(*inputs)["input_ids"][0]

    [passage] = ours(name).passages([(title, text)])

    assert passage.ids.tolist() == expected
    assert passage.truncated == (len(whole) > MAX_TOKENS)
