"""Other indexes than flat, made by the command line and served: the answers are those of the index itself."""

from pathlib import Path

import numpy as np
import pytest
from server_process import run_narrows, server

from narrows import Client
from narrows.bundle import Bundle
from narrows.index.opened import open_index
from narrows_export import corpus

QUESTIONS = [question.question for question in corpus.questions("en")[:20]]


@pytest.mark.parametrize("how", [("--preset", "ivfpq-fs"), ("--preset", "hnsw"), ("--factory", "IVF4,SQ4")])
def test_answers_are_those_of_the_index(
    small_bundle: Bundle, small_index: Path, tmp_path: Path, how: tuple[str, str]
) -> None:
    out = tmp_path / "other.index"
    made = run_narrows(
        "index", "convert", str(small_index), "--bundle", str(small_bundle.path), "--out", str(out), *how
    )
    assert made.returncode == 0, made.stderr
    opened = open_index(out, small_bundle, 1)
    with server(small_bundle.path, out) as running, Client(running.address) as client:
        embeddings = client.encode_questions(QUESTIONS)
        served = client.search(QUESTIONS, k=20)
        alone = [client.search([question], k=20)[0] for question in QUESTIONS[:3]]
    expected = opened.vectors.search(np.asarray(embeddings), 20)
    for hits, rows, scores in zip(served, expected.rows, expected.scores, strict=True):
        assert [hit.id for hit in hits] == [passage.id for passage in opened.passages.get(rows)]
        assert [hit.score for hit in hits] == scores.tolist()
    assert [result.hits for result in alone] == [result.hits for result in served[:3]]
