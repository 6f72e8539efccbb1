"""Spans of answers, against transformers and against the rules written out one by one."""

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import english_vocabulary
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DPRReaderTokenizerFast

from narrows.spans import RULES, SpanRule, best_spans

REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=150)


@cache
def transformers_tokenizer(directory: str) -> DPRReaderTokenizerFast:
    return DPRReaderTokenizerFast(directory)


def one_by_one(
    start: npt.NDArray[np.float32],
    end: npt.NDArray[np.float32],
    first: int,
    length: int,
    continues: npt.NDArray[np.bool_],
    rule: SpanRule,
) -> list[tuple[int, int, float]]:
    """The oracle: all spans in the order of their scores, extended and taken unless nested with a better one."""
    spans = [(i, j) for i in range(first, length) for j in range(i, min(i + rule.max_tokens, length))]
    chosen: list[tuple[int, int, float]] = []
    for i, j in sorted(spans, key=lambda span: -(start[span[0]] + end[span[1]])):
        score = start[i] + end[j]
        if rule.whole_words:
            while i > first and continues[i]:
                i -= 1
            while j < length - 1 and continues[j + 1]:
                j += 1
        if not any((i <= a and b <= j) or (a <= i and j <= b) for a, b, _ in chosen):
            chosen.append((i, j, float(score)))
        if len(chosen) == rule.per_passage:
            break
    return chosen


@given(
    data=st.data(),
    rule=st.sampled_from([RULES["dpr"], RULES["hugging-face"], SpanRule(3, True, 5), SpanRule(1, True, 2)]),
)
@REPRODUCIBLE
def test_the_spans_are_those_of_the_rule(data: st.DataObject, rule: SpanRule) -> None:
    """Few values, so that many scores are equal."""
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    texts, tokens = data.draw(st.tuples(st.integers(1, 6), st.integers(2, 30)))
    start, end = random.integers(-3, 4, (2, texts, tokens)).astype(np.float32)
    firsts = random.integers(0, tokens, texts)
    lengths = np.array([random.integers(first, tokens) + 1 for first in firsts])
    continues = random.random((texts, tokens)) < 0.4
    found = best_spans(start, end, firsts, lengths, continues, rule)
    for text in range(texts):
        expected = one_by_one(start[text], end[text], firsts[text], lengths[text], continues[text], rule)
        missing = rule.per_passage - len(expected)
        assert found.starts[text].tolist() == [span[0] for span in expected] + [-1] * missing
        assert found.ends[text].tolist() == [span[1] for span in expected] + [-1] * missing
        assert found.scores[text].tolist() == [span[2] for span in expected] + [-np.inf] * missing


def test_a_passage_without_tokens_has_no_span() -> None:
    logits = np.zeros((1, 5), dtype=np.float32)
    found = best_spans(logits, logits, np.array([5]), np.array([5]), np.zeros((1, 5), dtype=bool), RULES["dpr"])
    assert found.starts.tolist() == [[-1]]
    assert found.scores.tolist() == [[-np.inf]]


@pytest.mark.parametrize("seed", range(5))
def test_hugging_faces_rule_is_that_of_decode_best_spans(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("vocabulary")
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in english_vocabulary()), "utf-8")
    tokenizer = transformers_tokenizer(str(directory / "vocab.txt"))
    titles, texts = ["the nile", "", "city"], ["the river is the longest of all", "it is", "a city of the north " * 20]
    inputs = tokenizer(["which river is long"] * 3, titles, texts, padding=True, return_tensors="pt")
    torch.manual_seed(seed)
    shape = inputs["input_ids"].shape
    start, end, relevance = torch.randn(shape), torch.randn(shape), torch.randn(3)
    expected = tokenizer.decode_best_spans(inputs, (start, end, relevance), num_spans=100)

    ids = inputs["input_ids"].numpy()
    separators = [np.flatnonzero(row == tokenizer.sep_token_id) for row in ids]
    firsts = np.array([places[0] + 1 for places in separators])  # behind the question
    lengths = inputs["attention_mask"].numpy().sum(axis=1)
    found = best_spans(start.numpy(), end.numpy(), firsts, lengths, np.zeros(shape, dtype=bool), RULES["hugging-face"])
    ours = [
        (text, found.starts[text, number], found.ends[text, number])
        for text in np.argsort(-relevance.numpy(), kind="stable")
        for number in range(RULES["hugging-face"].per_passage)
        if found.starts[text, number] >= 0
    ]
    assert ours == [(span.doc_id, span.start_index, span.end_index) for span in expected]
