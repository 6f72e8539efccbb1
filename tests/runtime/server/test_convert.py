"""Sizes of replies are known before they are built."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.passages import Passage, Passages, PassageWriter
from narrows.server import convert
from narrows.v1 import retrieval_pb2 as pb
from narrows.work import Outcome

TEXT = st.text(st.characters(codec="utf-8"), max_size=400)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    strings=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8),
    view=st.sampled_from(pb.PassageView.values()),
    repeats=st.integers(1, 40),
)
def test_the_predicted_size_is_never_below_the_true_one(
    strings: list[tuple[str, str]], view: int, repeats: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        with PassageWriter(Path(directory)) as writer:
            for number, (title, text) in enumerate(strings):
                writer.append(Passage(f"id-{number}", title, text))
        passages = Passages(Path(directory))
        rows = np.tile(np.arange(len(strings)), repeats)
        scores = np.full(len(rows), -1.5, dtype=np.float32)
        reply = pb.SearchResponse(results=convert.hit_lists([Outcome(1, rows=rows, scores=scores)], passages, view))
        predicted = convert.passages_bytes(passages, rows, view)
        assert reply.ByteSize() <= predicted + convert.MESSAGE_BYTES
        assert predicted <= reply.ByteSize() + len(rows) * convert.MESSAGE_BYTES
