"""Which variants are served: what a report allows by default, and what is said of the rest."""

from dataclasses import replace

import pytest

from narrows import manifests
from narrows.bundle import SCHEMA_VERSION, Bundle, BundleManifest
from narrows.errors import BundleError
from narrows.quality import Accuracy, DataFile, Estimate, QualityReport, Scale, judge, shortfalls
from narrows.variants import candidates, choose, fastest, pair_report, pair_status, pair_warning


def accuracies(*drops_points: float) -> tuple[Accuracy, ...]:
    changes = [Estimate(-drop / 100, -drop / 100 - 0.01, -drop / 100 + 0.01) for drop in drops_points]
    return tuple(Accuracy(k, 0.5, change) for k, change in zip((1, 5, 20, 100), changes, strict=True))


def scale(
    passages: int,
    overlap_low: float,
    answers: tuple[Accuracy, ...],
    positives: tuple[Accuracy, ...],
    questions: int = 1000,
    positives_questions: int = 1000,
) -> Scale:
    overlap = Estimate(min(overlap_low + 0.01, 1.0), overlap_low, min(overlap_low + 0.02, 1.0))
    return Scale(
        passages, overlap, answers, questions if answers else 0, positives, positives_questions if positives else 0
    )


NONE_LOST = accuracies(0, 0, 0, 0)


def report(
    manifest: BundleManifest | None = None,
    pair: tuple[str, str] = ("fp16", "fp16"),
    *,
    overlap_low: float = 0.99,
    answers: tuple[Accuracy, ...] = NONE_LOST,
    positives: tuple[Accuracy, ...] = NONE_LOST,
    questions: int = 1000,
    positives_questions: int = 999,
    passages: int = 10_000,
) -> QualityReport:
    question, passage = pair
    towers = manifest.towers if manifest else {}
    return QualityReport(
        question_variant=question,
        passage_variant=passage,
        question_model_sha256=towers["question_encoder"].variants[question].sha256 if towers else "",
        passage_model_sha256=towers["context_encoder"].variants[passage].sha256 if towers else "",
        created_by="narrows test",
        language="en",
        questions=DataFile("q.jsonl", "0" * 64, questions),
        passages=DataFile("p.tsv", "1" * 64, passages),
        where=(),
        calibration=(DataFile("c.tsv", "2" * 64, 5),),
        seed=0,
        scales=(
            scale(1000, 0.5, accuracies(9, 9, 9, 9), ()),
            scale(passages, overlap_low, answers, positives, questions, positives_questions),
        ),
    )


# The bars


def test_a_report_that_clears_every_bar_by_nothing():
    assert judge(report(overlap_low=0.93, answers=accuracies(1, 5, 0.5, 9), positives=accuracies(1, 5, 0.5, 9))) == (
        "passed"
    )
    assert judge(report(answers=accuracies(-3, -3, -3, -3), positives=())) == "passed"
    assert judge(report(answers=(), positives_questions=1000)) == "passed"


def test_a_kind_with_few_questions_decides_nothing():
    assert judge(report(positives=accuracies(9, 9, 9, 9), positives_questions=999)) == "passed"
    assert judge(report(answers=accuracies(9, 9, 9, 9), questions=999, positives_questions=1000)) == "passed"


@pytest.mark.parametrize(
    ("misses", "said"),
    [
        ({"overlap_low": 0.9299}, "top-10 overlap 0.930 (at least 0.93)"),
        ({"overlap_low": float("nan")}, "top-10 overlap nan (at least 0.93)"),
        ({"answers": accuracies(1.01, 0, 0, 0)}, "top-1 by answers 1.01 points lower (at most 1.0)"),
        ({"answers": accuracies(0, 0, 0.51, 0)}, "top-20 by answers 0.51 points lower (at most 0.5)"),
        (
            {"positives": accuracies(1.01, 0, 0, 0), "positives_questions": 1000},
            "top-1 by positives 1.01 points lower (at most 1.0)",
        ),
        (
            {"positives": accuracies(0, 0, 0.51, 0), "positives_questions": 1000},
            "top-20 by positives 0.51 points lower (at most 0.5)",
        ),
    ],
)
def test_each_bar_alone(misses: dict[str, object], said: str):
    missed = report(**misses)  # type: ignore[arg-type]
    assert judge(missed) == "failed"
    assert shortfalls(missed) == [said]


