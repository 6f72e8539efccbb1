"""What `narrows export` shows: progress while it works, a table when it is done."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from narrows.bundle import BundleManifest
from narrows.towers import available_cores
from narrows_export import gate
from narrows_export.export import STEPS_PER_TOWER, ExportReport, ExportRequest, export_bundle, unpaired_warning
from narrows_export.gate_data import GateData
from narrows_tools.cli.bars import bars
from narrows_tools.cli.tables import print_quality, print_rows, quality_json, variant_rows


def run(request: ExportRequest, data: GateData | None, as_json: bool) -> int:
    """Exports and judges with progress bars on stderr, then prints tables, or one JSON object, on stdout."""
    total = 2 + 2 * (STEPS_PER_TOWER + len(request.variants)) + 1
    with tqdm(total=total, unit="step", file=sys.stderr, bar_format="{n_fmt}/{total_fmt} {elapsed} {desc}") as bar:

        def step(what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update()

        report = export_bundle(request, step)
        bar.total = bar.n
        bar.set_description_str("done")
    judged = run_gate(request.out, data, available_cores()) if data else None
    if as_json:
        quality = quality_json(judged) if judged else {}
        print(json.dumps({**asdict(report), **quality}))
    else:
        print_table(report)
        if judged:
            print()
            print_quality(judged)
    if not report.pair_check.passed:
        print(f"\nWARNING: {unpaired_warning(report.pair_check)}.", file=sys.stderr)
    return 0


def run_gate(bundle: Path, data: GateData, threads: int) -> BundleManifest:
    """Runs the gate with progress bars on stderr."""
    with bars() as start:
        return gate.run_gate(bundle, data, threads, start)


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
        print_rows(variant_rows((tower.tower, tower.variants) for tower in report.towers))
    pair = report.pair_check
    print(f"\npair check: {pair.correct} of {pair.pairs} right passages first ({pair.language}; chance 1)")
    print(f"wrote {Path(report.bundle)} ({', '.join(report.towers[0].variants)})")
