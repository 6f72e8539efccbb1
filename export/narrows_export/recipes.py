"""The fp32 graph of a tower -> its other variants, each by a recipe whose operators are counted.

    fp16   the layers in half precision, what follows them (pooling, projection, embedding) in single: for GPUs, and so
           padded and fused as they want it (narrows_export.unpacking). On a CPU, ONNX Runtime computes in single
           precision and rounds to half in between, which checks the numerics.
    int8   products with weights in 8-bit integers, their scales fixed by calibration (narrows_export.quantize): small
           and quick on a CPU, and an embedding is the same alone and in any batch.

A variant is made from the bundle's own fp32 file, so that the checkpoint is not needed again.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnxruntime
from onnxruntime.transformers.onnx_model import OnnxModel

from narrows import durable
from narrows.bundle import (
    REFERENCE_VARIANT,
    Bundle,
    BundleManifest,
    CurvePoint,
    Quantization,
    Rounding,
    TowerManifest,
    Variant,
    open_bundle,
    update_manifest,
)
from narrows.encoder import Encoder
from narrows.errors import BundleError, ExportError
from narrows.tokenizer import TowerTokenizer, load_tokenizer
from narrows_export import calibrate, checks, nodes, normalization, segments, unpacking
from narrows_export.calibrate import Calibration
from narrows_export.graph import quiet
from narrows_export.quantize import Product, products, quantize

OpCounts = dict[str, int]


# What int8 is without a search: the best of those tried on MiniLM and a trained DPR pair (benchmarks/notes/int8.md).
DEFAULT_ALPHA = 0.8
DEFAULT_PERCENTILE = 100.0


@dataclass(frozen=True, slots=True)
class Calibrated:
    """How int8 is made: `roundings` by tower directory, where a search chose them; `curve` is what it compared."""

    texts: Calibration | None = None  # None: those that ship with the exporter
    roundings: Mapping[str, Rounding] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Making:
    """What a variant is made with, besides the fp32 graph."""

    directory: str  # of the tower in its bundle
    tokenizer: TowerTokenizer
    threads: int
    calibrated: Calibrated = Calibrated()


@dataclass(frozen=True, slots=True)
class Made:
    """The operators that a graph must hold, and how it was rounded."""

    op_counts: OpCounts
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a variant is made and what it must show.

    `count` finds the operators of the graph that is made. The golden tolerance is `tolerance_factor` times the
    variant's own max abs error against fp32; docs/decisions/015 and 026 say why. `padded`: what fp32 packs is padded.
    """

    name: str
    make: Callable[[Path, Path, Making], Made]
    count: Callable[[Path], OpCounts]
    min_cosine: float
    tolerance_factor: float
    padded: bool = False


def make_fp16(fp32: Path, out: Path, making: Making) -> Made:
    """Unpacks a graph and converts its layers to half precision; ids, mask, pooling and embedding keep their types."""
    with quiet():
        model = OnnxModel(onnx.load(fp32))
        unpacking.unpack(model.model)
        normalization.join(model.model)
        segments.fold(model.model)
        nodes.check_no_shapes(model.model.graph)
        layers = _layers(model.model.graph)
        others = [node.name for node in model.model.graph.node if node.name not in layers]
        model.convert_float_to_float16(keep_io_types=True, node_block_list=others)
        _drop_repeated_casts(model.model.graph)
        model.topological_sort()
    onnx.save(model.model, out)
    return Made(_fp16_counts(count_operators(fp32)))


def _layers(graph: onnx.GraphProto) -> set[str]:
    """The names of the last normalization of the last layer and of all that it depends on."""
    last = [node for node in graph.node if node.op_type == normalization.FUSED][-1]
    return {node.name for node in nodes.needed(graph, last.output)}


def _drop_repeated_casts(graph: onnx.GraphProto) -> None:
    """Keeps one of the equal casts that the converter puts before every reader of a value: ONNX wants names once."""
    kept = {tuple(node.output): node for node in graph.node}
    if len(kept) < len(graph.node):
        del graph.node[:]
        graph.node.extend(kept.values())