@pytest.mark.parametrize("size", [{"questions": 999}, {"passages": 9999}, {"answers": (), "positives": ()}])
@pytest.mark.parametrize("overlap_low", [0.5, 1.0])
def test_too_little_data_decides_nothing(size: dict[str, object], overlap_low: float):
    assert judge(report(overlap_low=overlap_low, **size))  # type: ignore[arg-type] == "unverified"


# Status and choice


@pytest.fixture
def manifest(variants_bundle: Bundle) -> BundleManifest:
    """With an int8 that is experimental, as dynamic int8 was in earlier bundles."""
    assert variants_bundle.manifest.quality == ()
    towers = {}
    for role, tower in variants_bundle.manifest.towers.items():
        int8 = replace(tower.variants["int8"], experimental=True)
        towers[role] = replace(tower, variants={**tower.variants, "int8": int8})
    return replace(variants_bundle.manifest, towers=towers)


def with_reports(manifest: BundleManifest, *reports: QualityReport) -> BundleManifest:
    return replace(manifest, quality=reports)


def test_status_of_pairs(manifest: BundleManifest):
    judged = with_reports(
        manifest,
        report(manifest, ("fp16", "fp16")),
        report(manifest, ("fp32", "fp16"), overlap_low=0.5),
        report(manifest, ("int8", "fp32")),
    )
    assert pair_status(judged, "fp32", "fp32") == "reference"
    assert pair_status(judged, "fp16", "fp16") == "passed"
    assert pair_status(judged, "fp32", "fp16") == "failed"
    assert pair_status(judged, "fp16", "fp32") == "unverified"
    assert pair_status(judged, "int8", "fp32") == "experimental"  # whatever it scores
    assert pair_status(judged, "fp32", "int8") == "experimental"
    assert pair_status(judged, "int4", "fp32") == "unverified"


def test_one_experimental_side_is_enough_under_one_name(manifest: BundleManifest):
    """A name may be experimental in one tower and not in the other."""
    context = manifest.towers["context_encoder"]
    sound = replace(context.variants["int8"], experimental=False)
    towers = {**manifest.towers, "context_encoder": replace(context, variants={**context.variants, "int8": sound})}
    mixed = replace(manifest, towers=towers)
    judged = with_reports(mixed, report(mixed, ("int8", "int8")), report(mixed, ("fp32", "int8")))
    assert pair_status(judged, "fp32", "int8") == "passed"
    assert pair_status(judged, "int8", "int8") == "experimental"
    assert chosen(judged, "int8") == ("fp32", "int8", False)


def test_a_report_of_other_files_counts_for_nothing(manifest: BundleManifest):
    other = replace(report(manifest, ("fp16", "fp32")), passage_model_sha256="3" * 64)
    assert pair_report(with_reports(manifest, other), "fp16", "fp32") is None
    assert pair_status(with_reports(manifest, other), "fp16", "fp32") == "unverified"


def chosen(manifest: BundleManifest, index_variant: str | None, wanted: str = "") -> tuple[str, str, bool]:
    choice = choose(manifest, index_variant, wanted)
    assert choice.warning == pair_warning(manifest, choice.question, choice.passage)
    return choice.question, choice.passage, bool(choice.warning)


def test_fp32_is_the_default(manifest: BundleManifest):
    everything_passed = with_reports(
        manifest, *(report(manifest, (a, b), overlap_low=1.0) for a in ("fp32", "fp16") for b in ("fp32", "fp16"))
    )
    for each in (manifest, everything_passed):
        assert chosen(each, None) == ("fp32", "fp32", False)
        assert chosen(each, "fp32") == ("fp32", "fp32", False)


def test_the_default_is_the_best_pair_that_passed_with_the_index(manifest: BundleManifest):
    both = [report(manifest, ("fp32", "fp16"), overlap_low=0.97), report(manifest, ("fp16", "fp16"), overlap_low=0.98)]
    assert chosen(with_reports(manifest, *both), "fp16") == ("fp16", "fp16", False)
    assert chosen(with_reports(manifest, *both[:1]), "fp16") == ("fp32", "fp16", False)
    failed = replace(both[0], scales=report(overlap_low=0.5).scales)
    assert chosen(with_reports(manifest, failed, both[1]), "fp16") == ("fp16", "fp16", False)


