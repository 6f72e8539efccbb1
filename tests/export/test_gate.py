"""The gate: what pairs find against a search in plain numpy, and reports kept in the manifest."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoints import Pair

from narrows import durable
from narrows.bundle import Bundle, open_bundle, write_manifest
from narrows.passages import Passage
from narrows.quality import DataFile
from narrows.variants import pair_report, pair_status
from narrows_export import corpus, gate_data
from narrows_export.gate import SCALES, TOP, run_gate, search_pairs
from narrows_export.gate_data import GateData, GateRequest
from narrows_export.scoring import NOT_COUNTED
from narrows_tools.cli.main import main
from narrows_tools.evaluation.questions import Question
from narrows_tools.evaluation.steps import silent

QUESTIONS, PASSAGES, DIM = 300, 1200, 16
QUESTION_FILE = corpus.DIRECTORY / "questions.en.jsonl"
DEMO = ["--gate-questions", str(QUESTION_FILE), "--gate-passages", str(corpus.passages_file("en"))]


@pytest.fixture(scope="module")
def data() -> GateData:
    """Question n asks for passage n's number; every third has no answer, every fifth names no positive."""
    questions = tuple(
        Question(
            id=f"q{number}",
            text="which?",
            answers=(f"number{number}",) if number % 3 else (),
            positive_ids=(f"p{number}", "elsewhere") if number % 5 else ("elsewhere",),
        )
        for number in range(QUESTIONS)
    )
    passages = tuple(Passage(f"p{number}", "", f"it is number{number}") for number in range(PASSAGES))
    file = DataFile("x", "0" * 64, 1)
    return GateData(questions, passages, file, file, (), (), seed=3, language="")


@pytest.fixture(scope="module")
def embeddings() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    passages = random.standard_normal((PASSAGES, DIM)).astype(np.float32)
    questions = passages[:QUESTIONS] + 0.5 * random.standard_normal((QUESTIONS, DIM)).astype(np.float32)

    def noisy(of: np.ndarray, size: float) -> np.ndarray:
        return (of + size * random.standard_normal(of.shape)).astype(np.float32)

    return (
        {"fp32": questions, "int8": noisy(questions, 0.3)},
        {"fp32": passages, "int8": noisy(passages, 0.3)},
    )


def test_every_pair_finds_what_plain_numpy_finds(
    data: GateData, embeddings: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
):
    questions, passages = embeddings
    found = search_pairs(data, questions, passages, silent)
    assert set(found) == {(a, b) for a in questions for b in passages}
    subset = np.sort(np.random.default_rng(data.seed).permutation(PASSAGES)[:1000])
    for (question, passage), scales in found.items():
        assert [each.passages for each in scales] == [1000, PASSAGES]
        for rows, each in zip((subset, np.arange(PASSAGES)), scales, strict=True):
            scores = questions[question].astype(float) @ passages[passage][rows].astype(float).T
            reference = questions["fp32"].astype(float) @ passages["fp32"][rows].astype(float).T
            ranking = rows[np.argsort(-scores, axis=1)]
            wanted = rows[np.argsort(-reference, axis=1)]
            for number in range(QUESTIONS):
                common = len(set(ranking[number, :10]) & set(wanted[number, :10]))
                assert each.overlap[number] == pytest.approx(common / 10)
                place = np.flatnonzero(ranking[number, :TOP] == number)
                rank = place[0] if len(place) else TOP
                assert each.by_answers[number] == (rank if number % 3 else NOT_COUNTED)
                assert each.by_positives[number] == (rank if number % 5 and number in rows else NOT_COUNTED)
    assert (found["fp32", "fp32"][1].overlap == 1).all()
    assert 0.3 < found["int8", "int8"][1].overlap.mean() < 0.95
    assert [each.passages for each in found["fp32", "fp32"]] == [SCALES[0], PASSAGES]


