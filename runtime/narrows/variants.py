"""Which variant of each tower is served: a pure choice, made from the manifest, that is never silent about doubts."""

from dataclasses import dataclass

from narrows.bundle import REFERENCE_VARIANT, BundleManifest, Role, Variant
from narrows.quality import QualityReport, Status, judge, questions_counted, shortfalls

SOUND: tuple[Status, ...] = ("reference", "passed")


@dataclass(frozen=True, slots=True)
class Choice:
    """The variants to load. `warning` says what speaks against the pair; empty if nothing does."""

    question: str
    passage: str
    warning: str


def pair_report(manifest: BundleManifest, question: str, passage: str) -> QualityReport | None:
    """The quality report of a pair, if there is one for the very files that the bundle holds."""
    questions, passages = _variants(manifest, "question_encoder"), _variants(manifest, "context_encoder")
    if question not in questions or passage not in passages:
        return None
    wanted = (question, passage, questions[question].sha256, passages[passage].sha256)
    return next((report for report in manifest.quality if _subject(report) == wanted), None)


def pair_status(manifest: BundleManifest, question: str, passage: str) -> Status:
    """What is known of a pair; one that the bundle lacks is unverified."""
    if question == passage == REFERENCE_VARIANT:
        return "reference"
    if _experimental(manifest, question, passage):
        return "experimental"
    report = pair_report(manifest, question, passage)
    return judge(report) if report else "unverified"


def pair_warning(manifest: BundleManifest, question: str, passage: str) -> str:
    """A sentence that names the pair and what speaks against it; empty for a sound pair."""
    status = pair_status(manifest, question, passage)
    if status in SOUND:
        return ""
    report = pair_report(manifest, question, passage)
    if status == "experimental":
        names = " and ".join(_experimental(manifest, question, passage))
        reason = f"an embedding by {names} depends on what else is in its batch"
    elif report is None:
        reason = "the bundle has no quality report of it (`narrows bundle gate` makes one)"
    elif status == "unverified":
        reason = f"its report rests on only {questions_counted(report)} questions and {report.passages.texts} passages"
    else:
        reason = "; ".join(shortfalls(report))
    return f"questions by {question} with passages by {passage}: {status}: {reason}"


def _variants(manifest: BundleManifest, role: Role) -> dict[str, Variant]:
    return manifest.towers[role].variants


def _subject(report: QualityReport) -> tuple[str, str, str, str]:
    return (
        report.question_variant,
        report.passage_variant,
        report.question_model_sha256,
        report.passage_model_sha256,
    )


def _experimental(manifest: BundleManifest, question: str, passage: str) -> list[str]:
    """The names, among the two, of experimental variants."""
    used = (
        (question, _variants(manifest, "question_encoder").get(question)),
        (passage, _variants(manifest, "context_encoder").get(passage)),
    )
    return list(dict.fromkeys(name for name, variant in used if variant and variant.experimental))


def choose(manifest: BundleManifest, index_variant: str | None, wanted: str) -> Choice:
    """Chooses the variant of each tower.

    Args:
        manifest: of the bundle.
        index_variant: the variant that filled the index; None without an index.
        wanted: a variant asked for by name; empty means the default.

    The context encoder's is the index's own (without one, the wanted or fp32). The question encoder's is the wanted
    one; by default that of the best sound pair with it: the reference, else the passed pair with the highest lower
    bound of its top-10 overlap, else fp32, with a warning.
    """
    passage = index_variant or wanted or REFERENCE_VARIANT
    question = wanted or _default_question(manifest, passage)
    return Choice(question, passage, pair_warning(manifest, question, passage))


def _default_question(manifest: BundleManifest, passage: str) -> str:
    """The question variant of the best sound pair with these passages."""
    sound = {
        name: report.scales[-1].top10_overlap.low
        for name in _variants(manifest, "question_encoder")
        if (report := pair_report(manifest, name, passage)) and pair_status(manifest, name, passage) == "passed"
    }
    if passage == REFERENCE_VARIANT or not sound:
        return REFERENCE_VARIANT
    return max(sound, key=lambda name: sound[name])
