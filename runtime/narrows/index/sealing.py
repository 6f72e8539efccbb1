"""The end of every build: vectors and passages in INDEX/.build -> the index's next generation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import narrows
from narrows import integrity, variants
from narrows.bundle import Bundle
from narrows.encoder import Embeddings
from narrows.errors import IndexFileError
from narrows.index import filling, presets, store, structures, tuning, unfinished
from narrows.index.agreement import Agreement, compare
from narrows.index.approximate import ApproximateIndex
from narrows.index.flat import FlatIndex
from narrows.index.opened import open_vectors
from narrows.index.presets import Plan
from narrows.index.progress import Progress
from narrows.index.shard import Shard
from narrows.index.store import TRUNCATED, VECTORS, IndexedFile, IndexManifest, Recall
from narrows.index.target import Target
from narrows.index.tuning import Exam
from narrows.index.unfinished import BUILD, Journal
from narrows.index.vector_file import VectorFile
from narrows.offline import embed
from narrows.passages import Passages
from narrows.towers import load_towers

DECODED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an index comes from, as its manifest tells it."""

    bundle: str
    source: str
    source_sha256: str
    model_sha256: str = ""
    shard: Shard | None = None
    agreement: Agreement | None = None


def check_plan(target: Target, count: int, dim: int, progress: Progress) -> None:
    """Whether what is wanted can be made of `count` vectors of `dim`, before any is encoded.

    Raises:
        IndexFileError: it is not.
    """
    if target.wanted.memory_budget_bytes:
        chosen, reasons = presets.within(target.wanted.memory_budget_bytes, count, dim)
        progress.noted([*reasons, f"so {chosen.name}: {chosen.about}"])
    plan = presets.plan(target.wanted, count, dim)
    if not plan.is_exact:
        structures.make(plan, dim)
        if count < plan.least_count:
            raise IndexFileError(
                f"{plan.factory} cannot be trained on {count} vectors, {plan.least_count} are the least: take flat"
            )
        if target.tuning:
            tuning.check(len(target.tuning.questions), target.tuning.target)


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
    id_rank, max_norm = Passages(directory).id_rank, journal.encoded.max_norm
    # Also where nothing is measured: what cannot be opened is not published.
    index = open_vectors(directory, plan, journal.dim, max_norm, id_rank, target.threads)
    recall = None
    if target.tuning:
        progress.step("encoding questions")
        queries = _encoded(bundle, journal.inputs.variant, target.tuning.questions, target.threads)
        progress.step("searching exactly")
        exam = Exam.of(FlatIndex(directory / VECTORS, id_rank, max_norm, target.threads), queries, target.tuning.k)
        settings, recall = tuning.measured(index, plan, exam, target.tuning, progress.step)
        plan = replace(plan, search=settings)
    cosine = _least_cosine(index, vectors) if index.fidelity == "coded" else 1.0
    if not cosine > 0:
        raise structures.undecodable(repr(plan.factory), f"the lowest cosine with what was encoded is {cosine:.2f}")
    manifest = _describe(journal, origin, target.name, plan, recall, cosine, directory)
    generation = store.publish(path, directory, manifest)
    unfinished.finish(path, generation)
    return generation, manifest


def _encoded(bundle: Bundle, passage_variant: str, questions: Sequence[str], threads: int) -> Embeddings:
    """Questions by the most faithful variant that a server may take beside the passages'; it may take a faster one."""
    variant = variants.choose(bundle.manifest, passage_variant, "").question
    tower = load_towers(bundle, variant, 1, ["question_encoder"])["question_encoder"]
    return embed(tower, tower.tokenizer.questions(questions), threads)


def _least_cosine(index: FlatIndex | ApproximateIndex, vectors: VectorFile) -> float:
    """The lowest cosine of a coded vector with what it codes, in a sample."""
    rows = np.unique(np.linspace(0, vectors.count - 1, DECODED_ROWS).astype(np.int64))
    return float(compare(vectors.rows(rows), index.decode(rows)).cosines.min())


def _describe(
    journal: Journal, origin: Origin, name: str, plan: Plan, recall: Recall | None, least_cosine: float, directory: Path
) -> IndexManifest:
    """The manifest of a filled directory; hashes what was encoded, the passages were when they were stored."""
    vectors = store.vector_files(plan)
    hashes = integrity.hash_files(directory / name for name in (*vectors, TRUNCATED))
    files = {file.name: sha256 for file, sha256 in hashes.items()} | journal.stored
    sizes = {name: (directory / name).stat().st_size for name in files}
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
        files={name: IndexedFile(sizes[name], sha256) for name, sha256 in files.items()},
        plan=plan,
        recall=recall,
        least_cosine=least_cosine,
        vector_bytes=sum(sizes[name] for name in vectors) / journal.count,
        model_sha256=origin.model_sha256,
        shard=origin.shard,
        agreement=origin.agreement,
    )