def test_ties_are_no_loss(data: GateData):
    """Twenty copies of every passage: which ten of them come first is chance, and no matter of quality."""
    random = np.random.default_rng(0)
    distinct = random.standard_normal((PASSAGES // 20, DIM)).astype(np.float32)
    passages = np.repeat(distinct, 20, axis=0)
    questions = random.standard_normal((QUESTIONS, DIM)).astype(np.float32)
    nudged = (passages + 1e-7 * random.standard_normal(passages.shape)).astype(np.float32)
    found = search_pairs(data, {"fp32": questions}, {"fp32": passages, "fp16": nudged}, silent)
    best = [np.argsort(-(questions[0] @ each.T), kind="stable")[:10] for each in (passages, nudged)]
    assert set(best[0]) != set(best[1])
    assert (found["fp32", "fp16"][1].overlap == 1).all()


def test_fewer_passages_than_the_first_ten(data: GateData):
    random = np.random.default_rng(0)
    questions = random.standard_normal((QUESTIONS, DIM)).astype(np.float32)
    passages = random.standard_normal((4, DIM)).astype(np.float32)
    few = replace(data, passages=data.passages[:4])
    found = search_pairs(few, {"fp32": questions}, {"fp32": passages}, silent)["fp32", "fp32"]
    assert [each.passages for each in found] == [4]
    assert (found[0].overlap == 1).all()
    assert set(found[0].by_answers) <= {NOT_COUNTED, 0, 1, 2, 3, TOP}
    assert (found[0].by_answers[[4, 5, 7]] == TOP).all()


# Whole gates on real towers


@pytest.fixture(scope="module")
def judged(variants_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small bundle with all variants, judged over the English demo passages."""
    path = shutil.copytree(variants_bundle.path, tmp_path_factory.mktemp("gate") / "judged.bundle")
    request = GateRequest(QUESTION_FILE, corpus.passages_file("en"), language="en")
    run_gate(path, gate_data.read(request), threads=1, start=silent)
    return open_bundle(path)


def test_the_demo_corpus_is_too_small_to_pass_by(judged: Bundle):
    for question in ("fp32", "fp16", "int8"):
        for passage in ("fp32", "fp16", "int8"):
            expected = "reference" if question == passage == "fp32" else "unverified"
            assert pair_status(judged.manifest, question, passage) == expected
    assert len(judged.manifest.quality) == 9


def test_a_report_says_what_was_judged_over_what(judged: Bundle):
    report = pair_report(judged.manifest, "fp16", "int8")
    assert report is not None
    assert report.question_model_sha256 == judged.tower("question_encoder").variants["fp16"].sha256
    assert report.passage_model_sha256 == judged.tower("context_encoder").variants["int8"].sha256
    assert report.questions == DataFile(QUESTION_FILE.name, durable.sha256_file(QUESTION_FILE), 130)
    assert report.passages.texts == 300
    assert (report.language, report.seed, report.calibration) == ("en", 0, ())
    assert [scale.passages for scale in report.scales] == [300]
    scale = report.scales[0]
    assert (scale.answers_questions, scale.positives_questions) == (130, 130)
    assert [each.k for each in scale.by_answers] == [each.k for each in scale.by_positives] == [1, 5, 20, 100]


def test_fp32_is_compared_with_itself_and_fp16_is_close_to_it(judged: Bundle):
    for pair in (("fp32", "fp32"), ("fp16", "fp16"), ("int8", "int8")):
        report = pair_report(judged.manifest, *pair)
        assert report is not None
        overlap = report.scales[0].top10_overlap
        if pair == ("fp32", "fp32"):
            assert (overlap.mean, overlap.low, overlap.high) == (1, 1, 1)
            assert all(each.change.mean == 0 for each in report.scales[0].by_answers)
        elif pair == ("fp16", "fp16"):
            assert overlap.low > 0.98
        else:
            assert overlap.high < 1
        assert overlap.low <= overlap.mean <= overlap.high


def test_judging_again_replaces_the_reports(judged: Bundle, tmp_path: Path):
    path = shutil.copytree(judged.path, tmp_path / "again.bundle")
    request = GateRequest(QUESTION_FILE, corpus.passages_file("en"), limit=20, seed=5, language="xx")
    manifest = run_gate(path, gate_data.read(request), threads=1, start=silent)
    assert len(manifest.quality) == 9
    assert {(report.questions.texts, report.seed, report.language) for report in manifest.quality} == {(20, 5, "xx")}
    assert open_bundle(path).manifest == manifest


def test_reports_of_variants_that_are_gone_are_kept_apart(judged: Bundle, tmp_path: Path):
    path = shutil.copytree(judged.path, tmp_path / "fewer.bundle")
    towers = {
        role: replace(tower, variants={"fp32": tower.variants["fp32"]})
        for role, tower in judged.manifest.towers.items()
    }
    write_manifest(path, replace(judged.manifest, towers=towers))
    assert pair_status(open_bundle(path).manifest, "fp16", "fp16") == "unverified"


# Through the command line


def test_the_command_prints_tables_and_json(
    variants_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = str(shutil.copytree(variants_bundle.path, tmp_path / "out.bundle"))
    assert main(["bundle", "gate", path, *DEMO, "--gate-limit", "30", "--json", "--threads", "1"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"question_variant": "fp16", "passage_variant": "fp32", "status": "unverified"} in printed["pairs"]
    assert len(printed["quality"]) == 9
    assert main(["bundle", "info", path]) == 0
    shown = capsys.readouterr().out
    assert "30 questions, 300 passages" in shown
    assert "top-10 overlap" in shown
    assert "questions by int8 with passages by fp32: unverified: its report rests on only 30 questions" in shown


def test_export_and_gate_in_one_go(
    variants_bundle: Bundle, small_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.bundle"
    towers = ["--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    how = ["--out", str(out), "--max-tokens", "16", "--allow-unpaired", "--variants", "fp32,fp16", "--json"]
    assert main(["export", *towers, *how, *DEMO, "--gate-limit", "10"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["towers"][0]["variants"]) == ["fp32", "fp16"]
    assert len(printed["pairs"]) == len(printed["quality"]) == len(open_bundle(out).manifest.quality) == 4


def test_bad_gate_data_is_found_before_the_export_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    export = ["export", "--question-encoder", "no/such", "--context-encoder", "no/such", "--out", str(tmp_path / "o")]
    assert main([*export, *DEMO, "--calibration", str(QUESTION_FILE)]) == 1
    assert "130 of the gate's questions are also in the calibration data" in capsys.readouterr().err
    assert main([*export, *DEMO[:2]]) == 1
    assert "a gate needs both --gate-questions and --gate-passages" in capsys.readouterr().err
    assert main([*export, "--calibration", str(QUESTION_FILE)]) == 1
    assert "--calibration is for int8 or for a gate, and neither is asked for" in capsys.readouterr().err
    for alone in (["--gate-where", "a=1"], ["--gate-limit", "5"]):
        assert main([*export, *alone]) == 1
        assert "a gate needs both" in capsys.readouterr().err


def test_a_bundle_that_another_process_is_changing(judged: Bundle, capsys: pytest.CaptureFixture[str]):
    before = (judged.path / "manifest.json").read_bytes()
    with durable.locked(judged.path):
        assert main(["bundle", "gate", str(judged.path), *DEMO, "--gate-limit", "5"]) == 1
    said = capsys.readouterr().err
    assert f"another process is changing {judged.path}; wait for it" in said
    assert "comparing" not in said  # refused before the work, not after it
    assert (judged.path / "manifest.json").read_bytes() == before
