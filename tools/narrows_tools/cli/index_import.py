"""`narrows index import`: embeddings that DPR's own scripts or Pyserini made, without encoding again."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from narrows_tools.cli.arguments import natural, positive
from narrows_tools.cli.index_target import add_target_arguments, print_report, target
from narrows_tools.cli.index_vectors import add_vector_arguments

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

EPILOG = """embeddings, any one of:
  PREFIX_0 PREFIX_1 ...          pickles of generate_dense_embeddings.py, or the directory that holds nothing else
  NAME.index.dpr                 a FAISS index of DPR (flat or HNSW), with NAME.index_meta.dpr beside it
  DIRECTORY                      Pyserini's: index and docid

example:
  narrows index import --bundle nq.bundle --passages psgs_w100.tsv.gz --embeddings wikipedia_passages_* \\
    --id-prefix wiki: --out wiki.index"""


def add(actions: "Commands") -> None:
    """Adds it to the actions of `narrows index`."""
    command = actions.add_parser(
        "import",
        help="make an index of embeddings that were made elsewhere",
        description="Makes an index of DPR's pickled embeddings, of DPR's FAISS indexes, or of Pyserini's, without "
        "encoding again. Nothing in a pickle is run. A sample of the passages is encoded by the bundle's context "
        "encoder; the index is made only if every one of them agrees with its imported vector.",
        epilog=EPILOG,
    )
    command.add_argument("--bundle", required=True, type=Path, help="bundle of the towers that made the embeddings")
    command.add_argument(
        "--passages", required=True, type=Path, metavar="FILE", help="the passages: .tsv or .jsonl, or .gz of them"
    )
    command.add_argument(
        "--embeddings", required=True, type=Path, nargs="+", metavar="PATH", help="files or directories, see below"
    )
    command.add_argument(
        "--id-prefix", default="", metavar="P", help="what their ids have before the passages', such as wiki:"
    )
    command.add_argument(
        "--verify-sample", type=positive, default=200, metavar="N", help="passages to encode again (default: 200)"
    )
    command.add_argument("--seed", type=natural, default=0, help="which passages the sample holds (default: 0)")
    command.add_argument("--skip-bad", action="store_true", help="leave bad rows of the passages out and count them")
    add_target_arguments(command)
    add_vector_arguments(command)
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Imports, with progress on stderr and the report on stdout."""
    from narrows.bundle import open_bundle
    from narrows.index.importing import ImportRequest, import_index
    from narrows_tools.cli.index_progress import Bars

    request = ImportRequest(
        embeddings=options.embeddings,
        passages=options.passages,
        id_prefix=options.id_prefix,
        skip_bad=options.skip_bad,
        sample=options.verify_sample,
        seed=options.seed,
    )
    bars = Bars()
    try:
        report, agreement = import_index(open_bundle(options.bundle), request, target(options), bars)
    finally:
        bars.close()
    print_report(report, options.json, also={"agreement": asdict(agreement) if agreement else None})
    if agreement and not options.json:
        print(
            f"{agreement.sample} passages encoded again agree: cosine {agreement.mean_cosine:.6f} "
            f"(lowest {agreement.lowest_cosine:.6f}), lengths within {agreement.largest_norm_difference:.2%}"
        )
    return 0
