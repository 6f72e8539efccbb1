"""`narrows search`: asks a server from the command line."""

import argparse
import json
import shutil
import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING

from narrows.client import Client
from narrows.messages import SearchResult

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SNIPPET_LINES = 3


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    command = commands.add_parser(
        "search",
        help="ask a running server",
        description="Asks a server and prints the best passages of each question.",
        epilog='example: narrows search "who discovered penicillin?" -k 3',
    )
    command.add_argument("questions", nargs="+", metavar="QUESTION")
    command.add_argument("-k", type=int, default=5, help="passages for each question (default: 5)")
    command.add_argument("--server", default="127.0.0.1:50051", metavar="HOST:PORT", help="default: 127.0.0.1:50051")
    command.add_argument("--corpus", default="", help="name of the index (default: the only one)")
    command.add_argument("--timeout", type=float, default=10.0, metavar="S", help="deadline in seconds (default: 10)")
    command.add_argument("--json", action="store_true", help="print one JSON object a question")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Searches and prints."""
    with Client(options.server, timeout_s=options.timeout) as client:
        results = client.search(options.questions, k=options.k, corpus=options.corpus)
    for question, result in zip(options.questions, results, strict=True):
        if options.json:
            hits = [asdict(hit) for hit in result.hits]
            print(json.dumps({"question": question, "hits": hits, "served": asdict(result.served)}, ensure_ascii=False))
        else:
            print_result(question, result)
    return 0


def print_result(question: str, result: SearchResult) -> None:
    """Prints the hits readably: rank, score, title, the beginning of the text."""
    width = max(20, min(shutil.get_terminal_size().columns, 120) - 6)
    timings = result.served.timings
    print(f"\n{question}")
    for rank, hit in enumerate(result, start=1):
        print(f"{rank:>3}. {hit.score:8.3f}  {hit.title or hit.id}  [{hit.id}]")
        lines = textwrap.wrap(hit.text, width, max_lines=SNIPPET_LINES, placeholder=" ...")
        print(textwrap.indent("\n".join(lines), "      "))
    print(
        f"      tokenize {timings.tokenize_ms:.1f}, queue {timings.queue_ms:.1f}, encode {timings.encode_ms:.1f}, "
        f"search {timings.search_ms:.1f}, fetch {timings.fetch_ms:.1f} ms"
    )
