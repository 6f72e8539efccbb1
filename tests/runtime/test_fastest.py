"""The question variant that a server takes: the fastest sound one of those that work on this machine."""

import logging
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from test_variants import report

from narrows import fastest
from narrows.bundle import Bundle, write_manifest
from narrows.encoder import Encoder
from narrows.errors import BundleError
from narrows.fastest import load_fastest, time_questions
from narrows.towers import Tower, load_towers


@pytest.fixture
def judged(variants_bundle: Bundle) -> Bundle:
    """fp16 questions passed with fp32 passages and with fp16."""
    manifest = variants_bundle.manifest
    reports = tuple(report(manifest, ("fp16", passage)) for passage in ("fp32", "fp16"))
    return replace(variants_bundle, manifest=replace(manifest, quality=reports))


@pytest.mark.parametrize(("fp16_ms", "taken"), [(5.0, "fp16"), (9.9, "fp32"), (20.0, "fp32")])
def test_the_fastest_sound_variant_answers_and_the_log_says_why(
    judged: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fp16_ms: float, taken: str
) -> None:
    def times(towers: Mapping[str, Tower]) -> dict[str, float]:
        assert list(towers) == ["fp32", "fp16"]
        return {"fp32": 10.0, "fp16": fp16_ms}

    monkeypatch.setattr(fastest, "time_questions", times)
    caplog.set_level(logging.INFO)
    choice, towers = load_fastest(judged, "fp32", "", 1)
    assert (choice.question, choice.passage, choice.warning) == (taken, "fp32", "")
    expected = load_towers(judged, taken, 1, ["question_encoder"])["question_encoder"]
    ids = expected.tokenizer.questions(["who wrote the opera carmen?"])[0].ids
    assert (towers["question_encoder"].encoder.encode([ids]) == expected.encoder.encode([ids])).all()
    assert f"questions by {taken}: a mix of short ones took fp32 10.0 ms, fp16 {fp16_ms} ms" in caplog.messages


@pytest.mark.parametrize(("index_variant", "wanted", "taken"), [("fp32", "fp16", "fp16"), ("fp16", "", "fp16")])
def test_a_single_candidate_is_not_timed(
    judged: Bundle, monkeypatch: pytest.MonkeyPatch, index_variant: str, wanted: str, taken: str
) -> None:
    monkeypatch.delattr(fastest, "time_questions")
    choice, _ = load_fastest(judged, index_variant, wanted, 1)
    assert (choice.question, choice.passage) == (taken, index_variant)


def test_a_variant_that_is_off_here_is_left_out(
    judged: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = shutil.copytree(judged.path, tmp_path / "off.bundle")
    tower = judged.tower("question_encoder")
    off = replace(tower.variants["fp16"], golden_tolerance=-1.0)
    changed = replace(tower, variants={**tower.variants, "fp16": off})
    manifest = replace(judged.manifest, towers={**judged.manifest.towers, "question_encoder": changed})
    write_manifest(path, manifest)
    bundle = Bundle(path, manifest)
    assert load_fastest(bundle, "fp32", "", 1)[0].question == "fp32"
    assert any(message.startswith("left out: variant fp16 of the question_encoder") for message in caplog.messages)
    with pytest.raises(BundleError, match="variant fp16 of the question_encoder"):
        load_fastest(bundle, "fp32", "fp16", 1)


def test_memory_is_given_back_when_only_the_fastest_variant_is_left(
    judged: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoders: dict[str, weakref.ref[Encoder]] = {}
    left: list[str] = []

    def times(towers: Mapping[str, Tower]) -> dict[str, float]:
        encoders.update({name: weakref.ref(tower.encoder) for name, tower in towers.items()})
        return {"fp32": 10.0, "fp16": 5.0}

    monkeypatch.setattr(fastest, "time_questions", times)
    monkeypatch.setattr(
        fastest, "_give_back_memory", lambda: left.extend(name for name in encoders if encoders[name]() is not None)
    )
    _, towers = load_fastest(judged, "fp32", "", 1)
    assert left == ["fp16"]
    assert towers["question_encoder"].encoder is encoders["fp16"]()


def test_towers_are_timed_by_the_same_questions(judged: Bundle) -> None:
    towers = {name: load_towers(judged, name, 1, ["question_encoder"])["question_encoder"] for name in ("fp32", "fp16")}
    times_ms = time_questions(towers)
    assert list(times_ms) == ["fp32", "fp16"]
    assert all(0 < ms < 60_000 for ms in times_ms.values())


def test_one_model_of_both_towers_is_loaded_once(minilm_bundle: Bundle) -> None:
    _, towers = load_fastest(minilm_bundle, None, "", 1)
    assert towers["question_encoder"] is towers["context_encoder"]
