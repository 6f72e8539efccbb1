"""`narrows export`: two checkpoints in, one bundle out, nothing left behind on failure."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import narrows
from narrows import durable
from narrows.bundle import (
    REFERENCE_VARIANT,
    SCHEMA_VERSION,
    BundleManifest,
    PairCheck,
    Role,
    SegmentIds,
    Source,
    TextPreset,
    TowerManifest,
    Variant,
    write_manifest,
)
from narrows.encoder import Encoder
from narrows.errors import ExportError, UnpairedTowersError
from narrows.process import available_cores
from narrows.tokenizer import TowerTokenizer, build_tokenizer
from narrows_export import checkpoint, checks, graph, recipes, source, vocabulary
from narrows_export.recipes import Making
from narrows_export.source import CheckpointFiles
from narrows_export.tower_id import tower_id

ENCODERS: tuple[Role, ...] = ("question_encoder", "context_encoder")
STEPS_PER_TOWER = 4
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ReaderRequest:
    """A reader to export as well; no tokens given: the checkpoint's own choice, or DPR's 350."""

    source: str
    segments: SegmentIds = "zero"
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What to export. None means the checkpoint's own choice: mostly 256 tokens and preset `hf`."""

    question_encoder: str
    context_encoder: str
    out: Path
    name: str
    revision: str | None = None
    max_tokens: int | None = None  # of the encoders
    text_preset: TextPreset | None = None
    allow_unpaired: bool = False
    variants: tuple[str, ...] = ()  # of the encoders, besides fp32, which is always made
    reader: ReaderRequest | None = None
    tokenizer: str | None = None  # of DPR's own files; None: the one that each says it began with


@dataclass(frozen=True, slots=True)
class TowerReport:
    """One row of the table at the end."""

    tower: str
    source: str
    tower_id: str
    text_preset: TextPreset
    size_bytes: int
    fused_ops: dict[str, int]
    parity: checks.Parity
    variants: dict[str, Variant]


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how it compares with PyTorch."""

    bundle: str
    variant: str  # the reference
    towers: tuple[TowerReport, ...]
    pair_check: PairCheck
    notes: tuple[str, ...]  # what the user should know of the checkpoints


@dataclass(frozen=True, slots=True)
class _Exported:
    manifest: TowerManifest
    report: TowerReport
    encoder: Encoder
    tokenizer: TowerTokenizer


def export_bundle(request: ExportRequest, step: Step) -> ExportReport:
    """Exports a bundle. `step` is told, in a few words, what begins.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        ExportError: the output exists, a fusion is missing, parity fails, the towers' dimensions differ, a variant is
            unknown or too far from fp32, or a tokenizer is chosen for no file of DPR's own.
        UnpairedTowersError: the pair check fails and `allow_unpaired` is not set.
    """
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise ExportError(f"{request.out} exists already: delete it, or choose another --out")
    recipes.check_names(request.variants)
    roles: dict[Role, str] = {"question_encoder": request.question_encoder, "context_encoder": request.context_encoder}
    if request.reader:
        roles["reader"] = request.reader.source
    if request.tokenizer and not any(_is_file(src) for src in roles.values()):
        raise ExportError(
            f"--tokenizer {request.tokenizer} is for DPR's own .cp files, and no source is a file here: a Hugging Face "
            "directory or repository has its own tokenizer"
        )
    files: dict[Role, CheckpointFiles] = {}
    opened: dict[str, CheckpointFiles] = {}  # one may be several roles'
    for role, src in roles.items():
        step(f"finding {src}")
        files[role] = opened[src] = opened.get(src) or _resolve(src, request)
    kinds = {files[role].kind for role in ENCODERS}
    if len(kinds) > 1:
        raise ExportError(f"the towers are of different kinds ({' and '.join(sorted(kinds))}); give two of one kind")
    with durable.new_directory(request.out) as directory:
        exported = _export_towers(files, directory, request, step)
        question, context = exported["question_encoder"], exported["context_encoder"]
        if question.manifest.dim != context.manifest.dim:
            raise ExportError(
                f"the towers' embeddings differ in size: {question.manifest.dim} and {context.manifest.dim}"
            )
        step("checking that the towers are a pair")
        pair = checks.pair_check((question.encoder, question.tokenizer), (context.encoder, context.tokenizer))
        _judge_pair(pair, request.allow_unpaired)
        manifest = BundleManifest(
            schema_version=SCHEMA_VERSION,
            name=request.name,
            created_by=f"narrows {narrows.__version__}",
            similarity="cosine" if question.manifest.normalize else "inner_product",
            towers={role: exported[role].manifest for role in ENCODERS},
            pair_check=pair,
            reader=exported["reader"].manifest if "reader" in exported else None,
        )
        write_manifest(directory, manifest)
    reports = {tower.manifest.directory: tower.report for tower in exported.values()}
    notes = tuple(found.note for found in opened.values() if found.note)
    return ExportReport(os.fspath(request.out), REFERENCE_VARIANT, tuple(reports.values()), pair, notes)


def _resolve(src: str, request: ExportRequest) -> CheckpointFiles:
    """Finds a checkpoint: a file of DPR's own, a directory, or a hub id."""
    if _is_file(src):
        return source.resolve_file(Path(src).expanduser(), request.tokenizer, request.revision)
    return source.resolve(src, request.revision)


