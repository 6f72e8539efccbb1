"""`narrows index merge` and `narrows index convert`: the vectors of indexes, held otherwise, without encoding again.

Passages and vectors are put together in INDEX/.build, linked where there is one index only; what becomes of them is the
same as in a build (narrows.index.sealing). A merge that was stopped goes on once they are together.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import narrows
from narrows.bundle import REFERENCE_VARIANT, Bundle
from narrows.errors import IndexFileError
from narrows.index import agreement, sealing, store, unfinished
from narrows.index.progress import Progress
from narrows.index.sealing import Origin
from narrows.index.shard import Shard
from narrows.index.store import TRUNCATED, VECTORS, IndexManifest, SkippedRows
from narrows.index.target import BuildReport, Target, check, held, report
from narrows.index.unfinished import BUILD, Encoded, Inputs, Journal
from narrows.index.vector_file import VectorFile, header
from narrows.passages import FILES, Passages, PassageWriter

BLOCK_ROWS = 4096
JOINT = "+"
PROGRAM = f"narrows {narrows.__version__}, merging"


@dataclass(frozen=True, slots=True)
class Part:
    """One of the indexes: its current generation, checked."""

    path: Path
    directory: Path
    manifest: IndexManifest


def merge_indexes(bundle: Bundle, sources: Sequence[Path], target: Target, progress: Progress) -> BuildReport:
    """Makes one index of the passages of several, in their order; or the same index with another preset.

    Shards of one file come in the order of the file, in whatever order they are given; `progress` is told of those
    that are missing.

    Raises:
        IndexFileError: an index is missing or damaged, does not hold its vectors as they were encoded, has another
            variant or dimension than the first, or an id that another has too; and as when building.
        MismatchError: another tower filled one of them.
    """
    if done := _done_in_place(sources, target):
        return done
    given = [_opened(source, bundle) for source in sources]
    parts = _ordered(given, progress)
    first = parts[0]
    for part in parts[1:]:
        _check_alike(first, part)
    inputs = Inputs(
        program=PROGRAM,
        tower_id=first.manifest.tower_id,
        variant=first.manifest.variant,
        model_sha256="",
        source_sha256=JOINT.join(store.identity(part.manifest) for part in given),
        skip_bad=False,
    )
    models = {part.manifest.model_sha256 for part in parts}
    origin = Origin(
        bundle=first.manifest.bundle,
        source=" + ".join(part.manifest.source for part in parts),
        source_sha256=first.manifest.source_sha256
        if len(parts) == 1
        else hashlib.sha256(inputs.source_sha256.encode()).hexdigest(),
        model_sha256=models.pop() if len(models) == 1 else "",
        shard=first.manifest.shard if len(parts) == 1 else None,
        agreement=agreement.together([part.manifest.agreement for part in parts]),
    )
    check(target)
    with held(target, inputs) as begun:
        if begun.done:
            return report(target, *begun.done, begun.done[1].count, 0.0)
        sealing.check_plan(target, sum(part.manifest.count for part in parts), first.manifest.dim, progress)
        journal = begun.journal or _put_together(target.out, parts, inputs, progress)
        generation, manifest = sealing.seal(bundle, journal, origin, target, progress)
    return report(target, generation, manifest, journal.count, 0.0)


def _done_in_place(sources: Sequence[Path], target: Target) -> BuildReport | None:
    """What was killed after its last step but one, and has taken the place of its own source: it is done."""
    if all(source.resolve() != target.out.resolve() for source in sources):
        return None
    current = store.current_generation(target.out)
    journal = unfinished.read_journal(target.out / current) if current else None
    if journal is None or journal.inputs.program != PROGRAM or not _is_of(journal, sources, target.out):
        return None
    with held(target, journal.inputs) as begun:
        return report(target, *begun.done, begun.done[1].count, 0.0) if begun.done else None


def _is_of(journal: Journal, sources: Sequence[Path], out: Path) -> bool:
    """Whether a merge that took the place of one of its sources, which is no more, was made of the others, too."""
    merged = journal.inputs.source_sha256.split(JOINT)
    return len(merged) == len(sources) and all(
        source.resolve() == out.resolve() or store.identity(store.read_manifest(source)[1]) == identity
        for source, identity in zip(sources, merged, strict=True)
    )


def _ordered(parts: list[Part], progress: Progress) -> list[Part]:
    """Shards of one file, in its order; anything else as it is."""
    shards = {part.manifest.shard: part for part in parts if part.manifest.shard}
    files = {(part.manifest.source_sha256, shard.of) for shard, part in shards.items()}
    if len(parts) == 1 or len(shards) < len(parts) or len(files) > 1:
        return parts
    [(_, count)] = files
    missing = [str(shard) for shard in (Shard(number, count) for number in range(1, count + 1)) if shard not in shards]
    if missing:
        progress.noted([f"WARNING: these are not all shards of the passages; missing: {', '.join(missing)}"])
    return [shards[shard] for shard in sorted(shards, key=lambda shard: shard.number)]


def _check_alike(first: Part, part: Part) -> None:
    one, other = first.manifest, part.manifest
    if (one.variant, one.dim) != (other.variant, other.dim):
        raise IndexFileError(
            f"{part.path} holds {other.dim} dimensions of variant {other.variant}, {first.path} {one.dim} of "
            f"{one.variant}: build one of them again"
        )
    # Of the reference, other files compute the same; of another variant, they may be quantized otherwise.
    files = {one.model_sha256, other.model_sha256} - {""}
    if one.variant != REFERENCE_VARIANT and len(files) > 1:
        raise IndexFileError(
            f"{part.path} and {first.path} were filled by different model files of variant {one.variant}: build them "
            "with one bundle"
        )


def _opened(path: Path, bundle: Bundle) -> Part:
    generation, manifest, manifest_sha256 = store.read_sealed_manifest(path)
    store.check_towers(path, manifest, bundle)
    if VECTORS not in manifest.files:
        raise IndexFileError(
            f"{path} is {manifest.plan.preset} and does not hold its vectors as they were encoded: take the flat index "
            "that it was made from, or build it again"
        )
    for message in store.damages(path, generation, manifest, manifest_sha256, "stamp"):
        raise IndexFileError(f"{message}; build the index again")
    return Part(path, path / generation, manifest)


def _put_together(out: Path, parts: Sequence[Part], inputs: Inputs, progress: Progress) -> Journal:
    """Fills INDEX/.build with passages and vectors, and begins its journal; leaves nothing when it fails."""
    unfinished.clear(out)
    directory = out / BUILD
    directory.mkdir()
    try:
        if len(parts) == 1:
            for name in (VECTORS, TRUNCATED, *FILES):
                _link(parts[0].directory / name, directory / name)
        else:
            _concatenate(directory, parts, progress)
        manifests = [part.manifest for part in parts]
        encoded = Encoded(
            rows=sum(manifest.count for manifest in manifests),
            truncated_count=sum(manifest.truncated_count for manifest in manifests),
            truncated_bytes=(directory / TRUNCATED).stat().st_size,
            token_count=sum(manifest.token_count for manifest in manifests),
            cut_token_count=sum(manifest.cut_token_count for manifest in manifests),
            max_norm=max(manifest.max_norm for manifest in manifests),
        )
        return unfinished.adopt(out, inputs, manifests[0].dim, encoded, _skipped(manifests))
    except BaseException:
        unfinished.clear(out)
        raise


def _link(source: Path, target: Path) -> None:
    """A second name for a sealed file, which nobody writes to; a copy, on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _concatenate(directory: Path, parts: Sequence[Part], progress: Progress) -> None:
    count = 0
    with PassageWriter(directory) as writer:
        for part in parts:
            passages = Passages(part.directory)
            for start in range(0, len(passages), BLOCK_ROWS):
                for passage in passages.get(range(start, min(start + BLOCK_ROWS, len(passages)))):
                    writer.append(passage)
                    count += 1
                progress.reading(count)
    _check_distinct(directory, parts)
    with (directory / VECTORS).open("wb") as out:
        out.write(header(parts[0].manifest.dim, count))
        for part in parts:
            vectors = VectorFile(part.directory / VECTORS, part.manifest.dim, part.manifest.count)
            for start in range(0, vectors.count, BLOCK_ROWS):
                out.write(vectors.read(start, start + BLOCK_ROWS).tobytes())
    with (directory / TRUNCATED).open("wb") as out:
        for part in parts:
            with (part.directory / TRUNCATED).open("rb") as lines:
                shutil.copyfileobj(lines, out)


def _check_distinct(directory: Path, parts: Sequence[Part]) -> None:
    """Each id is in one of the indexes only: within one, they are known to be distinct."""
    passages = Passages(directory)
    previous = b""
    for row in passages.id_order.tolist():
        passage_id = passages.id_bytes(row)
        if passage_id == previous:
            name = passage_id.decode()
            holders = [str(part.path) for part in parts if Passages(part.directory).find(name) is not None]
            raise IndexFileError(f"passage {name!r} is in {' and in '.join(holders)}: give it once")
        previous = passage_id


def _skipped(manifests: Sequence[IndexManifest]) -> dict[str, SkippedRows]:
    """What was left out of all of them; the places that are named are those of the first that has any."""
    skipped: dict[str, SkippedRows] = {}
    for manifest in manifests:
        for reason, rows in manifest.skipped.items():
            before = skipped.get(reason, SkippedRows(0, rows.first))
            skipped[reason] = SkippedRows(before.count + rows.count, before.first)
    return skipped
