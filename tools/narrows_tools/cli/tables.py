"""What `narrows bundle` and `narrows export` print of variants and their quality."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from narrows.bundle import BundleManifest, Variant
    from narrows.quality import Accuracy, QualityReport, Scale

Row = tuple[str, ...]


def print_rows(rows: Sequence[Row]) -> None:
    """Prints a table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def variant_rows(towers: "Iterable[tuple[str, Mapping[str, Variant]]]") -> list[Row]:
    """The variants of each named tower: size, and distance from fp32 (for fp32: from PyTorch)."""
    rows: list[Row] = [("tower", "variant", "size", "max abs error", "min cosine", "alone - in batches")]
    for tower, variants in towers:
        for name, variant in variants.items():
            rows.append(
                (
                    tower,
                    f"{name} (experimental)" if variant.experimental else name,
                    f"{variant.size_bytes / 2**20:.0f} MiB",
                    f"{variant.parity_max_abs_error:.1e}",
                    f"{variant.parity_min_cosine:.6f}",
                    f"{variant.batch_max_abs_difference:.1e}",
                )
            )
    return rows


def curve_rows(manifest: "BundleManifest") -> list[Row]:
    """What a search for int8 compared, and which it took; empty where none was made."""
    int8 = next((tower.variants["int8"] for tower in manifest.towers.values() if "int8" in tower.variants), None)
    if int8 is None or int8.quantization is None or not int8.quantization.curve:
        return []
    curve = int8.quantization.curve
    data = "" if curve[0].data == "evaluation" else f", by {curve[0].data} texts"
    rows: list[Row] = [("left in float", "alpha", "percentile", "speed", "top-10 overlap expected at", "")]
    for point in curve:
        overlap = "-" if point.expected_overlap is None else f"{point.expected_overlap:.3f}"
        rows.append(
            (
                str(point.left_in_float),
                f"{point.alpha:g}",
                f"{point.percentile:g}",
                f"{point.speedup:.2f}x",
                f"{overlap} ({point.passages} passages{data})",
                "enough" if point.passed else "too little",
            )
        )
    return rows


def print_curve(manifest: "BundleManifest") -> None:
    """Prints what a search for int8 compared, if there was one."""
    rows = curve_rows(manifest)
    if rows:
        print(
            "\nint8: speed over fp32 on the machine that made it, and answers kept; the fastest with enough was taken"
        )
        print_rows(rows)


def named_variants(manifest: "BundleManifest") -> "list[tuple[str, dict[str, Variant]]]":
    """The towers' names, and the variants of each; a tower that is both is there once."""
    towers = {tower.directory: tower.variants for tower in manifest.by_role.values()}
    return [(directory.replace("_", " "), variants) for directory, variants in towers.items()]


def status_rows(manifest: "BundleManifest") -> list[Row]:
    """Every pair of variants that can be served, its status, and what it rests on."""
    from narrows.variants import pair_report, pair_status

    rows: list[Row] = [("questions by", "passages by", "status", "judged over")]
    for question, passage in pairs(manifest):
        report = pair_report(manifest, question, passage)
        rows.append((question, passage, pair_status(manifest, question, passage), _data(report) if report else "-"))
    return rows


def quality_rows(manifest: "BundleManifest") -> list[Row]:
    """The numbers of every quality report: a row a pair and a number of passages; accuracies in points."""
    from narrows.variants import pair_report

    rows: list[Row] = []
    for question, passage in pairs(manifest):
        report = pair_report(manifest, question, passage)
        rows += [
            (question, passage, str(scale.passages), _overlap(scale), *_accuracies(scale))
            for scale in (report.scales if report else ())
        ]
    if not rows:
        return []
    ks = [(what, k) for what in ("answers", "positives") for k in (1, 5, 20, 100)]
    header = ("questions by", "passages by", "passages", "top-10 overlap", *(f"{what} top-{k}" for what, k in ks))
    empty = {column for column in range(len(header)) if all(row[column] == "-" for row in rows)}
    return [tuple(cell for column, cell in enumerate(row) if column not in empty) for row in (header, *rows)]


def pairs(manifest: "BundleManifest") -> list[tuple[str, str]]:
    """Question variant and passage variant of every pair, fp32 x fp32 first."""
    towers = manifest.towers
    return [
        (question, passage)
        for passage in towers["context_encoder"].variants
        for question in towers["question_encoder"].variants
    ]


def quality_json(manifest: "BundleManifest") -> dict[str, object]:
    """The status of every pair and the reports, for JSON."""
    from narrows.variants import pair_status

    statuses = [
        {"question_variant": question, "passage_variant": passage, "status": pair_status(manifest, question, passage)}
        for question, passage in pairs(manifest)
    ]
    return {"pairs": statuses, "quality": [asdict(report) for report in manifest.quality]}


def print_quality(manifest: "BundleManifest") -> None:
    """Prints the status of every pair, then the numbers of the reports, then what speaks against pairs."""
    from narrows.variants import pair_warning

    print_rows(status_rows(manifest))
    rows = quality_rows(manifest)
    if rows:
        print("\naccuracies in points, in brackets the difference from fp32 x fp32; intervals are of 95 %")
        print_rows(rows)
    warnings = [pair_warning(manifest, question, passage) for question, passage in pairs(manifest)]
    if any(warnings):
        print("\nused by name only, and with a warning:")
        print("\n".join(f"  {warning}" for warning in warnings if warning))


def _data(report: "QualityReport") -> str:
    language = f" ({report.language})" if report.language else ""
    return f"{report.questions.texts} questions, {report.passages.texts} passages{language}"


def _overlap(scale: "Scale") -> str:
    overlap = scale.top10_overlap
    return f"{overlap.mean:.3f} [{overlap.low:.3f}, {overlap.high:.3f}]"


def _accuracies(scale: "Scale") -> Row:
    return (*_shares(scale.by_answers), *_shares(scale.by_positives))


def _shares(accuracies: "Sequence[Accuracy]") -> Row:
    """Points, and in brackets the difference from fp32 x fp32."""
    shares = tuple(f"{100 * each.share:.2f} ({100 * each.change.mean:+.2f})" for each in accuracies)
    return shares or ("-",) * 4