def _is_file(src: str) -> bool:
    return Path(src).expanduser().is_file()


def _export_towers(
    files: dict[Role, CheckpointFiles], directory: Path, request: ExportRequest, step: Step
) -> dict[Role, _Exported]:
    question, context = files["question_encoder"], files["context_encoder"]
    exported: dict[Role, _Exported] = {}
    if question.kind == "sentence-transformers" and question.directory.samefile(context.directory):
        shared = _export_tower(question, "context_encoder", directory / "shared_encoder", request, step)
        exported = {"question_encoder": shared, "context_encoder": shared}
    return exported | {
        role: _export_tower(found, role, directory / role, request, step)
        for role, found in files.items()
        if role not in exported
    }


def _export_tower(files: CheckpointFiles, role: Role, out: Path, request: ExportRequest, step: Step) -> _Exported:
    label = out.name.replace("_", " ")
    step(f"{label}: reading weights")
    out.mkdir()
    reader = request.reader if role == "reader" else None
    tower = checkpoint.load(files, role, reader.max_tokens if reader else request.max_tokens)
    settings, vocab = vocabulary.read(files, request.text_preset or files.text_preset(role))
    if len(vocab) > tower.model.config.vocab_size:
        raise ExportError(
            f"{files.name}: the vocabulary has {len(vocab)} tokens, the model {tower.model.config.vocab_size}"
        )
    rust_tokenizer = build_tokenizer(settings, vocab)
    rust_tokenizer.save(str(out / "tokenizer.json"))
    tokenizer = TowerTokenizer(rust_tokenizer, settings, tower.max_tokens)
    if reader and reader.segments == "pair":
        tower = replace(tower, separator=tokenizer.sep_id)

    step(f"{label}: exporting and optimizing the graph")
    model_file = out / f"model.{REFERENCE_VARIANT}.onnx"
    fused_ops = graph.export_fp32(tower, model_file)
    encoder = Encoder(model_file, tokenizer.pad_id, threads=available_cores())

    step(f"{label}: comparing with PyTorch")
    parity = checks.parity(tower, encoder, checks.sample_texts(tokenizer, role), tokenizer.pad_id)

    step(f"{label}: recording golden embeddings")
    golden_file = out / f"golden.{REFERENCE_VARIANT}.npz"
    golden = checks.golden_readings if role == "reader" else checks.golden
    golden(encoder, tokenizer).save(golden_file)
    variant = Variant(
        file=model_file.name,
        sha256=durable.sha256_file(model_file),
        size_bytes=model_file.stat().st_size,
        recipe="fused-fp32",
        fused_ops=fused_ops,
        experimental=False,
        parity_max_abs_error=parity.max_abs_error,
        parity_min_cosine=parity.min_cosine,
        batch_max_abs_difference=0.0,
        golden_file=golden_file.name,
        golden_sha256=durable.sha256_file(golden_file),
        golden_tolerance=checks.PARITY_LIMIT,
        packed=True,
    )
    manifest = TowerManifest(
        directory=out.name,
        tower_id=tower_id(tower, settings),
        dim=tower.dim,
        max_tokens=tower.max_tokens,
        pooling=tower.pooling,
        normalize=tower.normalize,
        projection_dim=tower.projection_dim,
        segment_ids=tower.segment_ids,
        tokenizer=settings,
        tokenizer_file="tokenizer.json",
        tokenizer_sha256=durable.sha256_file(out / "tokenizer.json"),
        source=Source(
            name=files.name,
            revision=files.revision,
            kind=files.kind,
            weights_file=files.weights.name,
            weights_sha256=durable.sha256_file(files.weights),
            license=files.license,
            language=files.language,
        ),
        variants={REFERENCE_VARIANT: variant},
    )
    for name in () if reader else request.variants:
        step(f"{label}: making and checking {name}")
        made = recipes.add_variant(out, manifest, name, Making(out.name, tokenizer, available_cores()))
        manifest = replace(manifest, variants={**manifest.variants, name: made})
    report = TowerReport(
        tower=label,
        source=files.name,
        tower_id=manifest.tower_id,
        text_preset=settings.text_preset,
        size_bytes=variant.size_bytes,
        fused_ops=fused_ops,
        parity=parity,
        variants=manifest.variants,
    )
    return _Exported(manifest, report, encoder, tokenizer)


def _judge_pair(pair: PairCheck, allow_unpaired: bool) -> None:
    if not pair.passed and not allow_unpaired:
        raise UnpairedTowersError(
            f"{unpaired_warning(pair)}. Check both names; --allow-unpaired exports them all the same"
        )


def unpaired_warning(pair: PairCheck) -> str:
    """What a failed pair check means, in a sentence."""
    return (
        f"these towers are probably NOT A PAIR: the right passage came first for {pair.correct} of {pair.pairs} "
        f"questions (chance finds 1, a pair at least {checks.PAIRS_NEEDED})"
    )