def test_without_a_pair_that_passed_fp32_answers_and_says_so(manifest: BundleManifest):
    assert chosen(manifest, "fp16") == ("fp32", "fp16", True)
    failed = with_reports(manifest, report(manifest, ("fp16", "fp16"), overlap_low=0.5))
    assert chosen(failed, "fp16") == ("fp32", "fp16", True)
    perfect = with_reports(manifest, report(manifest, ("int8", "int8"), overlap_low=1.0))
    assert chosen(perfect, "int8") == ("fp32", "int8", True)


def test_a_variant_by_name(manifest: BundleManifest):
    assert chosen(manifest, "fp32", "fp32") == ("fp32", "fp32", False)
    assert chosen(manifest, "fp32", "fp16") == ("fp16", "fp32", True)
    assert chosen(manifest, None, "fp16") == ("fp16", "fp16", True)
    assert chosen(manifest, "fp16", "int8") == ("int8", "fp16", True)
    passed = with_reports(manifest, report(manifest, ("fp16", "fp32")))
    assert chosen(passed, "fp32", "fp16") == ("fp16", "fp32", False)
    assert chosen(passed, "fp32") == ("fp32", "fp32", False)


def test_candidates_are_the_sound_ones_the_most_faithful_first(manifest: BundleManifest):
    assert candidates(manifest, "fp32", "") == ("fp32",)
    assert candidates(manifest, "fp16", "") == ("fp32",)  # none is sound
    assert candidates(manifest, "fp32", "int8") == ("int8",)  # asked for
    passed = with_reports(
        manifest,
        report(manifest, ("fp16", "fp32"), overlap_low=1.0),
        report(manifest, ("int8", "fp32"), overlap_low=1.0),  # experimental all the same
        report(manifest, ("fp32", "fp16"), overlap_low=0.97),
        report(manifest, ("fp16", "fp16"), overlap_low=0.98),
    )
    assert candidates(passed, "fp32", "") == ("fp32", "fp16")
    assert candidates(passed, "fp16", "") == ("fp16", "fp32")
    assert candidates(passed, "int8", "") == ("fp32",)


def test_the_most_faithful_gives_way_only_to_one_that_is_faster_by_more_than_noise():
    assert fastest({"fp32": 10.0}) == "fp32"
    assert fastest({"fp32": 10.0, "fp16": 9.6, "int8": 11.0}) == "fp32"
    assert fastest({"fp32": 10.0, "fp16": 9.4, "int8": 11.0}) == "fp16"
    assert fastest({"fp32": 10.0, "fp16": 9.4, "int8": 5.0}) == "int8"
    assert fastest({"fp16": 10.0, "fp32": 10.0}) == "fp16"


def test_warnings_name_the_pair_and_the_reason(manifest: BundleManifest):
    assert pair_warning(manifest, "fp16", "fp32") == (
        "questions by fp16 with passages by fp32: unverified: the bundle has no quality report of it "
        "(`narrows bundle gate` makes one)"
    )
    few = with_reports(manifest, report(manifest, ("fp16", "fp32"), questions=130, positives=(), passages=300))
    assert pair_warning(few, "fp16", "fp32").endswith(
        "unverified: its report rests on only 130 questions and 300 passages"
    )
    failed = with_reports(manifest, report(manifest, ("fp16", "fp32"), overlap_low=0.9))
    assert pair_warning(failed, "fp16", "fp32").endswith("failed: top-10 overlap 0.900 (at least 0.93)")
    assert pair_warning(failed, "int8", "fp32").endswith(
        "experimental: an embedding by int8 depends on what else is in its batch"
    )


# The manifest


def test_reports_survive_the_manifest(manifest: BundleManifest, variants_bundle: Bundle):
    judged = with_reports(
        manifest, report(manifest, ("fp16", "fp16")), report(manifest, ("int8", "fp32"), positives=())
    )
    file = variants_bundle.path / "manifest.json"
    assert manifests.decode(manifests.encode(judged), BundleManifest, SCHEMA_VERSION, file, BundleError) == judged
