"""The real trained pair, judged by the eval command on all its passages: the accuracies measured with PyTorch."""

import csv
import gzip
import json
from pathlib import Path

import pytest
from reference_answers import has_answer
from server_process import run_narrows

# Found with exact search over fp32 embeddings; PyTorch's own towers give 46.65, 75.35, 90.25 and 96.95.
BY_POSITIVES = {"1": 0.4660, "5": 0.7545, "20": 0.9025, "100": 0.9695}
ONE_QUESTION = 1 / 2000


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_eval_finds_the_known_accuracies(shared: Path, tmp_path: Path) -> None:
    towers, data = shared / "models" / "tiny-dpr", shared / "data" / "en"
    bundle, index, rankings = tmp_path / "tiny.bundle", tmp_path / "en.index", tmp_path / "dpr.json"
    sources = [
        "--question-encoder",
        str(towers / "question_encoder"),
        "--context-encoder",
        str(towers / "context_encoder"),
    ]
    exported = run_narrows("export", *sources, "--out", str(bundle))
    assert exported.returncode == 0, exported.stderr
    passages = data / "passages.tsv.gz"
    build = ["index", "build", "--bundle", str(bundle), "--passages", str(passages), "--out", str(index)]
    built = run_narrows(*build, timeout_s=1500)
    assert built.returncode == 0, built.stderr
    asked = ["--questions", str(data / "questions.jsonl.gz"), "--where", "seen_by_tiny_dpr=false", "--limit", "2000"]
    system = ["--bundle", str(bundle), "--index", str(index)]
    done = run_narrows("eval", "retrieval", *asked, *system, "--out-dpr", str(rankings), "--json", timeout_s=300)
    assert done.returncode == 0, done.stderr

    result = json.loads(done.stdout)
    assert result["metrics"]["by_positives"]["accuracy"] == pytest.approx(BY_POSITIVES, abs=1.1 * ONE_QUESTION)
    by_answers = result["metrics"]["by_answers"]
    assert by_answers["ceiling"] == 1.0, "every question of this set has an answer in its first positive passage"
    assert 0.04 < by_answers["random"]["20"] < 0.06
    assert 0.12 < by_answers["random"]["100"] < 0.16
    with gzip.open(passages, "rt", encoding="utf-8", newline="") as file:
        texts = {row["id"]: row["text"].strip('"') for row in csv.DictReader(file, delimiter="\t")}
    for item in json.loads(rankings.read_text("utf-8"))[:200]:
        for found in item["ctxs"]:
            assert found["has_answer"] == has_answer(item["answers"], texts[found["id"]], "string"), found["id"]
