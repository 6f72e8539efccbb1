"""`narrows eval reader`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import check_output, natural, positive, threads
from narrows_tools.cli.bars import bars
from narrows_tools.cli.tables import print_rows

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

RULES = ("dpr", "hugging-face")  # narrows.spans says what they are


def add(actions: "Commands") -> None:
    """Adds the command and its arguments."""
    command = actions.add_parser(
        "reader",
        help="exact match and F1 of a bundle's reader on retrieved passages",
        description="Reads the passages that a retrieval found for each question, and judges the best answer: the best "
        "words of the passage that the reader finds the most relevant. Each row of the table is what it would have "
        "answered from so many passages.",
        epilog="""example:
  narrows eval retrieval --questions nq-test.qa.csv --server localhost:50051 --depth 50 --out-dpr found.json
  narrows eval reader --bundle nq.bundle --rankings found.json

exact match  the answer is one of the right ones, but for case, punctuation and a, an, the
F1           the words that it shares with the nearest right one""",
    )
    command.add_argument("--bundle", required=True, type=Path, help="bundle that was exported with --reader")
    command.add_argument(
        "--rankings",
        required=True,
        type=Path,
        metavar="FILE",
        help="DPR's retriever results (JSON), as `narrows eval retrieval --out-dpr` writes them",
    )
    command.add_argument(
        "--passages", type=positive, default=50, metavar="N", help="passages to read for a question (default: 50)"
    )
    command.add_argument(
        "--rule",
        choices=RULES,
        default="dpr",
        help="which words may be an answer: of at most 10 tokens in the text, made whole words (dpr, the default), or "
        "of at most 64 in title and text, as transformers' DPRReaderTokenizer decodes them (hugging-face)",
    )
    command.add_argument("--limit", type=positive, metavar="N", help="only so many questions, drawn by --seed")
    command.add_argument("--seed", type=natural, default=0, help="which ones --limit draws (default: 0)")
    command.add_argument("--threads", type=threads, default=0, metavar="N", help="threads (default: all cores)")
    command.add_argument("--out", type=Path, metavar="FILE", help="write each question's answers there, as JSON")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Reads and judges, with a bar on stderr."""
    from narrows import durable
    from narrows.bundle import open_bundle
    from narrows.process import available_cores
    from narrows.reader import Reader
    from narrows.spans import RULES as SPAN_RULES
    from narrows_tools.evaluation import reading
    from narrows_tools.evaluation.questions import sample

    if options.out:
        check_output(options.out)
    bundle = open_bundle(options.bundle)
    reader = Reader(bundle, "fp32", options.threads or available_cores())
    rankings = reading.read_rankings(options.rankings)
    count = len(rankings)
    if options.limit:
        rankings = sample(rankings, options.limit, options.seed)
    with bars() as start:
        advance = start("reading", len(rankings))
        rule = SPAN_RULES[options.rule]
        judged = list(reading.judge(reader, rankings, options.passages, rule, advance))
    scores = reading.summarize(judged)
    if options.out:
        rows = [
            {"question": ranked.question, "answers": ranked.answers, "found": [asdict(item) for item in items]}
            for ranked, items in zip(rankings, judged, strict=True)
        ]
        durable.write_file(options.out, json.dumps(rows, ensure_ascii=False, indent=1).encode())
    if options.json:
        asked = {
            "bundle": bundle.manifest.name,
            "reader_id": bundle.tower("reader").tower_id,
            "rankings": options.rankings.name,
            "rankings_sha256": durable.sha256_file(options.rankings),
            "questions_in_file": count,
            "rule": options.rule,
            "passages": options.passages,
            "seed": options.seed if options.limit else None,
        }
        print(json.dumps({**asked, "scores": [asdict(row) for row in scores]}))
        return 0
    table = [("passages", "exact match", "95 %", "F1")]
    for row in scores:
        low, high = row.exact_match_interval
        table.append((str(row.passages), f"{row.exact_match:.2%}", f"{low:.2%} to {high:.2%}", f"{100 * row.f1:.2f}"))
    print(f"{scores[0].questions} questions, read by {bundle.manifest.name} (rule {options.rule})\n")
    print_rows(table)
    return 0
