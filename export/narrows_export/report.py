"""What `narrows export` shows: progress while it works, a table when it is done."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from narrows.bundle import Bundle, BundleManifest, read_manifest
from narrows.process import available_cores
from narrows_export import calibrate, gate, gate_data, int8_search
from narrows_export.calibrate import Calibration
from narrows_export.export import STEPS_PER_TOWER, ExportReport, ExportRequest, export_bundle, unpaired_warning
from narrows_export.gate_data import GateData
from narrows_export.recipes import Calibrated, extend_bundle
from narrows_tools.cli.bars import bars
from narrows_tools.cli.tables import named_variants, print_curve, print_quality, print_rows, quality_json, variant_rows


@dataclass(frozen=True, slots=True)
class Int8Request:
    """How int8 is to be made: on which texts, and by a search (`auto`) or by the defaults."""

    texts: Calibration
    data: GateData | None
    auto: bool

    @classmethod
    def read(cls, files: Sequence[Path], data: GateData | None, *, auto: bool) -> "Int8Request":
        """Reads the calibration texts.

        Raises:
            GateDataError, QuestionFileError, PassageFileError: a file is empty, breaks its format, or has a text in
                common with the evaluation data; or there are too few texts.
        """
        if data:
            gate_data.check_calibration(calibrate.files_read(files), data.questions, data.passages)
        texts = calibrate.read(files)
        if auto:
            int8_search.check_size(texts, data)
        return cls(texts, data, auto)


def add_variants(
    path: Path, names: Sequence[str], int8: Int8Request | None, data: GateData | None, threads: int
) -> BundleManifest:
    """Adds variants to a bundle, and judges it if there is data, with progress bars on stderr.

    Raises:
        BundleError, ExportError: as `recipes.extend_bundle`.
    """
    towers = {tower.directory for tower in read_manifest(path).towers.values()}
    with bars() as start:
        advance = start("making variants", len(names) * len(towers))

        def rounding(bundle: Bundle) -> Calibrated:
            nonlocal advance
            if int8 is None or not int8.auto:
                return Calibrated(int8.texts if int8 else None)
            found = int8_search.search(bundle, int8.texts, int8.data, threads, start)
            advance = start("making variants", len(names) * len(towers))
            return Calibrated(int8.texts, found.roundings, found.curve)

        manifest = extend_bundle(path, names, threads, lambda what: advance(1), rounding)
    return run_gate(path, data, threads) if data else manifest


def run(request: ExportRequest, data: GateData | None, int8: Int8Request | None, as_json: bool) -> int:
    """Exports, adds int8 and judges with progress bars on stderr, then prints tables, or one JSON object, on stdout."""
    total = 2 + 2 * (STEPS_PER_TOWER + len(request.variants)) + 1 + bool(request.reader) * (1 + STEPS_PER_TOWER)
    with tqdm(total=total, unit="step", file=sys.stderr, bar_format="{n_fmt}/{total_fmt} {elapsed} {desc}") as bar:

        def step(what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update()

        report = export_bundle(request, step)
        bar.total = bar.n
        bar.set_description_str("done")
    judged = None
    with _told_what_is_left(request.out, int8):
        if int8:
            judged = add_variants(request.out, ["int8"], int8, data, available_cores())
            report = with_variants(report, judged)
        elif data:
            judged = run_gate(request.out, data, available_cores())
    if as_json:
        quality = quality_json(judged) if judged and data else {}
        print(json.dumps({**asdict(report), **quality}))
    else:
        print_table(report)
        if judged:
            print_curve(judged)
        if judged and data:
            print()
            print_quality(judged)
    for note in report.notes:
        print(f"\nnote: {note}.", file=sys.stderr)
    if not report.pair_check.passed:
        print(f"\nWARNING: {unpaired_warning(report.pair_check)}.", file=sys.stderr)
    return 0


@contextmanager
def _told_what_is_left(out: Path, int8: Int8Request | None) -> Iterator[None]:
    """Says, where what follows the export is stopped or fails, that the bundle is there and how to go on."""
    try:
        yield
    except BaseException:
        made = read_manifest(out).towers["question_encoder"].variants
        if int8 is None or "int8" in made:
            rest = f"gate {out}"
        else:
            rest = f"add-variants {out} --int8 {'auto' if int8.auto else 'default'}"
        print(f"\n{out} is whole, with {', '.join(made)}; for the rest: narrows bundle {rest} ...", file=sys.stderr)
        raise


def with_variants(report: ExportReport, manifest: BundleManifest) -> ExportReport:
    """The report with the variants that the manifest has by now."""
    variants = dict(named_variants(manifest))
    towers = (replace(tower, variants=variants[tower.tower]) for tower in report.towers)
    return replace(report, towers=tuple(towers))


def run_gate(bundle: Path, data: GateData, threads: int) -> BundleManifest:
    """Runs the gate with progress bars on stderr."""
    with bars() as start:
        return gate.run_gate(bundle, data, threads, start)


def print_table(report: ExportReport) -> None:
    """Prints size, parity and speed of each tower."""
    rows = [("tower", "text preset", "size", "max abs error", "one question", "batches of 16", "tower_id")]
    for tower in report.towers:
        parity = tower.parity
        rows.append(
            (
                tower.tower,
                tower.text_preset,
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
