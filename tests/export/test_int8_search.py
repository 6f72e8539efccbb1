"""`--int8 auto`: what a search chooses, and what it leaves in the bundle."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import LAYERS, Pair

from narrows.bundle import Bundle, CurvePoint, open_bundle
from narrows.variants import pair_status
from narrows_export import corpus
from narrows_export.int8_search import LEFT_IN_FLOAT, choose, expected_overlap
from narrows_tools.cli.main import main

POINT = CurvePoint(0.8, 100, 0, 1.6, 0.94, 10_000, "evaluation", passed=True)
ENGLISH = ["--gate-questions", str(corpus.questions_file("en")), "--gate-passages", str(corpus.passages_file("en"))]


@pytest.mark.parametrize(
    ("points", "chosen"),
    [
        ([(1.6, 0.94, True)], 0),
        ([(1.6, 0.92, False), (1.5, 0.94, True), (1.4, 0.97, True)], 1),
        ([(1.4, 0.95, True), (1.5, 0.94, True), (1.7, 0.9, False)], 1),  # whatever their order
        ([(1.6, 0.8, False), (1.5, 0.91, False), (1.2, 0.9, False)], 1),  # none: the best there is, which will not pass
    ],
)
def test_the_fastest_that_passed_is_chosen(points: list[tuple[float, float, bool]], chosen: int):
    curve = [replace(POINT, speedup=s, expected_overlap=o, passed=p) for s, o, p in points]
    assert choose(curve) == chosen


def test_overlap_is_carried_on_to_more_passages():
    assert expected_overlap(0.98, 0.96, 0.955, (1000, 4000), 16_000) == pytest.approx(0.935)
    assert expected_overlap(0.98, 0.96, 0.955, (1000, 4000), 4000) == 0.955
    assert expected_overlap(0.95, 0.96, 0.955, (1000, 4000), 16_000) == 0.955  # never better for more passages


@pytest.fixture
def bundle(small_bundle: Bundle, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle.path, tmp_path / "out.bundle")


def test_a_search_without_evaluation_data(bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["bundle", "add-variants", str(bundle), "--int8", "auto", "--threads", "1"]) == 0
    printed = capsys.readouterr()
    assert "ranking products: context encoder" in printed.err
    assert "by held-out calibration texts" in printed.out
    manifest = open_bundle(bundle).manifest
    found = [tower.variants["int8"].quantization for tower in manifest.towers.values()]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].curve == found[1].curve
    curve = found[0].curve
    point = curve[choose(curve)]
    assert (point.alpha, point.percentile) == (found[0].rounding.alpha, found[0].rounding.percentile)
    for each in found:
        assert each is not None
        assert len(each.rounding.in_float) == 4 + point.left_in_float  # 4 of the last layer read one row
    assert point.passed or not any(point.passed for point in curve)
    possible = [left for left in LEFT_IN_FLOAT if left < 6 * (LAYERS - 1) + 2]
    assert [point.left_in_float for point in curve] == possible[: len(curve)]
    assert {point.data for point in curve} == {"held-out calibration"}
    assert pair_status(manifest, "int8", "int8") == "unverified"
    for tower in manifest.towers.values():
        variant = tower.variants["int8"]
        assert variant.batch_max_abs_difference == 0
        assert variant.fused_ops["MatMulIntegerToFloat"] + variant.fused_ops["QAttention"] == (
            6 * (LAYERS - 1) + 2 - point.left_in_float
        )
    assert main(["bundle", "info", str(bundle)]) == 0
    assert "the fastest with enough was taken" in capsys.readouterr().out


def test_a_search_by_evaluation_data_is_judged_afterwards(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spanish = ["--calibration", str(corpus.passages_file("es")), "--calibration", str(corpus.questions_file("es"))]
    command = ["bundle", "add-variants", str(bundle), "--int8", "auto", "--threads", "1", "--json"]
    assert main([*command, *spanish, *ENGLISH, "--gate-limit", "40"]) == 0
    int8 = json.loads(capsys.readouterr().out)["context encoder"]["int8"]
    assert [file["name"] for file in int8["quantization"]["calibration"]] == [
        "passages.es.jsonl", "questions.es.jsonl",
    ]  # fmt: skip
    assert {point["data"] for point in int8["quantization"]["curve"]} == {"evaluation"}
    reports = open_bundle(bundle).manifest.quality
    assert len(reports) == 4
    assert {report.questions.texts for report in reports} == {40}


@pytest.mark.parametrize("calibration", [[], ["--calibration", str(corpus.passages_file("en"))]])
def test_calibration_texts_that_are_evaluation_data(
    bundle: Path, calibration: list[str], capsys: pytest.CaptureFixture[str]
):
    before = open_bundle(bundle).manifest
    assert main(["bundle", "add-variants", str(bundle), "--int8", "auto", *ENGLISH, *calibration]) == 1
    assert "also in the calibration data" in capsys.readouterr().err.splitlines()[-1]
    assert open_bundle(bundle).manifest == before


def texts(file: Path, count: int, **fields: object) -> Path:
    lines = [{"id": str(number), **fields} for number in range(count)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


def test_too_few_texts_are_counted_before_any_work(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    questions = texts(tmp_path / "q.jsonl", 1, question="who?", answers=["a"])
    passages = texts(tmp_path / "p.jsonl", 60, title="a", text="b")
    few = texts(tmp_path / "few.jsonl", 39, title="a", text="b")
    for files, said in (
        (["--calibration", questions], f"at least 50 questions, and {questions} has 1"),
        (["--calibration", passages], "at least 40 passages, and there are 30 to calibrate on that are held out"),
        (["--gate-questions", questions, "--gate-passages", few], "at least 40 passages, and there are 39 in the gate"),
    ):
        assert main(["bundle", "add-variants", str(bundle), "--int8", "auto", *map(str, files)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line
    assert main(["bundle", "add-variants", str(bundle), "--int8", "default", "--calibration", str(passages)]) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "nothing to make: give --variants, such as fp16,int8, or --int8"),
        (["--int8", "auto", "--gate-limit", "5"], "a gate needs both --gate-questions and --gate-passages"),
        (["--variants", "fp16", "--calibration", "c.jsonl"], "--calibration is for int8 or for a gate"),
    ],
)
def test_options_that_would_do_nothing(bundle: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str):
    assert main(["bundle", "add-variants", str(bundle), *options]) == 1
    assert said in capsys.readouterr().err


def test_own_texts_beside_a_file_of_the_other_kind_are_no_evaluation_data(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own_passages = ["--gate-questions", str(texts(tmp_path / "q.jsonl", 1, question="who?", answers=["a"]))]
    own_passages += ["--gate-passages", str(corpus.passages_file("en"))]
    calibration = texts(tmp_path / "c.jsonl", 50, question="where?", answers=["a"])
    command = ["bundle", "add-variants", str(bundle), "--int8", "auto", *own_passages]
    assert main([*command, "--calibration", str(calibration)]) == 1
    assert "300 of the gate's passages are also in the calibration data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stopped", "variants", "rest"),
    [
        ("narrows_export.int8_search.search", "fp32", "add-variants {} --int8 auto"),
        ("narrows_export.gate.run_gate", "fp32, int8", "gate {}"),
    ],
)
def test_an_export_that_is_stopped_after_the_bundle_is_written(
    small_pair: Pair,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    stopped: str,
    variants: str,
    rest: str,
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stopped, interrupted)
    out = tmp_path / "out.bundle"
    spanish = ["--calibration", str(corpus.passages_file("es")), "--calibration", str(corpus.questions_file("es"))]
    command = ["export", "--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    command += ["--out", str(out), "--max-tokens", "16", "--allow-unpaired", "--int8", "auto"]
    assert main([*command, *spanish, *ENGLISH, "--gate-limit", "5"]) == 130
    said = capsys.readouterr().err.splitlines()[-2:]
    assert said == [
        f"{out} is whole, with {variants}; for the rest: narrows bundle {rest.format(out)} ...",
        "narrows: interrupted",
    ]
    assert list(open_bundle(out).tower("question_encoder").variants) == variants.split(", ")


def test_an_empty_calibration_file_is_named(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "empty.jsonl"
    file.write_text("", "utf-8")
    assert main(["bundle", "add-variants", str(bundle), "--int8", "default", "--calibration", str(file)]) == 1
    assert "empty.jsonl" in capsys.readouterr().err.splitlines()[-1]
