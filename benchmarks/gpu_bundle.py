"""A BERT-base bundle for a machine that cannot export, and that little can be carried to: it travels as its seed.

    python -m benchmarks.gpu_bundle skeleton base.skeleton      # here: needs the exporter
    python -m benchmarks.gpu_bundle fill base.skeleton base     # there: needs numpy; makes base/bundle, base/checkpoint

The checkpoints' weights are made from their names (benchmarks.gpu_parts.weights). They are exported as any others;
of each model the skeleton keeps the bytes that are no such weight, and which weight was cut out where: found by its
values, whatever the exporter calls it. Filled, the models are the exported ones to the last byte, which their hashes in
the bundle's manifest confirm, and so are their golden embeddings.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import weights
from benchmarks.gpu_parts.weights import Recipe, Size, Values

VOCABULARY = Path(__file__).parents[1] / "tests" / "data" / "golden_tokenizer" / "en-uncased" / "vocab.txt"
BASE = Size()
CUTS = "cuts.json"
MIN_BYTES = 256  # of a weight that is cut out: smaller ones are constants of the graph
KEY_BYTES = 64  # of a weight, that its place in the file is looked for by
ROLES = ("question_encoder", "context_encoder")


def main() -> int:
    """Runs one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    skeleton = commands.add_parser("skeleton", help="export, and cut the weights out")
    skeleton.add_argument("out", type=Path)
    skeleton.add_argument("--layers", type=int, default=BASE.layers)
    skeleton.add_argument("--hidden", type=int, default=BASE.hidden)
    fill_in = commands.add_parser("fill", help="put the weights in")
    fill_in.add_argument("skeleton", type=Path)
    fill_in.add_argument("out", type=Path)
    options = parser.parse_args()
    if options.command == "fill":
        fill(options.skeleton, options.out)
    else:
        make_skeleton(options.out, Size(hidden=options.hidden, layers=options.layers, heads=options.hidden // 64))
    return 0


def make_skeleton(out: Path, size: Size) -> None:
    """Exports towers of this size, and cuts their weights out."""
    from narrows_export.export import ExportRequest, export_bundle

    made = all_parameters(size)
    with tempfile.TemporaryDirectory(dir=out.absolute().parent) as scratch:
        directory, bundle = Path(scratch), Path(scratch) / "bundle"
        settings = directory / "tokenizer_config.json"
        settings.write_text(json.dumps({"do_lower_case": True, "model_max_length": 512}), "utf-8")
        for role in ROLES:
            weights.write_checkpoint(directory / role, role, size, made, [VOCABULARY, settings])
        towers = [str(directory / role) for role in ROLES]
        request = ExportRequest(towers[0], towers[1], bundle, "made", allow_unpaired=True, variants=("fp16",))
        export_bundle(request, lambda what: print(what, file=sys.stderr, flush=True))
        table = {_digest(recipe.make(made)): recipe for recipe in weights.recipes(size)}
        cuts = {}
        for model in sorted(bundle.rglob("*.onnx")):
            name = str(model.relative_to(bundle))
            cuts[name] = [(offset, asdict(recipe)) for offset, recipe in _cut(model, table)]
        (bundle / CUTS).write_text(json.dumps({"size": asdict(size), "cuts": cuts}), "utf-8")
        shutil.copytree(bundle, out)


def fill(skeleton: Path, out: Path) -> None:
    """Writes OUT/bundle and OUT/checkpoint."""
    read = json.loads((skeleton / CUTS).read_text("utf-8"))
    size = Size(**read["size"])
    made = all_parameters(size)
    shutil.copytree(skeleton, out / "bundle", ignore=shutil.ignore_patterns(CUTS))
    expected = _model_hashes(json.loads((skeleton / "manifest.json").read_text("utf-8")))
    for name, cuts in read["cuts"].items():
        model = out / "bundle" / name
        rest, done, digest = model.read_bytes(), 0, hashlib.sha256()
        with model.open("wb") as file:
            for offset, recipe in [*cuts, (len(rest), None)]:
                for part in (rest[done:offset], Recipe(**recipe).make(made) if recipe else b""):
                    digest.update(part)
                    file.write(part)
                done = offset
        if digest.hexdigest() != expected[name]:
            raise SystemExit(f"{model} is not what was exported: the skeleton is of another version of this program")
    for role in ROLES:
        weights.write_checkpoint(out / "checkpoint" / role, role, size, made, [])


def all_parameters(size: Size) -> dict[str, Values]:
    """Every parameter by name."""
    return {name: weights.parameter(size, name) for name in size.shapes()}


def _cut(model: Path, table: Mapping[bytes, Recipe]) -> list[tuple[int, Recipe]]:
    """Leaves in the file what is no weight; returns where in what is left each weight belongs, in order."""
    import onnx

    data, found = model.read_bytes(), []
    rest = bytearray()
    position = 0
    for tensor in onnx.load_from_string(data).graph.initializer:
        raw: bytes = tensor.raw_data
        if len(raw) < MIN_BYTES:
            continue
        recipe = table.get(_digest(raw))
        if recipe is None:
            raise SystemExit(f"{model.name}: no known weight has the values of {tensor.name}, {tuple(tensor.dims)}")
        start = data.index(raw[:KEY_BYTES], position)
        assert data[start : start + len(raw)] == raw
        rest += data[position:start]
        found.append((len(rest), recipe))
        position = start + len(raw)
    model.write_bytes(rest + data[position:])
    return found


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _model_hashes(manifest: dict[str, Any]) -> dict[str, str]:
    return {
        f"{tower['directory']}/{variant['file']}": variant["sha256"]
        for tower in manifest["towers"].values()
        for variant in tower["variants"].values()
    }


if __name__ == "__main__":
    sys.exit(main())
