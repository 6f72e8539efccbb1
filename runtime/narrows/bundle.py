"""The bundle: a directory of exported towers and the manifest that describes them.

    BUNDLE/manifest.json
    BUNDLE/question_encoder/   model.fp32.onnx  tokenizer.json  golden.fp32.npz
    BUNDLE/context_encoder/    the same
    BUNDLE/reader/             the same, where there is one

Other variants lie beside fp32, which every tower has: model.int8.onnx, golden.int8.npz. One checkpoint that serves as
both towers is stored once, in BUNDLE/shared_encoder. The manifest is the only place that says how a text becomes an
embedding; nothing is read from the checkpoint again.
"""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from narrows import durable, integrity, manifests
from narrows.errors import BundleError
from narrows.integrity import Sealed, Verify
from narrows.quality import DataFile, QualityReport

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
STAMP = ".verified"  # see narrows.integrity
REFERENCE_VARIANT = "fp32"  # in every bundle; the others are judged against it

Pooling = Literal["cls", "mean", "none"]  # none: a reader's, whose tokens are judged one by one
Similarity = Literal["inner_product", "cosine"]
# Of every token 0; or, of a reader, 0 up to and with the first separator, which ends the question, and 1 behind it.
SegmentIds = Literal["zero", "pair"]
TextPreset = Literal["hf", "dpr-2020", "dpr-head", "haystack"]
Role = Literal["question_encoder", "context_encoder", "reader"]


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """How text becomes WordPiece ids. `vocabulary_sha256` covers the tokens in id order, a newline after each.

    `composes`: a letter and its accent, where they are two characters, are made one first (Unicode's NFC).
    """

    lowercase: bool
    strip_accents: bool | None  # None: as lowercase
    clean_text: bool
    handle_chinese_chars: bool
    unk_token: str
    cls_token: str
    sep_token: str
    pad_token: str
    mask_token: str
    max_word_chars: int
    vocabulary_sha256: str
    vocabulary_size: int
    text_preset: TextPreset
    composes: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tower came from."""

    name: str  # hub id, or the directory's own name
    revision: str  # hub commit; empty for a directory
    kind: Literal["dpr", "sentence-transformers"]
    weights_file: str
    weights_sha256: str
    license: str
    language: str


@dataclass(frozen=True, slots=True)
class Rounding:
    """How a graph is quantized to int8 (narrows_export.quantize); with `alpha` 0 nothing is migrated.

    `percentile` of an activation's values are inside its range, and as many beyond one end as beyond the other.
    `in_float` names the products that stay in single precision.
    """

    alpha: float
    percentile: float
    in_float: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One of the roundings that a search compared; the same number of products a tower beyond those of one row.

    `speedup` is over fp32 on the machine that searched, in CPU time, the geometric mean over batches of several
    shapes. `expected_overlap` is the low end of the top-10 overlap expected at `passages`; None: not measured.
    """

    alpha: float
    percentile: float
    left_in_float: int
    speedup: float
    expected_overlap: float | None
    passages: int
    data: Literal["evaluation", "held-out calibration"]
    passed: bool


@dataclass(frozen=True, slots=True)
class Quantization:
    """How an int8 variant was rounded, on which texts its ranges were observed, and what else was tried."""

    rounding: Rounding
    calibration: tuple[DataFile, ...]
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Variant:
    """One numeric form of a tower. `golden_tolerance` bounds the max abs error at load.

    The parity is with PyTorch for fp32, and with fp32 for the others. `batch_max_abs_difference` is between a text
    alone and in batches, as measured at export; an experimental variant is never served by default.
    """

    file: str
    sha256: str
    size_bytes: int
    recipe: str
    fused_ops: dict[str, int]
    experimental: bool
    parity_max_abs_error: float
    parity_min_cosine: float
    batch_max_abs_difference: float
    golden_file: str
    golden_sha256: str
    golden_tolerance: float
    quantization: Quantization | None = None  # of int8
    packed: bool = False  # whether padding costs nothing outside of attention (narrows_export.packing)


@dataclass(frozen=True, slots=True)
class TowerManifest:
    """One tower. Paths are relative to `directory`, which is relative to the bundle.

    `dim` of a reader is that of its logits: each token's as the start and as the end of an answer, and the first
    token's, of the passage's relevance.
    """

    directory: str
    tower_id: str
    dim: int
    max_tokens: int
    pooling: Pooling
    normalize: bool
    projection_dim: int
    segment_ids: SegmentIds
    tokenizer: TokenizerSettings
    tokenizer_file: str
    tokenizer_sha256: str
    source: Source
    variants: dict[str, Variant]


@dataclass(frozen=True, slots=True)
class PairCheck:
    """In-batch top-1 of question-passage pairs: `correct` of `pairs`, where chance is one."""

    language: str
    pairs: int
    correct: int
    passed: bool


