r"""docs/quality.md, from one command: what variants and presets cost in retrieval, beside chance and the possible.

    python -m benchmarks.quality --bundle minilm.bundle --bundle tiny.bundle \
        --data en=en/passages.tsv.gz,en/questions.jsonl.gz --data es=es/passages.tsv.gz,es/questions.jsonl.gz \
        --scratch .quality --out docs/quality.md

Each variant of each bundle encodes each language's passages into an index in --scratch, and goes on there when started
again; the presets hold the same vectors of fp32. Questions are sampled with a fixed seed.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from narrows import durable
from narrows.bundle import REFERENCE_VARIANT, Bundle, open_bundle
from narrows.errors import QuestionFileError
from narrows.index import store
from narrows.index.build import BuildRequest, build_index
from narrows.index.merge import merge_indexes
from narrows.index.presets import PRESETS, Wanted
from narrows.index.progress import Progress
from narrows.index.target import Target
from narrows.process import available_cores
from narrows_tools.cli.index_progress import Bars
from narrows_tools.cli.index_vectors import described_search
from narrows_tools.evaluation import retrieval
from narrows_tools.evaluation.metrics import Accuracies
from narrows_tools.evaluation.questions import Question, read_set, sample
from narrows_tools.evaluation.result import Asked, EvaluationResult
from narrows_tools.evaluation.search import LocalSearcher

DEPTH = 100
CUTOFFS = (1, 5, 20, 100)
SEED = 0
HEAD = """# Quality

What variants and presets cost in retrieval. Written by `python -m benchmarks.quality` (`--help` has the whole command);
every number is measured, on a CPU. A question counts at k if one of its k best passages is the paragraph that it was
written for (*positive*), or has an answer in its text (*answer*; DPR's matching, which is generous here, as the row of
chance shows). `±` is half the 95 % interval of positive 20. Two rows are of the same questions, so their difference is
known better than that (`narrows eval compare`).

These sets compare rows with one another, not with the paper: 16,176 English and 8,462 Spanish passages are another task
than 21 million. MiniLM was trained on such questions, and the DPR pair (tiny) only on half of SQuAD's development
articles, which these questions leave out; compare each with its own fp32 only. Both are English towers: the Spanish
rows say what quantization and presets do to texts that a tower knows little of, and nothing of Spanish towers.

fp16 is a variant for GPUs, computed here by a CPU: its rows say what rounding costs, and nothing of its speed.
"""


@dataclass(frozen=True, slots=True)
class Language:
    """A set of passages and questions."""

    name: str
    passages: Path
    questions: Path


@dataclass(frozen=True, slots=True)
class Line:
    """A row of a table."""

    label: str
    result: EvaluationResult


def main() -> int:
    """Builds, evaluates and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", required=True)
    parser.add_argument("--data", type=_language, action="append", required=True, metavar="NAME=PASSAGES,QUESTIONS")
    parser.add_argument("--where", default="seen_by_tiny_dpr", help="leave out questions whose line has this key true")
    parser.add_argument("--variants", nargs="+", help="of these, those that a bundle has (default: all that it has)")
    parser.add_argument("--limit", type=int, default=2000, help="questions of each language (default: 2000)")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.scratch.mkdir(exist_ok=True)
    parts = [HEAD]
    for language in options.data:
        chosen, asked = _questions(language, options.where, options.limit)
        for path in options.bundle:
            bundle = open_bundle(path)
            title = f"\n## {bundle.manifest.name}, {language.name}: {len(chosen)} questions\n"
            print(title, file=sys.stderr)
            lines = list(_lines(path, bundle, language, chosen, asked, options.scratch, options.variants))
            parts += [title, _table(lines)]
            durable.write_file(options.out, "\n".join(parts).encode())
    return 0


def _language(text: str) -> Language:
    name, _, files = text.partition("=")
    passages, _, questions = files.partition(",")
    if not questions:
        raise argparse.ArgumentTypeError("expected NAME=PASSAGES,QUESTIONS")
    return Language(name, Path(passages), Path(questions))


def _questions(language: Language, where: str, limit: int) -> tuple[list[Question], Asked]:
    try:
        found = read_set(language.questions, where={where: False})
    except QuestionFileError:  # a set without that key
        found = read_set(language.questions)
    chosen = sample(found.questions, min(limit, len(found.questions)), SEED)
    sha256 = durable.sha256_file(language.questions)
    return chosen, Asked(language.questions.name, sha256, {}, len(found.questions), limit, SEED, 0)


def _lines(
    path: Path,
    bundle: Bundle,
    language: Language,
    chosen: Sequence[Question],
    asked: Asked,
    scratch: Path,
    variants: Sequence[str] | None,
) -> Iterator[Line]:
    threads = available_cores()
    name = bundle.manifest.name
    flat = scratch / f"{name}-{language.name}-{REFERENCE_VARIANT}.index"
    for variant in bundle.tower("context_encoder").variants:
        if variants and variant not in variants:
            continue
        index = scratch / f"{name}-{language.name}-{variant}.index"
        if store.current_generation(index) is None:
            bars = Bars()
            build_index(bundle, BuildRequest(language.passages, variant), Target(index, index.stem, threads), bars)
            bars.close()
        label = variant if variant == REFERENCE_VARIANT else f"{variant} (questions and passages)"
        yield Line(label, _evaluated(path, index, variant, chosen, asked))
    for preset in PRESETS:
        if preset == "flat":
            continue
        index = scratch / f"{name}-{language.name}-{preset}.index"
        if store.current_generation(index) is None:
            target = Target(index, index.stem, threads, wanted=Wanted(preset))
            merge_indexes(bundle, [flat], target, Progress())
        plan = store.read_manifest(index)[1].plan
        yield Line(f"fp32, {preset}{described_search(plan)}", _evaluated(path, index, REFERENCE_VARIANT, chosen, asked))


def _evaluated(bundle: Path, index: Path, variant: str, chosen: Sequence[Question], asked: Asked) -> EvaluationResult:
    searcher = LocalSearcher.open(bundle, index, variant, available_cores())
    return retrieval.evaluate(searcher, chosen, asked, DEPTH, searcher.corpus())


def _table(lines: Sequence[Line]) -> str:
    head = "| | " + " | ".join(f"{kind} {k}" for kind in ("positive", "answer") for k in CUTOFFS) + " | ± |"
    rows = [head, "|---" * (2 * len(CUTOFFS) + 2) + "|"]
    first = lines[0].result.metrics
    for line in lines:
        metrics = line.result.metrics
        cells = [
            f"{100 * (kind.accuracy[k]):.1f}" if kind else ""
            for kind in (metrics.by_positives, metrics.by_answers)
            for k in CUTOFFS
        ]
        rows.append(f"| {line.label} | {' | '.join(cells)} | {_half_width(metrics.by_positives):.1f} |")
    kinds = [kind for kind in (first.by_positives, first.by_answers) if kind]
    chance = [f"{100 * (kind.random or {}).get(k, 0):.1f}" for kind in kinds for k in CUTOFFS]
    ceiling = [f"{100 * (kind.ceiling or 0):.1f}" for kind in kinds for _ in CUTOFFS]
    rows += [f"| *random ranking* | {' | '.join(chance)} | |", f"| *ceiling* | {' | '.join(ceiling)} | |"]
    return "\n".join(rows) + "\n"


def _half_width(kind: Accuracies | None) -> float:
    return 50 * (kind.interval[20][1] - kind.interval[20][0]) if kind else 0.0


if __name__ == "__main__":
    sys.exit(main())