def make_int8(fp32: Path, out: Path, making: Making) -> Made:
    """Quantizes a fused graph with scales from calibration."""
    calibration = making.calibrated.texts or calibrate.read(())
    texts = calibration.token_ids(making.tokenizer, making.directory)
    seen = calibrate.observe(fp32, texts, making.tokenizer.pad_id, making.threads)
    model = onnx.load(fp32)
    default = Rounding(DEFAULT_ALPHA, DEFAULT_PERCENTILE, seen.in_one_row(model))
    rounding = making.calibrated.roundings.get(making.directory, default)
    made = quantize(model, seen.rows, rounding)
    onnx.save(made, out)
    kept = ("EmbedLayerNormalization", "MultiHeadAttention", normalization.SPLIT, normalization.FUSED, "BiasGelu")
    counts = Counter(node.op_type for node in made.graph.node)
    fp32_counts = count_operators(fp32)
    expected = {name: fp32_counts.get(name, 0) for name in kept} | _int8_counts(products(model), rounding)
    expected["QuantizeLinear"] = counts["QuantizeLinear"]  # one for each activation that is read
    return Made(expected, Quantization(rounding, calibration.files, making.calibrated.curve))


def _fp16_counts(fp32: OpCounts) -> OpCounts:
    """Every operator of the layers reads weights in half precision; a pruned layer's attention is not one operator."""
    layers = fp32["MultiHeadAttention"]
    pruned = fp32.get("Concat", 0)  # the last layer of a CLS-pooled tower, which is given its query twice
    return {
        "EmbedLayerNormalization (fp16)": 1,
        "Attention (fp16)": layers - pruned,
        "MultiHeadAttention (fp16)": pruned,
        "SkipLayerNormalization (fp16)": 2 * layers,
        "BiasGelu (fp16)": layers,
        "MatMul (fp16)": 3 * layers + 3 * pruned,  # attention output, feed-forward; query, key, value
        "NonZero": 0,
    }


def _int8_counts(found: Sequence[Product], rounding: Rounding) -> OpCounts:
    """Every product is in integers but for those left in float."""
    kinds = Counter((product.kind, product.name in rounding.in_float) for product in found)
    return {
        "QAttention": kinds["Attention", False],
        "Attention": kinds["Attention", True],
        "MatMulIntegerToFloat": kinds["MatMul", False] + kinds["Gemm", False],
        "MatMul": kinds["MatMul", True],
        "Gemm": kinds["Gemm", True],
    }


def count_operators(file: Path) -> OpCounts:
    """Operators of a graph by name; those that read a half-precision weight count as `NAME (fp16)`."""
    graph = onnx.load(file).graph
    half = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    return dict(
        Counter(f"{node.op_type} (fp16)" if half.intersection(node.input) else node.op_type for node in graph.node)
    )


def count_run(file: Path) -> OpCounts:
    """Operators of the graph that ONNX Runtime runs, all its optimizations done, by name."""
    with tempfile.TemporaryDirectory() as scratch:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(scratch) / "optimized.onnx")
        options.log_severity_level = 3  # it warns that the file is of this machine only
        onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return count_operators(Path(options.optimized_model_filepath))


RECIPES = {
    "fp16": Recipe("fused-fp16", make_fp16, count_operators, min_cosine=0.9999, tolerance_factor=4, padded=True),
    "int8": Recipe("static-int8", make_int8, count_run, min_cosine=0.9, tolerance_factor=1),
}


def check_names(names: Iterable[str]) -> None:
    """Raises ExportError if there is no recipe for one of `names`."""
    for name in names:
        if name not in RECIPES:
            raise ExportError(f"there is no variant {name!r} to make; there are {', '.join(RECIPES)}")


