"""Which variant of each tower is served: a pure choice, from the manifest and times (narrows.fastest measures them).

It is never silent about doubts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from narrows.bundle import REFERENCE_VARIANT, BundleManifest, Role, Variant
from narrows.quality import QualityReport, Status, judge, questions_counted, shortfalls

SOUND: tuple[Status, ...] = ("reference", "passed")
FASTER = 0.95  # of the most faithful variant's time: what is no faster than this may be so by chance


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


def passage_variant(index_variant: str | None, wanted: str) -> str:
    """The context encoder's variant: the one that filled the index; without an index, the wanted one or fp32."""
    return index_variant or wanted or REFERENCE_VARIANT


def candidates(manifest: BundleManifest, passage: str, wanted: str) -> tuple[str, ...]:
    """The question variants to choose from, the most faithful first.

    A wanted one is the only one. By default those that make a sound pair with these passages: the reference, then by
    the lower bound of the top-10 overlap; where there is none, fp32.
    """
    if wanted:
        return (wanted,)
    overlap = {}
    for name in _variants(manifest, "question_encoder"):
        status, report = pair_status(manifest, name, passage), pair_report(manifest, name, passage)
        if status == "reference":
            overlap[name] = 2.0  # more than any share
        elif status == "passed" and report:
            overlap[name] = report.scales[-1].top10_overlap.low
    return tuple(sorted(overlap, key=lambda name: -overlap[name])) or (REFERENCE_VARIANT,)


def suited(runs: Sequence[str], manifest: BundleManifest, index_variant: str | None, wanted: str) -> Choice:
    """Chooses without timing, for a device that runs some variants alone: the candidate that comes first in `runs`."""
    passage = passage_variant(index_variant, wanted)
    found = candidates(manifest, passage, wanted)
    question = wanted or next((name for name in runs if name in found), REFERENCE_VARIANT)
    return Choice(question, passage, pair_warning(manifest, question, passage))


def fastest(times_ms: Mapping[str, float]) -> str:
    """Chooses among candidates by the time that each took for the same questions; the most faithful comes first.

    It gives way only to one that is faster by more than what may be noise.
    """
    first, *others = times_ms
    best = min(others, key=lambda name: times_ms[name], default=first)
    return best if times_ms[best] < FASTER * times_ms[first] else first


def choose(manifest: BundleManifest, index_variant: str | None, wanted: str) -> Choice:
    """Chooses the variant of each tower without timing any: the most faithful candidate answers questions.

    Args:
        manifest: of the bundle.
        index_variant: the variant that filled the index; None without an index.
        wanted: a variant asked for by name; empty means the default.
    """
    passage = passage_variant(index_variant, wanted)
    question = candidates(manifest, passage, wanted)[0]
    return Choice(question, passage, pair_warning(manifest, question, passage))
