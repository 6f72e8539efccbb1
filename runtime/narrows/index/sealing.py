"""The end of every build: vectors and passages in INDEX/.build -> the index's next generation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import narrows
from narrows import integrity, variants
from narrows.bundle import Bundle
from narrows.index import filling, presets, store, structures, tuning, unfinished
from narrows.index.flat import FlatIndex
from narrows.index.opened import open_vectors
from narrows.index.presets import Plan, Wanted
from narrows.index.progress import Progress
from narrows.index.store import TRUNCATED, VECTORS, IndexedFile, IndexManifest, Recall
from narrows.index.target import Target
from narrows.index.tuning import Exam, Tuning
from narrows.index.unfinished import BUILD, Journal
from narrows.index.vector_file import VectorFile
from narrows.offline import embed
from narrows.passages import Passages
from narrows.towers import load_towers


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an index comes from, as its manifest tells it."""

    bundle: str
    source: str
    source_sha256: str


def checked_plan(wanted: Wanted, count: int, dim: int, progress: Progress) -> Plan:
    """What to make of `count` vectors of `dim`, known to be possible before any is encoded.

    Raises:
        IndexFileError: it is not.
    """
    if wanted.memory_budget_bytes:
        chosen, reasons = presets.within(wanted.memory_budget_bytes, count, dim)
        progress.planned([*reasons, f"so {chosen.name}: {chosen.about}"])
    plan = presets.plan(wanted, count, dim)
    if not plan.is_exact:
        structures.make(plan, dim)
    return plan


def seal(
    bundle: Bundle, journal: Journal, origin: Origin, target: Target, progress: Progress
) -> tuple[str, IndexManifest]:
    """Makes what is wanted of INDEX/.build, measures it, and publishes the generation; returns its name and manifest.

    Raises:
        IndexFileError: the structure cannot be made, or misses the recall that is asked for; what was made stays for
            another try.
    """
    path = target.out
    plan = presets.plan(target.wanted, journal.count, journal.dim)
    directory = path / BUILD
    vectors = VectorFile(directory / VECTORS, journal.dim, journal.count)
    filling.fill(directory, vectors, plan, journal.encoded.max_norm, target.threads, progress)
    recall = None
    if target.tuning:
        plan, recall = _measure(directory, bundle, journal, plan, target.tuning, target.threads, progress.step)
    manifest = _describe(journal, origin, target.name, plan, recall, directory)
    generation = store.publish(path, directory, manifest)
    unfinished.finish(path, generation)
    return generation, manifest


def _measure(
    directory: Path,
    bundle: Bundle,
    journal: Journal,
    plan: Plan,
    tuned: Tuning,
    threads: int,
    step: Callable[[str], object],
) -> tuple[Plan, Recall]:
    step("encoding questions")
    variant = variants.choose(bundle.manifest, journal.inputs.variant, "").question
    tower = load_towers(bundle, variant, 1, ["question_encoder"])["question_encoder"]
    queries = embed(tower, tower.tokenizer.questions(tuned.questions), threads)
    step("searching exactly")
    id_rank, max_norm = Passages(directory).id_rank, journal.encoded.max_norm
    exact = FlatIndex(directory / VECTORS, id_rank, max_norm, threads)
    exam = Exam.of(exact, queries, tuned.k)
    index = open_vectors(directory, plan, journal.dim, max_norm, id_rank, threads)
    settings, recall = tuning.measured(index, plan, exam, tuned, step)
    return replace(plan, search=settings), recall


def _describe(
    journal: Journal, origin: Origin, name: str, plan: Plan, recall: Recall | None, directory: Path
) -> IndexManifest:
    """The manifest of a filled directory; hashes what was encoded, the passages were when they were stored."""
    names = (*store.vector_files(plan), TRUNCATED)
    hashes = integrity.hash_files(directory / name for name in names)
    files = {file.name: sha256 for file, sha256 in hashes.items()} | journal.stored
    return IndexManifest(
        schema_version=store.SCHEMA_VERSION,
        name=name,
        created_by=f"narrows {narrows.__version__}",
        tower_id=journal.inputs.tower_id,
        variant=journal.inputs.variant,
        bundle=origin.bundle,
        metric="inner_product",
        dim=journal.dim,
        count=journal.count,
        truncated_count=journal.encoded.truncated_count,
        token_count=journal.encoded.token_count,
        cut_token_count=journal.encoded.cut_token_count,
        max_norm=journal.encoded.max_norm,
        source=origin.source,
        source_sha256=origin.source_sha256,
        skipped=journal.skipped,
        chunk_bytes=integrity.CHUNK_BYTES,
        files={name: IndexedFile((directory / name).stat().st_size, sha256) for name, sha256 in files.items()},
        plan=plan,
        recall=recall,
    )
