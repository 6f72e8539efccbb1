"""What `narrows export` shows: progress while it works, a table when it is done."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from narrows.bundle import Variant
from narrows_export.export import STEPS_PER_TOWER, ExportReport, ExportRequest, export_bundle, unpaired_warning


def run(request: ExportRequest, as_json: bool) -> int:
    """Exports with a progress bar on stderr, then prints the table, or the report as JSON, on stdout."""
    total = 2 + 2 * (STEPS_PER_TOWER + len(request.variants)) + 1
    with tqdm(total=total, unit="step", file=sys.stderr, bar_format="{n_fmt}/{total_fmt} {elapsed} {desc}") as bar:

        def step(what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update()

        report = export_bundle(request, step)
        bar.total = bar.n
        bar.set_description_str("done")
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        print_table(report)
    if not report.pair_check.passed:
        print(f"\nWARNING: {unpaired_warning(report.pair_check)}.", file=sys.stderr)
    return 0


def print_table(report: ExportReport) -> None:
    """Prints size, parity and speed of each tower."""
    rows = [("tower", "size", "max abs error", "one question", "batches of 16", "tower_id")]
    for tower in report.towers:
        parity = tower.parity
        rows.append(
            (
                tower.tower,
                f"{tower.size_bytes / 2**20:.0f} MiB",
                f"{parity.max_abs_error:.1e} ({parity.texts} texts)",
                f"{parity.onnx_question_ms:.1f} ms (PyTorch {parity.torch_question_ms:.1f})",
                f"{parity.onnx_texts_per_s:.0f} texts/s (PyTorch {parity.torch_texts_per_s:.0f})",
                tower.tower_id,
            )
        )
    print_rows(rows)
    if any(len(tower.variants) > 1 for tower in report.towers):
        print()
        print_rows(variant_rows({tower.tower: tower.variants for tower in report.towers}))
    pair = report.pair_check
    print(f"\npair check: {pair.correct} of {pair.pairs} right passages first ({pair.language}; chance 1)")
    print(f"wrote {Path(report.bundle)} ({', '.join(report.towers[0].variants)})")


def variant_rows(towers: Mapping[str, Mapping[str, Variant]]) -> list[tuple[str, ...]]:
    """A table of the variants of each tower: size, and distance from fp32 (for fp32: from PyTorch)."""
    rows: list[tuple[str, ...]] = [("tower", "variant", "size", "max abs error", "min cosine", "alone - in batches")]
    for tower, variants in towers.items():
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


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Prints a table with aligned columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
