"""`narrows eval presets`: what each text preset costs on a set of questions, with one pair of towers.

A preset is a rule of text, not of weights, so another preset is the same tower behind another tokenizer. A bundle's
towers may have two of their own; what is compared with them is one for both. Only passages whose token ids differ from
those of the bundle's own preset are encoded again. All vectors are held in memory.
"""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np

import narrows
from narrows import passage_files
from narrows.bundle import Bundle, Role, TextPreset
from narrows.encoder import Embeddings
from narrows.errors import EvaluationError, PassageFileError
from narrows.index.flat import FlatIndex
from narrows.index.opened import open_index
from narrows.index.store import VECTORS
from narrows.index.vector_file import header
from narrows.offline import embed, embed_chunks
from narrows.passages import Passages, PassageWriter
from narrows.tokenizer import TokenizedText, TowerTokenizer
from narrows.towers import Tower, load_towers
from narrows.variants import Choice
from narrows_tools.evaluation.metrics import Judged, Metrics, summarize
from narrows_tools.evaluation.questions import Question
from narrows_tools.evaluation.result import Compared, compare_judged
from narrows_tools.evaluation.retrieval import rank_and_judge
from narrows_tools.evaluation.search import CHUNK_PASSAGES, LocalSearcher, Searched
from narrows_tools.evaluation.steps import Start, silent

PRESETS: tuple[TextPreset, ...] = get_args(TextPreset)


@dataclass(frozen=True, slots=True)
class PresetCost:
    """One preset: how many texts read differently to the towers than with the bundle's own, and what that does.

    `compared` is this preset minus the bundle's own, and empty for the latter. `preset` has two names where the
    bundle's towers differ: "questions' / passages'".
    """

    preset: str
    changed_questions: int
    changed_passages: int
    metrics: Metrics
    compared: tuple[Compared, ...]


def preset_costs(
    bundle: Bundle,
    corpus: Path,
    questions: Sequence[Question],
    depth: int,
    chosen: Choice,
    threads: int,
    start: Start = silent,
) -> list[PresetCost]:
    """Evaluates every preset, the bundle's own first.

    Args:
        bundle: the towers.
        corpus: an index filled by the bundle, or a passage file.
        questions: what to ask.
        depth: passages for each question.
        chosen: the variants; the context encoder's is the one that filled the index.
        threads: for encoding and for searching.
        start: told what begins and how far it is.

    Raises:
        BundleError, IndexFileError, MismatchError, PassageFileError: as when serving and building.
        EvaluationError: the index does not hold the vectors as they are.
    """
    variants: dict[Role, str] = {"question_encoder": chosen.question, "context_encoder": chosen.passage}
    own_towers = load_towers(bundle, variants, 1, list(variants))
    own = {role: own_towers[role].manifest.tokenizer.text_preset for role in variants}
    others = [dict.fromkeys(variants, preset) for preset in PRESETS]
    texts = [question.text for question in questions]
    own_ids = own_towers["question_encoder"].tokenizer.questions(texts)
    own_judged: list[Judged] = []
    costs = []
    with tempfile.TemporaryDirectory(prefix="narrows-presets-") as name:
        scratch = Path(name)
        if corpus.is_dir():
            passages, own_vectors = _indexed(bundle, corpus, threads)
        else:
            passages = _stored(corpus, scratch)
            encoded = start("encoding passages", len(passages))
            tower = own_towers["context_encoder"]
            chunks = (_tokenize(tower, passages, rows) for rows in _row_chunks(len(passages)))
            own_vectors = np.concatenate([found for _, found in embed_chunks(tower, chunks, threads, encoded)])
        for presets in (own, *(other for other in others if other != own)):
            preset = " / ".join(dict.fromkeys(presets.values()))
            towers = {role: _with_preset(bundle, role, tower, presets[role]) for role, tower in own_towers.items()}
            changed_rows, changed_ids = _changed(passages, own_towers["context_encoder"], towers["context_encoder"])
            vectors = own_vectors.copy()
            if changed_rows:
                encoded = start(f"encoding passages for {preset}", len(changed_rows))
                vectors[changed_rows] = embed(towers["context_encoder"], changed_ids, threads, encoded)
            searcher = _searcher(bundle, towers["question_encoder"], passages, vectors, chosen, threads, scratch)
            judged, _ = rank_and_judge(searcher, questions, depth, start=start)
            own_judged = own_judged or judged
            ids = towers["question_encoder"].tokenizer.questions(texts)
            costs.append(
                PresetCost(
                    preset,
                    sum(_differ(one, other) for one, other in zip(own_ids, ids, strict=True)),
                    len(changed_rows),
                    summarize(judged, depth, None),
                    () if presets == own else tuple(compare_judged(own_judged, judged, depth)),
                )
            )
    return costs