def add_variant(directory: Path, tower: TowerManifest, name: str, making: Making) -> Variant:
    """Makes a variant of a tower beside its fp32 file, checks it, and records its golden embeddings.

    Args:
        directory: of the tower; model and golden file are written there.
        tower: its manifest; only dimensions, length and the fp32 variant's file are read.
        name: fp16 or int8.
        making: the tower's tokenizer, and how the variant is to be made.

    Raises:
        ExportError: an operator that the recipe demands is missing, or the embeddings are too far from fp32, or depend
            on their batch.
    """
    recipe = RECIPES[name]
    reference_file = directory / tower.variants[REFERENCE_VARIANT].file
    model_file, golden_file = directory / f"model.{name}.onnx", directory / f"golden.{name}.npz"
    made = recipe.make(reference_file, model_file, making)
    tokenizer, threads, expected = making.tokenizer, making.threads, made.op_counts
    found = recipe.count(model_file)
    counts = {operator: found.get(operator, 0) for operator in expected}
    if counts != expected:
        raise ExportError(f"the {name} graph holds {counts} where its recipe demands {expected}; check the versions")
    encoder = Encoder(model_file, tokenizer.pad_id, threads)
    texts = [*checks.golden_texts(tokenizer), *checks.sample_texts(tokenizer, "question_encoder")]
    texts += checks.sample_texts(tokenizer, "context_encoder")
    reference = Encoder(reference_file, tokenizer.pad_id, threads)
    try:
        measured = checks.compare(reference, encoder, texts)
    except BundleError:
        raise ExportError(f"an embedding in {name} is NaN or infinite: the tower's values exceed its range") from None
    if not measured.min_cosine >= recipe.min_cosine:
        raise ExportError(
            f"the {name} embeddings are too far from fp32: cosine {measured.min_cosine:.5f} for the worst of "
            f"{measured.texts} texts, where {recipe.min_cosine} is demanded"
        )
    if measured.batch_max_abs_difference:
        raise ExportError(f"an embedding in {name} depends on its batch (by {measured.batch_max_abs_difference:.1e})")
    checks.golden(encoder, tokenizer).save(golden_file)
    for file in (model_file, golden_file):
        durable.fsync_path(file)
    return Variant(
        file=model_file.name,
        sha256=durable.sha256_file(model_file),
        size_bytes=model_file.stat().st_size,
        recipe=recipe.name,
        fused_ops=counts,
        experimental=False,
        parity_max_abs_error=measured.max_abs_error,
        parity_min_cosine=measured.min_cosine,
        batch_max_abs_difference=measured.batch_max_abs_difference,
        golden_file=golden_file.name,
        golden_sha256=durable.sha256_file(golden_file),
        golden_tolerance=max(recipe.tolerance_factor * measured.max_abs_error, checks.PARITY_LIMIT),
        quantization=made.quantization,
        packed=tower.variants[REFERENCE_VARIANT].packed and not recipe.padded,
    )


def extend_bundle(
    path: Path,
    names: Sequence[str],
    threads: int,
    step: Callable[[str], object],
    rounding: Callable[[Bundle], Calibrated] | None = None,
) -> BundleManifest:
    """Adds variants to the towers of a bundle; the manifest names them only when all are made, checked and synced.

    `step` is told, in a few words, what begins; `rounding` says how int8 is made (None: by its defaults).

    Raises:
        BundleError: no sound bundle there, or another process is changing it.
        ExportError: the bundle has one of the variants already; or as `add_variant`.
    """
    check_names(names)

    def extend(manifest: BundleManifest) -> BundleManifest:
        for name in names:
            if any(name in tower.variants for tower in manifest.towers.values()):
                raise ExportError(f"{path} has {name} already; export to another --out to make it anew")
        bundle = open_bundle(path)
        calibrated = rounding(bundle) if rounding else Calibrated()
        towers = {tower.directory: tower for tower in manifest.towers.values()}
        for directory, tower in towers.items():
            tokenizer = load_tokenizer(bundle, tower)
            made = dict(tower.variants)
            for name in names:
                step(f"{directory.replace('_', ' ')}: making and checking {name}")
                made[name] = add_variant(
                    path / directory, tower, name, Making(directory, tokenizer, threads, calibrated)
                )
            durable.fsync_path(path / directory)
            towers[directory] = replace(tower, variants=made)
        return replace(manifest, towers={role: towers[tower.directory] for role, tower in manifest.towers.items()})

    return update_manifest(path, extend)
