"""`narrows eval rank`."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import natural, positive, threads
from narrows_tools.cli.bars import bars

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MAX_BATCH = 4096  # a batch's scores are held at once

EPILOG = """examples:
  narrows eval rank --bundle nq.bundle --data biencoder-nq-dev.json.gz
  narrows eval rank --bundle es.bundle --data squad-es-dev.json --report batches
  narrows eval rank --bundle nq.bundle --data biencoder-nq-dev.json --report rank --questions 1000 --json

the file, plain or gzipped, is DPR's:
  [{"question": ..., "positive_ctxs": [{"title": ..., "text": ...}], "negative_ctxs": [...],
    "hard_negative_ctxs": [...]}]
  The first positive passage is the gold one. Questions without any are left out and counted.

the pool: the gold passage and the first negatives of every question, all of them ranked for every question
  average rank      passages of the pool that score above the gold one; 0 is best
  ties              passages that score the same, copies of the gold one among them; not in the rank
  gold first        questions with rank 0

the batches: --batch questions, drawn in a random order, against all gold passages and hard negatives of the batch
  loss              mean over questions of -log softmax(scores) at the gold passage (NLL)
  batch means over  what FARM and the Spanish cards call loss: the batches' mean NLLs added up, and divided by the
    questions       number of questions; about the loss divided by --batch
  pairs             every question with every context of its batch; the one that scores highest is the predicted one
  accuracy          pairs that are told rightly; high even for bad towers, as nearly all pairs are of the class other
  F1                of the class gold; the same as the share of questions that are right
  acc_and_f1        mean of both
  average rank      contexts of the batch before the gold one; of equal scores the first in the batch is first
  copies masked     without the copies of a question's own gold passage in its batch, which it cannot tell from it"""


def add(actions: "Commands") -> None:
    """Adds the command and its arguments."""
    command = actions.add_parser(
        "rank",
        help="DPR's average rank, and the metrics in batches that DPR cards report",
        description="Encodes the questions and passages of a DPR biencoder file, without a server or an index, and "
        "says how far ahead of the other passages the gold one comes.",
        epilog=EPILOG,
    )
    command.add_argument("--bundle", required=True, type=Path)
    command.add_argument(
        "--data", required=True, type=Path, metavar="FILE", help="DPR's biencoder file: .json, .json.gz"
    )
    command.add_argument(
        "--report", choices=("rank", "batches", "both"), default="both", help="what to report (default: both)"
    )
    command.add_argument(
        "--questions",
        type=positive,
        metavar="N",
        help="only the first N questions (default: 10000 for the pool, as DPR does, and all for the batches)",
    )
    command.add_argument(
        "--hard-negatives", type=natural, default=30, metavar="N", help="of a question for the pool (default: 30)"
    )
    command.add_argument(
        "--other-negatives", type=natural, default=30, metavar="N", help="of a question for the pool (default: 30)"
    )
    command.add_argument("--batch", type=_batch, default=32, metavar="N", help="questions in a batch (default: 32)")
    command.add_argument(
        "--seed", type=natural, default=0, metavar="S", help="of the order that batches are drawn in (default: 0)"
    )
    command.add_argument("--variant", default="", metavar="V", help="the variant of both encoders (default: fp32)")
    command.add_argument("--threads", type=threads, default=0, metavar="N", help="threads (default: all cores)")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.set_defaults(run=run)


def _batch(text: str) -> int:
    size = int(text)
    if not 1 <= size <= MAX_BATCH:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_BATCH}")
    return size


def run(options: argparse.Namespace) -> int:
    """Makes the reports, with progress on stderr and the tables, or JSON, on stdout."""
    from narrows import variants
    from narrows.bundle import open_bundle
    from narrows.process import available_cores
    from narrows_tools.evaluation import ranks
    from narrows_tools.evaluation.rank_tables import rank_table

    pool = ranks.PoolSettings(options.questions or ranks.DPR_QUESTIONS, options.hard_negatives, options.other_negatives)
    batches = ranks.BatchSettings(options.questions, options.batch, options.seed)
    bundle = open_bundle(options.bundle)
    chosen = variants.choose(bundle.manifest, None, options.variant)
    if chosen.warning:
        print(f"WARNING: {chosen.warning}", file=sys.stderr)
    with bars() as start:
        result = ranks.evaluate(
            bundle,
            options.data,
            pool if options.report != "batches" else None,
            batches if options.report != "rank" else None,
            chosen,
            options.threads or available_cores(),
            start,
        )
    print(json.dumps(asdict(result), ensure_ascii=False) if options.json else rank_table(result))
    return 0