def _indexed(bundle: Bundle, path: Path, threads: int) -> tuple[Passages, Embeddings]:
    """An index's passages and vectors."""
    index = open_index(path, bundle, threads)
    if index.vectors.fidelity != "fp32":
        raise EvaluationError(
            f"{path} holds its vectors as {index.manifest.plan.factory}: give --passages instead of --index"
        )
    return index.passages, index.vectors.decode(np.arange(index.vectors.count))


def _stored(file: Path, directory: Path) -> Passages:
    count = 0
    with PassageWriter(directory) as writer:
        for count, row in enumerate(passage_files.read(file), start=1):  # noqa: B007  (used after the loop)
            writer.append(row.passage)
    if not count:
        raise PassageFileError(f"{file}: it holds no passages")
    return Passages(directory)


def _with_preset(bundle: Bundle, role: Role, tower: Tower, preset: TextPreset) -> Tower:
    """The tower behind a tokenizer with another preset."""
    manifest = bundle.tower(role)
    settings = dataclasses.replace(manifest.tokenizer, text_preset=preset)
    file = bundle.file(manifest, manifest.tokenizer_file)
    return dataclasses.replace(tower, tokenizer=TowerTokenizer.load(file, settings, manifest.max_tokens))


def _row_chunks(count: int) -> Iterator[range]:
    for start in range(0, count, CHUNK_PASSAGES):
        yield range(start, min(start + CHUNK_PASSAGES, count))


def _tokenize(tower: Tower, passages: Passages, rows: range) -> list[TokenizedText]:
    return tower.tokenizer.passages([(passage.title, passage.text) for passage in passages.get(rows)])


def _changed(passages: Passages, own: Tower, other: Tower) -> tuple[list[int], list[TokenizedText]]:
    """The rows that read differently to `other`, and how it reads them."""
    changed = [
        (row, read)
        for rows in _row_chunks(len(passages))
        for row, before, read in zip(
            rows, _tokenize(own, passages, rows), _tokenize(other, passages, rows), strict=True
        )
        if _differ(before, read)
    ]
    return [row for row, _ in changed], [read for _, read in changed]


def _differ(one: TokenizedText, other: TokenizedText) -> bool:
    return not np.array_equal(one.ids, other.ids)


def _searcher(
    bundle: Bundle, tower: Tower, passages: Passages, vectors: Embeddings, chosen: Choice, threads: int, scratch: Path
) -> LocalSearcher:
    """Exact search over vectors, as over an index of them."""
    file = scratch / VECTORS
    with file.open("wb") as stream:
        stream.write(header(vectors.shape[1], len(vectors)))
        stream.write(np.ascontiguousarray(vectors, dtype="<f4").data)
    max_norm = float(np.linalg.norm(vectors.astype(np.float64), axis=1).max())
    index = FlatIndex(file, passages.id_rank, max_norm, threads)
    file.unlink()  # it stays mapped
    searched = Searched(
        bundle=bundle.manifest.name,
        variant=chosen.question,
        passage_variant=chosen.passage,
        index="",
        generation="",
        passage_count=len(passages),
        question_tower_id=bundle.tower("question_encoder").tower_id,
        context_tower_id=bundle.tower("context_encoder").tower_id,
        program=f"narrows {narrows.__version__}",
    )
    return LocalSearcher(tower, index, passages, searched, threads)
