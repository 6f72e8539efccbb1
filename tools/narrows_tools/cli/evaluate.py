"""`narrows eval retrieval`, `compare` and `presets`; `rank` and `reader` are in files of their own."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.errors import SettingsError
from narrows_tools.cli import evaluate_rank, evaluate_reader
from narrows_tools.cli.arguments import check_output, condition, natural, positive, threads
from narrows_tools.cli.bars import bars

if TYPE_CHECKING:
    from narrows.passages import Passage
    from narrows_tools.evaluation.questions import Question
    from narrows_tools.evaluation.result import Asked

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

FORMATS = """question files, plain or gzipped:
  *.csv, *.tsv   DPR's qa files: question TAB Python list of answers
  *.jsonl        one object a line: {"id": ..., "question": ..., "answers": [...], "positive_passage_ids": [...]}
  *.json         SQuAD v1.1 or v2"""

RETRIEVAL_EXAMPLES = """examples:
  narrows eval retrieval --questions nq-test.qa.csv --server localhost:50051
  narrows eval retrieval --questions dev.jsonl --bundle nq.bundle --index wiki.index --limit 500 --save before.json
  narrows eval retrieval --questions dev.jsonl --bundle nq.bundle --index new.index --limit 500 --compare before.json
  narrows eval retrieval --questions trec-test.qa.csv --answers regex --server localhost:50051 --out-trec trec.run"""


def add(commands: "Commands") -> None:
    """Adds the commands and their arguments."""
    group = commands.add_parser("eval", help="judge the answers of a server or an index, or compare two")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")
    _add_retrieval(actions)
    _add_compare(actions)
    _add_presets(actions)
    evaluate_rank.add(actions)
    evaluate_reader.add(actions)


def _add_retrieval(actions: "Commands") -> None:
    command = actions.add_parser(
        "retrieval",
        help="top-k accuracy, MRR and nDCG on a file of questions",
        description="Asks every question and judges the passages found: by whether their text holds an answer, as "
        "DPR's published accuracies do, and by the ids of positive passages where the file gives them.",
        epilog=f"{RETRIEVAL_EXAMPLES}\n\n{FORMATS}",
    )
    _add_questions(command)
    system = command.add_argument_group("what to judge", "a running server, or a bundle and an index opened here")
    system.add_argument("--server", metavar="HOST:PORT", help="ask this server")
    system.add_argument("--corpus", default="", metavar="NAME", help="index of that server (default: the only one)")
    system.add_argument(
        "--timeout", type=float, default=60.0, metavar="S", help="deadline of a call to it in seconds (default: 60)"
    )
    system.add_argument("--bundle", type=Path, help="encode with this bundle, without a server")
    system.add_argument("--index", type=Path, help="search this index")
    _add_local(system)
    command.add_argument(
        "--passages",
        type=Path,
        metavar="FILE",
        help="the passages that a --server searches, for the rows of chance and ceiling (an --index has its own)",
    )
    command.add_argument("--no-counts", action="store_true", help="leave the rows of chance and ceiling out")
    output = command.add_argument_group("files to write")
    output.add_argument(
        "--save", type=Path, metavar="FILE", help="the result, for --compare and `narrows eval compare`"
    )
    output.add_argument(
        "--out-dpr", type=Path, metavar="FILE", help="the rankings as DPR's retriever writes them (JSON)"
    )
    output.add_argument("--out-trec", type=Path, metavar="FILE", help="the rankings as a TREC run")
    output.add_argument(
        "--out-pyserini", type=Path, metavar="FILE", help="the rankings for Pyserini's DPR evaluation (JSON)"
    )
    command.add_argument("--compare", type=Path, metavar="FILE", help="a saved result to compare this one with")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run_retrieval)


def _add_compare(actions: "Commands") -> None:
    command = actions.add_parser(
        "compare",
        help="compare two saved results, question by question",
        description="Second minus first, for every metric, with a 95 % interval that pairs the questions.",
        epilog="example: narrows eval compare fp32.json int8.json",
    )
    command.add_argument("first", type=Path, metavar="A.json")
    command.add_argument("second", type=Path, metavar="B.json")
    command.add_argument("--json", action="store_true", help="print the comparison as JSON")
    command.set_defaults(run=run_compare)


def _add_presets(actions: "Commands") -> None:
    command = actions.add_parser(
        "presets",
        help="what each text preset costs with a bundle",
        description="Judges every text preset with the same towers. The bundle's own comes first; the others are "
        "compared with it, and encode only the passages that they read differently.",
        epilog="example:\n  narrows eval presets --bundle nq.bundle --index wiki.index --questions nq-dev.qa.csv",
    )
    _add_questions(command)
    command.add_argument("--bundle", required=True, type=Path)
    corpus = command.add_mutually_exclusive_group(required=True)
    corpus.add_argument("--index", type=Path, help="an index filled by the bundle: its passages and vectors are used")
    corpus.add_argument("--passages", type=Path, metavar="FILE", help="passages, all of which are encoded first")
    _add_local(command)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run_presets)


def _add_questions(command: argparse.ArgumentParser) -> None:
    command.add_argument("--questions", required=True, type=Path, metavar="FILE", help="questions and their answers")
    command.add_argument(
        "--answers", choices=("string", "regex"), default="string", help="what the answers are (default: string)"
    )
    command.add_argument(
        "--where",
        action="append",
        default=[],
        type=condition,
        metavar="KEY=VALUE",
        help="only questions whose JSON line has this value (JSON, or else a string); may be repeated",
    )
    command.add_argument("--limit", type=positive, metavar="N", help="only so many questions, drawn at random")
    command.add_argument("--seed", type=natural, default=0, metavar="S", help="of that draw (default: 0)")
    command.add_argument(
        "-k", "--depth", type=positive, default=100, metavar="K", help="passages for each question (default: 100)"
    )


def _add_local(command: "argparse._ActionsContainer") -> None:
    command.add_argument(
        "--variant",
        default="",
        metavar="V",
        help="the question encoder's variant (default: the most faithful that passed with the index's own, or fp32)",
    )
    command.add_argument(
        "--threads", type=threads, default=0, metavar="N", help="threads, without a server (default: all cores)"
    )


def run_retrieval(options: argparse.Namespace) -> int:
    """Evaluates, with progress on stderr and the table, or JSON, on stdout."""
    _check(options)
    _import_extra()
    from narrows import passage_files
    from narrows.client import Client
    from narrows_tools.evaluation import retrieval, run_files
    from narrows_tools.evaluation.result import check_comparable, compare, load, save
    from narrows_tools.evaluation.search import LocalSearcher, Searcher, ServerSearcher
    from narrows_tools.evaluation.tables import comparison_table, result_table

    previous = load(options.compare) if options.compare else None
    questions, asked = _asked(options)
    if previous:  # rather than when all is done
        ids = [question.id for question in questions]
        check_comparable(previous, asked, ids, options.answers, options.depth)
    searcher: Searcher
    with ExitStack() as stack:
        corpus: Iterator[Passage] | None = None
        if options.server:
            searcher = ServerSearcher(stack.enter_context(Client(options.server, options.timeout)), options.corpus)
            if options.passages and not options.no_counts:
                corpus = (row.passage for row in passage_files.read(options.passages))
        else:
            searcher = LocalSearcher.open(options.bundle, options.index, options.variant, _threads(options))
            _warn(searcher.warning)
            corpus = None if options.no_counts else searcher.corpus()
        writers = [
            stack.enter_context(writer(path))
            for writer, path in (
                (run_files.dpr_file, options.out_dpr),
                (run_files.trec_file, options.out_trec),
                (run_files.pyserini_file, options.out_pyserini),
            )
            if path
        ]
        start = stack.enter_context(bars())
        result = retrieval.evaluate(searcher, questions, asked, options.depth, corpus, writers, start)
    if options.save:
        save(options.save, result)
    compared = compare(previous, result) if previous else []
    if options.json:
        shown = {**asdict(result), **({"compared": [asdict(item) for item in compared]} if previous else {})}
        print(json.dumps(shown, ensure_ascii=False))
        return 0
    print(result_table(result))
    if previous:
        print()
        print(comparison_table(compared, options.compare.name, "this run"))
    return 0


def run_compare(options: argparse.Namespace) -> int:
    """Compares two saved results."""
    _import_extra()
    from narrows_tools.evaluation.result import compare, load
    from narrows_tools.evaluation.tables import comparison_table

    compared = compare(load(options.first), load(options.second))
    if options.json:
        print(json.dumps([asdict(item) for item in compared]))
    else:
        print(comparison_table(compared, options.first.name, options.second.name))
    return 0


def run_presets(options: argparse.Namespace) -> int:
    """Evaluates every preset, with progress on stderr."""
    _import_extra()
    from narrows import variants
    from narrows.bundle import open_bundle
    from narrows.index.store import read_manifest
    from narrows_tools.evaluation import presets
    from narrows_tools.evaluation.tables import presets_table

    questions, asked = _asked(options)
    corpus = options.index or options.passages
    bundle = open_bundle(options.bundle)
    index_variant = read_manifest(options.index)[1].variant if options.index else None
    chosen = variants.choose(bundle.manifest, index_variant, options.variant)
    _warn(chosen.warning)
    with bars() as start:
        costs = presets.preset_costs(bundle, corpus, questions, options.depth, chosen, _threads(options), start)
    if options.json:
        print(json.dumps({"asked": asdict(asked), "presets": [asdict(cost) for cost in costs]}))
    else:
        print(presets_table(costs, len(questions)))
    return 0


def _import_extra() -> None:
    """Fails here, and so names this extra, where it is not installed."""
    import pytrec_eval  # noqa: F401
    import regex  # noqa: F401


def _check(options: argparse.Namespace) -> None:
    local = bool(options.bundle or options.index)
    if bool(options.server) == local or (local and not (options.bundle and options.index)):
        raise SettingsError("give either --server, or --bundle and --index together")
    files = [file for file in (options.save, options.out_dpr, options.out_trec, options.out_pyserini) if file]
    if len({file.resolve() for file in files}) < len(files):
        raise SettingsError("--save, --out-dpr, --out-trec and --out-pyserini need a file each")
    for file in files:
        check_output(file)
    if options.passages and not options.server:
        raise SettingsError("--passages goes with --server only: an --index has its own")
    if options.variant and options.server:
        raise SettingsError("--variant goes with --bundle only: a --server has its own")


def _warn(warning: str) -> None:
    if warning:
        print(f"WARNING: {warning}", file=sys.stderr)


def _threads(options: argparse.Namespace) -> int:
    from narrows.process import available_cores

    return options.threads or available_cores()


def _asked(options: argparse.Namespace) -> "tuple[list[Question], Asked]":
    from narrows import durable
    from narrows_tools.evaluation.questions import read_set, sample
    from narrows_tools.evaluation.result import Asked

    where = dict(options.where)
    found = read_set(options.questions, options.answers, where)
    questions = sample(found.questions, options.limit, options.seed) if options.limit else list(found.questions)
    drawn = len(questions) < len(found.questions)
    asked = Asked(
        options.questions.name,
        durable.sha256_file(options.questions),
        where,
        len(found.questions),
        options.limit if drawn else None,
        options.seed if drawn else None,
        found.impossible_count,
    )
    return questions, asked