@dataclass(frozen=True, slots=True)
class BundleManifest:
    """What a bundle holds."""

    schema_version: int
    name: str
    created_by: str
    similarity: Similarity
    towers: dict[Role, TowerManifest]
    pair_check: PairCheck
    quality: tuple[QualityReport, ...] = ()  # at most one a pair of variants; see narrows.quality
    reader: TowerManifest | None = None

    @property
    def by_role(self) -> dict[Role, TowerManifest]:
        """The towers and, where there is one, the reader."""
        return {**self.towers, "reader": self.reader} if self.reader else dict(self.towers)

    @property
    def dim(self) -> int:
        """Numbers in an embedding; the same for both towers."""
        return self.towers["question_encoder"].dim


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle whose files match their hashes."""

    path: Path
    manifest: BundleManifest

    def tower(self, role: Role) -> TowerManifest:
        """The manifest of one tower.

        Raises:
            BundleError: the bundle has no reader, and it was asked for.
        """
        if role == "reader" and self.manifest.reader is None:
            raise BundleError(f"{self.path} has no reader; export it with --reader")
        return self.manifest.by_role[role]

    def variant(self, role: Role, name: str) -> Variant:
        """One variant of a tower.

        Raises:
            BundleError: the bundle lacks it.
        """
        found = self.tower(role).variants
        if name not in found:
            raise BundleError(f"{self.path} has no variant {name} of its {role}; it has {', '.join(found)}")
        return found[name]

    @property
    def tower_ids(self) -> tuple[str, str]:
        """Of the question encoder and the context encoder."""
        return self.tower("question_encoder").tower_id, self.tower("context_encoder").tower_id

    def file(self, tower: TowerManifest, name: str) -> Path:
        """The path of one of a tower's files."""
        return self.path / tower.directory / name


def tower_files(tower: TowerManifest) -> dict[str, str]:
    """File name to SHA-256, for every file of a tower."""
    files = {tower.tokenizer_file: tower.tokenizer_sha256}
    for variant in tower.variants.values():
        files[variant.file] = variant.sha256
        files[variant.golden_file] = variant.golden_sha256
    return files


def write_manifest(directory: Path, manifest: BundleManifest) -> None:
    """Writes the manifest into a bundle directory, durably."""
    durable.write_file(directory / MANIFEST, manifests.encode(manifest))


def update_manifest(path: Path, change: Callable[[BundleManifest], BundleManifest]) -> BundleManifest:
    """Replaces a bundle's manifest by what `change` makes of the present one, atomically, one writer at a time.

    Raises:
        BundleError: another process is changing the bundle; or as `read_manifest`.
    """
    with ExitStack() as held:
        try:
            held.enter_context(durable.locked(path))
        except BlockingIOError:
            raise BundleError(f"another process is changing {path}; wait for it") from None
        except OSError:  # gone, which read_manifest says better; or a file system without locks
            pass
        manifest = change(read_manifest(path))
        write_manifest(path, manifest)
    return manifest


def open_bundle(path: Path, verify: Verify = "full") -> Bundle:
    """Opens a bundle and checks every file against the manifest; with `stamp`, only those that changed since.

    Raises:
        BundleError: no bundle there, an unreadable manifest, another schema version, a missing or changed file.
    """
    manifest, manifest_sha256 = _read_sealed_manifest(path)
    towers = manifest.by_role.values()
    files = {f"{t.directory}/{name}": (sha256,) for t in towers for name, sha256 in tower_files(t).items()}
    sealed = Sealed(path, files, integrity.WHOLE_FILE, manifest_sha256, path / STAMP)
    for fault in integrity.faults(sealed, verify):
        if fault.what == "missing":
            raise BundleError(f"{fault.file} is missing: the bundle is incomplete; export it again")
        raise BundleError(f"{fault.file} does not match the manifest's hash: it was changed or damaged; export again")
    return Bundle(path, manifest)


def read_manifest(path: Path) -> BundleManifest:
    """Reads a bundle's manifest alone; whether the files match it is not checked.

    Raises:
        BundleError: no bundle there, an unreadable manifest, another schema version.
    """
    return _read_sealed_manifest(path)[0]


def _read_sealed_manifest(path: Path) -> tuple[BundleManifest, str]:
    """The manifest, and the SHA-256 of its bytes."""
    file = path / MANIFEST
    try:
        data = file.read_bytes()
    except OSError as error:
        raise BundleError(
            f"{path} is not a bundle ({error.strerror}: {MANIFEST}); make one with `narrows export`"
        ) from None
    manifest = manifests.decode(data, BundleManifest, SCHEMA_VERSION, file, BundleError)
    if set(manifest.towers) != {"question_encoder", "context_encoder"}:
        raise BundleError(f"{file} must describe a question_encoder and a context_encoder")
    if len({tower.dim for tower in manifest.towers.values()}) != 1:
        raise BundleError(f"{file} has towers of different dimensions; export the bundle again")
    if any(REFERENCE_VARIANT not in tower.variants for tower in manifest.towers.values()):
        raise BundleError(f"{file} has a tower without the variant {REFERENCE_VARIANT}; export the bundle again")
    return manifest, hashlib.sha256(data).hexdigest()
