"""`narrows bundle info`, `narrows bundle add-variants` and `narrows bundle gate`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.errors import SettingsError
from narrows_tools.cli import tables
from narrows_tools.cli.arguments import add_gate_arguments, add_int8_argument, gate_request, threads

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: "Commands") -> None:
    """Adds the commands and their arguments."""
    group = commands.add_parser("bundle", help="describe a bundle, add variants to it, or judge them")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")

    info = actions.add_parser(
        "info",
        help="describe a bundle",
        description="Shows a bundle's towers, their variants, and what is known of every pair of variants.",
    )
    info.add_argument("bundle", type=Path, metavar="BUNDLE")
    info.add_argument("--json", action="store_true", help="print the manifest and the status of every pair as JSON")
    info.set_defaults(run=run_info)

    extend = actions.add_parser(
        "add-variants",
        help="add fp16 or int8 to a bundle",
        description="Makes further variants of a bundle's towers from their fp32 graphs; the checkpoints are not "
        "needed again. Needs narrows[export].",
        epilog="examples:\n  narrows bundle add-variants nq.bundle --variants fp16,int8\n"
        "  narrows bundle add-variants nq.bundle --int8 auto --calibration train.jsonl \\\n"
        "                 --gate-questions nq-dev.qa.csv --gate-passages passages.tsv.gz\n\n"
        "With questions and passages the bundle is judged by them afterwards (see narrows bundle gate --help).",
    )
    extend.add_argument("bundle", type=Path, metavar="BUNDLE")
    extend.add_argument("--variants", default="", metavar="LIST", help="what to make, such as fp16,int8")
    add_int8_argument(extend)
    add_gate_arguments(extend, required=False)
    extend.add_argument("--threads", type=threads, default=0, metavar="N", help="threads (default: all cores)")
    extend.add_argument("--json", action="store_true", help="print the variants as JSON instead of a table")
    extend.set_defaults(run=run_add_variants, extra="export")

    gate = actions.add_parser(
        "gate",
        help="judge every pair of a bundle's variants by what it finds",
        description="Searches questions over passages with every pair of question and passage variant, compares each "
        "with fp32, and records a report of each in the bundle. A pair that passed may be served by default. At least "
        "1,000 questions and 10,000 passages are needed for that. Needs narrows[export].",
        epilog="""example:
  narrows bundle gate nq.bundle --gate-questions nq-test.csv --gate-passages passages.tsv.gz

A pair passes if, over all passages, the lower end of the 95 % interval of its top-10 overlap with fp32 is at least
0.93, and its top-1 and top-20 accuracies are at most 1.0 and 0.5 point below fp32's, by answers and by positives.""",
    )
    gate.add_argument("bundle", type=Path, metavar="BUNDLE")
    add_gate_arguments(gate, required=True)
    gate.add_argument("--threads", type=threads, default=0, metavar="N", help="threads (default: all cores)")
    gate.add_argument("--json", action="store_true", help="print the reports as JSON instead of tables")
    gate.set_defaults(run=run_judge, extra="export")


def run_info(options: argparse.Namespace) -> int:
    """Prints the manifest; the files are not read."""
    from narrows.bundle import read_manifest

    manifest = read_manifest(options.bundle)
    if options.json:
        print(json.dumps({**asdict(manifest), **tables.quality_json(manifest)}))
        return 0
    print(f"{manifest.name}: {manifest.dim} dimensions, {manifest.similarity}, made by {manifest.created_by}\n")
    rows = [("tower", "source", "pooling", "segments", "text preset", "max tokens", "licence", "language", "tower_id")]
    for role, tower in manifest.by_role.items():
        source = tower.source
        rows.append(
            (
                role.replace("_", " "),
                source.name + (f"@{source.revision[:12]}" if source.revision else ""),
                "-" if role == "reader" else tower.pooling + (", normalized" if tower.normalize else ""),
                tower.segment_ids,
                tower.tokenizer.text_preset,
                str(tower.max_tokens),
                source.license or "-",
                source.language or "-",
                tower.tower_id,
            )
        )
    tables.print_rows(rows)
    print()
    tables.print_rows(tables.variant_rows(tables.named_variants(manifest)))
    tables.print_curve(manifest)
    print()
    tables.print_quality(manifest)
    return 0


def run_add_variants(options: argparse.Namespace) -> int:
    """Adds variants, with progress on stderr."""
    from narrows.process import available_cores
    from narrows_export import report
    from narrows_tools.cli.export import gate_data_of, int8_request, other_variants

    listed = other_variants(options.variants)
    names = (*listed, "int8") if options.int8 and "int8" not in listed else listed
    if not names:
        if not options.variants:
            raise SettingsError("nothing to make: give --variants, such as fp16,int8, or --int8")
        raise SettingsError(f"--variants {options.variants} names nothing to make: every bundle has fp32")
    int8 = (options.int8 or "default") if "int8" in names else None
    data = gate_data_of(options)
    threads = options.threads or available_cores()
    manifest = report.add_variants(options.bundle, names, int8_request(int8, options.calibration, data), data, threads)
    towers = tables.named_variants(manifest)
    if options.json:
        print(json.dumps({tower: {name: asdict(each) for name, each in made.items()} for tower, made in towers}))
        return 0
    tables.print_rows(tables.variant_rows(towers))
    tables.print_curve(manifest)
    if data:
        print()
        tables.print_quality(manifest)
    else:
        print("\nno pair with a new variant is served by default before `narrows bundle gate` has passed it")
    return 0


def run_judge(options: argparse.Namespace) -> int:
    """Runs the gate, with progress on stderr."""
    from narrows.process import available_cores
    from narrows_export import gate_data, report

    data = gate_data.read(gate_request(options))
    manifest = report.run_gate(options.bundle, data, options.threads or available_cores())
    if options.json:
        print(json.dumps(tables.quality_json(manifest)))
    else:
        tables.print_quality(manifest)
    return 0
