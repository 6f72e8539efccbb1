"""`narrows passages split`: documents -> a file of passages."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import check_output

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    group = commands.add_parser("passages", help="cut documents into passages")
    actions = group.add_subparsers(title="actions", required=True, metavar="ACTION")
    split = actions.add_parser(
        "split",
        help="cut documents into passages of 100 words",
        description="Cuts documents into disjoint passages of 100 words, each with its document's title, as DPR's "
        "Wikipedia was cut. Words are what lies between white space; spacing and punctuation inside a passage stay.",
        epilog="""documents:
  DIR       .txt and .md files, with subdirectories but not hidden ones; the title is a .md file's first heading,
            else the file's name
  *.jsonl   or .jsonl.gz: one object a line: {"id": "...", "title": "...", "text": "..."}

examples:
  narrows passages split --documents ./handbook --out handbook.tsv
  narrows passages split --documents articles.jsonl.gz --out articles.tsv.gz --ids running
  narrows index build --bundle my.bundle --passages handbook.tsv --out handbook.index""",
    )
    split.add_argument("--documents", required=True, type=Path, metavar="FILE|DIR", help="what to cut")
    split.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="passages: .tsv or .jsonl, or .gz of them"
    )
    split.add_argument("--words", type=_words, default=100, metavar="N", help="words in a passage (default: 100)")
    split.add_argument(
        "--last",
        choices=("keep", "fill", "drop"),
        default="keep",
        help="what becomes of the rest at a document's end: a short passage, one filled up with the words that the "
        "document begins with, or none (default: keep)",
    )
    split.add_argument(
        "--ids",
        choices=("document", "running"),
        default="document",
        help="<document's id>-<n>, or numbers from 1 over all (default: document)",
    )
    split.add_argument("--replace", action="store_true", help="write over --out if it exists")
    split.add_argument("--json", action="store_true", help="print the counts as JSON")
    split.set_defaults(run=run_split)


def _words(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError("must be 1 to 100000")
    return number


def run_split(options: argparse.Namespace) -> int:
    """Splits, with progress on stderr and the counts on stdout."""
    from tqdm import tqdm

    from narrows import passage_files
    from narrows.errors import PassageFileError
    from narrows_tools import documents

    check_output(options.out)
    if options.out.exists() and not options.replace:
        raise PassageFileError(f"{options.out} exists already: --replace writes over it, or choose another --out")
    counts = documents.Counts()
    passages = documents.split(options.documents, options.words, options.last, options.ids, counts)
    with passage_files.writer(options.out) as write:
        for passage in tqdm(passages, desc="splitting", unit=" passages", file=sys.stderr):
            write(passage)
        if counts.passages == 0:
            raise PassageFileError(f"{options.documents}: no passages in {counts.documents} documents")
    if options.json:
        print(json.dumps({"passages_file": str(options.out), **asdict(counts)}))
        return 0
    print(f"wrote {options.out}: {counts.passages} passages of {counts.documents} documents")
    if counts.empty_documents:
        print(f"{counts.empty_documents} documents gave none: they have no text, or --last drop left it out")
    if counts.quote_ended and ".tsv" in options.out.suffixes:
        print(
            f"{counts.quote_ended} passages begin or end with a quotation mark: whoever reads a .tsv drops it, as DPR "
            "does; a .jsonl keeps it"
        )
    return 0
