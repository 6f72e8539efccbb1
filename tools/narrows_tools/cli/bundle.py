"""`narrows bundle info`, `narrows bundle add-variants` and `narrows bundle gate`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.errors import SettingsError
from narrows_tools.cli import tables
from narrows_tools.cli.arguments import add_gate_arguments, gate_request, threads

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
        epilog="example:\n  narrows bundle add-variants nq.bundle --variants fp16,int8",
    )
    extend.add_argument("bundle", type=Path, metavar="BUNDLE")
    extend.add_argument("--variants", required=True, metavar="LIST", help="what to make, such as fp16,int8")
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
    rows = [("tower", "source", "pooling", "max tokens", "licence", "language", "tower_id")]
    for role, tower in manifest.towers.items():
        source = tower.source
        rows.append(
            (
                role.replace("_", " "),
                source.name + (f"@{source.revision[:12]}" if source.revision else ""),
                tower.pooling + (", normalized" if tower.normalize else ""),
                str(tower.max_tokens),
                source.license or "-",
                source.language or "-",
                tower.tower_id,
            )
        )
    tables.print_rows(rows)
    print()
    tables.print_rows(tables.variant_rows(tables.named_variants(manifest)))
    print()
    tables.print_quality(manifest)
    return 0


def run_add_variants(options: argparse.Namespace) -> int:
    """Adds variants, with progress on stderr."""
    from tqdm import tqdm

    from narrows.towers import available_cores
    from narrows_export.recipes import extend_bundle
    from narrows_tools.cli.export import other_variants

    names = other_variants(options.variants)
    if not names:
        raise SettingsError(f"--variants {options.variants} names nothing to make: every bundle has fp32")
    with tqdm(unit="step", file=sys.stderr, bar_format="{n_fmt} {elapsed} {desc}") as bar:

        def step(what: str) -> None:
            bar.set_description_str(what, refresh=False)
            bar.update()

        manifest = extend_bundle(options.bundle, names, options.threads or available_cores(), step)
    towers = tables.named_variants(manifest)
    if options.json:
        print(json.dumps({tower: {name: asdict(each) for name, each in made.items()} for tower, made in towers}))
    else:
        tables.print_rows(tables.variant_rows(towers))
        print("\nno pair with a new variant is served by default before `narrows bundle gate` has passed it")
    return 0


def run_judge(options: argparse.Namespace) -> int:
    """Runs the gate, with progress on stderr."""
    from narrows.towers import available_cores
    from narrows_export import gate_data, report

    data = gate_data.read(gate_request(options))
    manifest = report.run_gate(options.bundle, data, options.threads or available_cores())
    if options.json:
        print(json.dumps(tables.quality_json(manifest)))
    else:
        tables.print_quality(manifest)
    return 0
