"""`narrows export`: DPR checkpoints -> a bundle."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from narrows.errors import ExportError
from narrows_tools.cli.arguments import TEXT_PRESETS, add_gate_arguments, add_int8_argument, gate_request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from narrows.bundle import SegmentIds
    from narrows_export.export import ReaderRequest
    from narrows_export.gate_data import GateData
    from narrows_export.report import Int8Request

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: "Commands") -> None:
    """Adds the command and its arguments."""
    command = commands.add_parser(
        "export",
        help="turn two DPR checkpoints into a bundle of ONNX towers",
        description="Exports a question encoder and a context encoder to optimized ONNX graphs, checks them against "
        "PyTorch, and writes a bundle. Needs narrows[export].",
        epilog="""examples:
  narrows export --question-encoder facebook/dpr-question_encoder-single-nq-base \\
                 --context-encoder facebook/dpr-ctx_encoder-single-nq-base --out nq.bundle
  narrows export --question-encoder ./my-question-tower --context-encoder ./my-context-tower --out my.bundle
  narrows export --question-encoder bert-base-encoder.cp --context-encoder bert-base-encoder.cp \\
                 --tokenizer bert-base-uncased --out nq.bundle
  narrows export --question-encoder ./all-MiniLM-L6-v2 --context-encoder ./all-MiniLM-L6-v2 --out minilm.bundle \\
                 --int8 auto --gate-questions questions.jsonl --gate-passages passages.tsv

The gate judges every pair of variants by what it finds (see narrows bundle gate --help), and may also run later.

DPR's published weights are licensed CC-BY-NC-4.0: not for commercial use.""",
    )
    command.add_argument(
        "--question-encoder",
        required=True,
        metavar="SRC",
        help="directory, hub id, or .cp file of the question encoder",
    )
    command.add_argument(
        "--context-encoder",
        required=True,
        metavar="SRC",
        help="the same of the context encoder; a sentence-transformers model, or a .cp file, may be both",
    )
    command.add_argument("--reader", metavar="SRC", help="the same of a reader, to go into the bundle as well (fp32)")
    command.add_argument(
        "--reader-segments",
        choices=("zero", "pair"),
        help="the segment ids that the reader was trained with; a checkpoint does not say. zero: all 0, as "
        "transformers has them, and as the published readers were trained. pair: 0 for the question and 1 for title "
        "and text, as DPR's own code trains readers since 2021 (default: zero)",
    )
    command.add_argument(
        "--reader-max-tokens",
        type=int,
        metavar="N",
        help="cut what the reader reads, question, title and text, at N tokens (default: the checkpoint's; 350 where "
        "it states none, as DPR trains readers)",
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="BUNDLE", help="directory to write; must not exist yet"
    )
    command.add_argument(
        "--tokenizer",
        metavar="SRC",
        help="for DPR's own .cp files: directory or hub id of the tokenizer and BERT configuration that they were "
        "trained with (default: the one that the checkpoint names)",
    )
    command.add_argument("--name", help="the bundle's name in replies (default: the name of --out without suffix)")
    command.add_argument("--revision", metavar="R", help="hub revision (branch, tag or commit) of both checkpoints")
    command.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help="cut the encoders' texts, questions and passages, at N tokens (default: the checkpoint's; 256 for DPR)",
    )
    command.add_argument(
        "--text-preset",
        choices=TEXT_PRESETS,
        help="what happens to texts before they are tokenized; it should be what the towers were trained with "
        "(default: hf, texts as they are; dpr-head for the questions of a .cp file whose settings DPR's code saved in "
        "the form that it has since 2021; docs/user.md describes each)",
    )
    command.add_argument(
        "--variants",
        default="fp32",
        metavar="LIST",
        help="numeric variants to make, such as fp32,fp16,int8 (default: fp32, which is always made)",
    )
    command.add_argument(
        "--allow-unpaired", action="store_true", help="write the bundle even if the towers fail the pair check"
    )
    add_int8_argument(command)
    add_gate_arguments(command, required=False)
    command.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    command.set_defaults(run=run, extra="export")


def other_variants(names: str) -> tuple[str, ...]:
    """The variants of a comma-separated list besides fp32, each once, in order."""
    listed = dict.fromkeys(name.strip() for name in names.split(","))
    return tuple(name for name in listed if name not in ("", "fp32"))


def run(options: argparse.Namespace) -> int:
    """Exports. The exporter is imported here, so that the other commands never need torch."""
    from narrows_export import report
    from narrows_export.export import ExportRequest

    request = ExportRequest(
        question_encoder=options.question_encoder,
        context_encoder=options.context_encoder,
        out=options.out,
        name=options.name or options.out.resolve().stem,
        revision=options.revision,
        max_tokens=options.max_tokens,
        text_preset=options.text_preset,
        allow_unpaired=options.allow_unpaired,
        variants=tuple(name for name in other_variants(options.variants) if name != "int8"),
        reader=reader_request(options.reader, options.reader_segments, options.reader_max_tokens),
        tokenizer=options.tokenizer,
    )
    int8 = options.int8 or ("default" if "int8" in other_variants(options.variants) else None)
    # Files are read first, so that a bad one is found before minutes of export.
    data = gate_data_of(options)
    return report.run(request, data, int8_request(int8, options.calibration, data), options.json)


def reader_request(source: str | None, segments: "SegmentIds | None", max_tokens: int | None) -> "ReaderRequest | None":
    """The reader to export, if any.

    Raises:
        ExportError: something is chosen for a reader, and there is none.
    """
    from narrows_export.export import ReaderRequest

    if source is None:
        if segments or max_tokens is not None:
            raise ExportError("--reader-segments and --reader-max-tokens are for a reader: give one as --reader")
        return None
    return ReaderRequest(source, segments or "zero", max_tokens)


def gate_data_of(options: argparse.Namespace) -> "GateData | None":
    """Reads what a gate is to judge with; None where no gate is asked for.

    Raises:
        ExportError: one is, and one of its two files is not named.
    """
    from narrows_export import gate_data

    files = (options.gate_questions, options.gate_passages)
    if not any((*files, options.gate_where, options.gate_limit, options.gate_language)):
        return None
    if not all(files):
        raise ExportError("a gate needs both --gate-questions and --gate-passages")
    return gate_data.read(gate_request(options))


def int8_request(how: str | None, calibration: "Sequence[Path]", data: "GateData | None") -> "Int8Request | None":
    """How int8 is to be made; reads the calibration texts.

    Raises:
        ExportError: there are some, and nothing to use them for.
    """
    if how is None:
        if calibration and not data:
            raise ExportError("--calibration is for int8 or for a gate, and neither is asked for")
        return None
    from narrows_export.report import Int8Request

    return Int8Request.read(calibration, data, auto=how == "auto")
