"""`narrows index verify`: everything that can be checked about an index without building it again."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from narrows.bundle import Bundle, Variant
from narrows.errors import IndexFileError, MismatchError
from narrows.index import Fidelity, Index, chunks, opened, store
from narrows.index.agreement import LEAST_COSINE, MOST_NORM_DIFFERENCE, compare
from narrows.index.candidates import HALF_ROUNDOFF
from narrows.index.store import STORED, TRUNCATED, IndexManifest
from narrows.index.vector_file import header
from narrows.passages import BLOB, Passages
from narrows.towers import Tower, load_towers

BLOCK_ROWS = 65_536
NORM_TOLERANCE: dict[Fidelity, float] = {  # relative
    "fp32": 1e-9,  # float64 norms of the same vectors
    "fp16": 2 * HALF_ROUNDOFF,
    "coded": math.inf,
}
COSINE_TOLERANCE = 0.1  # a coded vector may be so much farther from what it codes than any of the sample sealed


class _Cut(msgspec.Struct):
    """A line of truncated.jsonl."""

    id: str
    tokens: int
    kept: int


@dataclass(frozen=True, slots=True)
class Allowed:
    """How far a passage, encoded again, may be from what is stored. None: as far as it likes.

    What the variant itself encoded is within its tolerance. What codes hold is not, nor what another program encoded:
    it points the same way.
    """

    error: float | None = None
    cosine: float | None = None
    norm_difference: float | None = None

    def holds(self, error: float, cosine: float, norm_difference: float) -> bool:
        """Whether a passage is near enough."""
        return (
            (self.error is None or error <= self.error)
            and (self.cosine is None or cosine >= self.cosine)
            and (self.norm_difference is None or norm_difference <= self.norm_difference)
        )

    def __str__(self) -> str:
        """In words."""
        limits = (
            "" if self.error is None else f"error up to {self.error:.0e}",
            "" if self.cosine is None else f"cosine from {self.cosine:.3f}",
            "" if self.norm_difference is None else f"length within {self.norm_difference:.0%}",
        )
        return ", ".join(filter(None, limits))


@dataclass(slots=True)
class VerifyReport:
    """What is wrong, one line each; and how the sample, encoded again, compares with what is stored."""

    index: str
    generation: str = ""
    count: int = 0
    failures: list[str] = field(default_factory=list)
    sample: int = 0
    identical: int = 0
    max_abs_error: float = 0.0
    lowest_cosine: float = 1.0
    allowed: str = ""


def verify_index(
    path: Path, bundle: Bundle, sample: int, seed: int, threads: int, step: Callable[[str], None]
) -> VerifyReport:
    """Checks the current generation in full.

    Args:
        path: the index.
        bundle: the one that filled it.
        sample: how many passages to encode again; each must be as near as Allowed to what is stored, and is
            bit-identical on a machine like the one that built the index, unless its batch moved it.
        seed: chooses the sample.
        threads: for the encoder.
        step: told what is checked next.

    Raises:
        BundleError: the context encoder cannot be loaded.
        IndexFileError: a build replaced the generation meanwhile.
    """
    report = VerifyReport(str(path))
    try:
        _check(report, path, bundle, sample, seed, threads, step)
    except (IndexFileError, OSError) as error:
        report.failures.append(str(error))
    if report.failures and report.generation and store.current_generation(path) != report.generation:
        raise IndexFileError(f"{path} was replaced by a build while it was checked: check it again")
    return report


def _check(
    report: VerifyReport,
    path: Path,
    bundle: Bundle,
    sample: int,
    seed: int,
    threads: int,
    step: Callable[[str], None],
) -> None:
    """Fills the report, as far as the index can be read.

    Raises:
        IndexFileError, OSError: it cannot be read any further.
    """
    step("hashes")
    generation, manifest, manifest_sha256 = store.read_sealed_manifest(path)
    report.generation, report.count = generation, manifest.count
    report.failures += store.damages(path, generation, manifest, manifest_sha256, "full")
    if report.failures:
        return  # nothing in a damaged file is worth another line
    found = opened.open_generation(path / generation, generation, manifest, threads)
    step("sizes and ids")
    report.failures += _wrong_sizes(path / generation, manifest)
    wrong_passages = list(_wrong_passages(path / generation, found.passages, manifest))
    report.failures += wrong_passages
    step("vectors")
    vectors = found.vectors
    report.failures += _wrong_vectors(vectors, manifest)
    step("sample")
    try:
        store.check_towers(path, manifest, bundle)
    except MismatchError as error:
        report.failures.append(str(error))
    else:
        if wrong_passages:
            return  # a sample of them would say nothing
        tower = load_towers(bundle, manifest.variant, threads, ["context_encoder"])["context_encoder"]
        allowed = _allowed(manifest, vectors, tower.manifest.variants[manifest.variant])
        _encode_again(report, found.passages, vectors, tower, sample, seed, allowed)


def _allowed(manifest: IndexManifest, vectors: Index, variant: Variant) -> Allowed:
    if vectors.fidelity == "coded":
        return Allowed(cosine=manifest.least_cosine - COSINE_TOLERANCE)
    if manifest.agreement:
        return Allowed(cosine=LEAST_COSINE, norm_difference=MOST_NORM_DIFFERENCE)
    rounding = HALF_ROUNDOFF * vectors.max_norm if vectors.fidelity == "fp16" else 0.0
    # What is stored was encoded in batches, what it is compared with is not: 0.0 but for older int8.
    return Allowed(variant.golden_tolerance + variant.batch_max_abs_difference + rounding)


def _wrong_sizes(directory: Path, manifest: IndexManifest) -> Iterator[str]:
    for name, file in manifest.files.items():
        if (directory / name).stat().st_size != file.size_bytes:
            yield f"{directory / name} has not the {file.size_bytes} bytes of the manifest"
    if manifest.plan.store != "none":
        [name] = STORED[manifest.plan.store]
        expected = header(manifest.dim, manifest.count, manifest.plan.store)
        with (directory / name).open("rb") as file_of_vectors:
            if file_of_vectors.read(len(expected)) != expected:
                yield f"{directory / name} does not begin as a flat index of {manifest.count} x {manifest.dim} does"
    try:
        cut = [msgspec.json.decode(line, type=_Cut) for line in (directory / TRUNCATED).read_bytes().splitlines()]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        yield f"{directory / TRUNCATED} cannot be read: {error}"
        return
    lost = sum(line.tokens - line.kept for line in cut)
    if (len(cut), lost) != (manifest.truncated_count, manifest.cut_token_count):
        yield (
            f"{directory / TRUNCATED} lists {len(cut)} passages and {lost} tokens, the manifest "
            f"{manifest.truncated_count} and {manifest.cut_token_count}"
        )


def _wrong_passages(directory: Path, passages: Passages, manifest: IndexManifest) -> Iterator[str]:
    if len(passages) != manifest.count:
        yield f"{directory} holds {len(passages)} passages, the manifest says {manifest.count}"
        return
    ends, order, rank = passages.ends, passages.id_order, passages.id_rank
    size_bytes = (directory / BLOB).stat().st_size
    if len(ends) != 3 * len(order) + 1 or ends[0] or ends[-1] != size_bytes or (ends[1:] < ends[:-1]).any():
        yield f"the ends of the strings in {directory / BLOB} do not ascend from 0 to its {size_bytes} bytes"
        return
    if len(rank) != len(order) or order.max() >= len(order) or (rank[order] != np.arange(len(order))).any():
        yield f"id_order.npy and id_rank.npy in {directory} are not each other's inverse"
        return
    previous = b""
    for row in order.tolist():
        passage_id = passages.id_bytes(row)
        if passage_id <= previous:
            yield f"the ids in {directory} are not sorted and distinct: {passage_id!r} comes after {previous!r}"
            return
        previous = passage_id


def _wrong_vectors(vectors: Index, manifest: IndexManifest) -> Iterator[str]:
    longest, not_finite = 0.0, 0
    for start in range(0, vectors.count, BLOCK_ROWS):
        block = vectors.decode(np.arange(start, min(start + BLOCK_ROWS, vectors.count)))
        norms = np.linalg.norm(block.astype(np.float64), axis=1)
        not_finite += int((~np.isfinite(norms)).sum())
        longest = max(longest, float(norms.max()))
    if not_finite:
        yield f"vectors that hold NaN or infinity: {not_finite}"
    elif not abs(longest - manifest.max_norm) <= NORM_TOLERANCE[vectors.fidelity] * longest:
        yield f"the longest vector has the norm {longest}, the manifest says {manifest.max_norm}"


def _encode_again(
    report: VerifyReport,
    passages: Passages,
    vectors: Index,
    tower: Tower,
    sample: int,
    seed: int,
    allowed: Allowed,
) -> None:
    report.allowed = str(allowed)
    rows = np.sort(np.random.default_rng(seed).permutation(len(passages))[:sample])
    try:
        texts = chunks.tokenize(passages, tower, rows)
    except UnicodeDecodeError as problem:
        report.failures.append(f"a passage of the sample is not UTF-8: {problem}")
        return
    for row, text in zip(rows.tolist(), texts, strict=True):
        again = tower.encoder.encode([text.ids])[0]
        stored = vectors.decode(np.array([row]))[0]
        error = float(np.abs(again - stored).max())
        report.sample += 1
        report.identical += again.tobytes() == stored.tobytes()
        report.max_abs_error = max(report.max_abs_error, error)
        compared = compare(again[None], stored[None])
        cosine = float(compared.cosines[0])
        report.lowest_cosine = min(report.lowest_cosine, cosine)
        if not allowed.holds(error, cosine, float(compared.norm_differences[0])):
            passage_id = passages.get([row], with_text=False)[0].id
            report.failures.append(
                f"passage {passage_id!r} (row {row}), encoded again, is off by {error:.1e} from the stored vector, "
                f"with a cosine of {cosine:.4f} (allowed: {allowed})"
            )
