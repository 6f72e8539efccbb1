"""What the activations of a graph hold on real texts, and which texts those are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnxruntime

from narrows import durable, passage_files
from narrows.errors import GateDataError
from narrows.padding import ATTENTION_MASK, INPUT_IDS, pad_right
from narrows.quality import DataFile
from narrows.tokenizer import TokenIds, TowerTokenizer
from narrows_export import corpus
from narrows_export.gate_data import holds_passages
from narrows_export.quantize import Floats, products
from narrows_tools.evaluation import questions as question_files

T = TypeVar("T")

ROWS = 4096  # tokens kept of each activation: about 6 MB for 384 channels; 1 GB of BERT-base in all
TEXTS = 400  # questions, and passages, that are looked at
MIN_TEXTS = 50  # of each: a search sets its scales by half of them


@dataclass(frozen=True, slots=True)
class Calibration:
    """Texts to observe activations on, and the files that they are from."""

    questions: tuple[str, ...]
    passages: tuple[tuple[str, str], ...]  # title and text
    files: tuple[DataFile, ...]

    def half(self, number: int) -> "Calibration":
        """Every second text: half 0 to calibrate with, half 1 to see how that did."""
        return Calibration(self.questions[number::2], self.passages[number::2], self.files)

    def token_ids(self, tokenizer: TowerTokenizer, directory: str) -> list[TokenIds]:
        """The texts as the tower in this directory of a bundle sees them."""
        encoded = [] if directory == "context_encoder" else tokenizer.questions(self.questions)
        encoded += [] if directory == "question_encoder" else tokenizer.passages(self.passages)
        return [text.ids for text in encoded]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the products of a graph read: by name, some rows, float32 (rows, channels), and how many there were."""

    rows: dict[str, Floats]
    counts: dict[str, int]
    texts: int

    def in_one_row(self, model: onnx.ModelProto) -> tuple[str, ...]:
        """The products that read one row a text: they cost nothing, and left in float they lose nothing."""
        return tuple(product.name for product in products(model) if self.counts[product.source] == self.texts)


def own_files() -> tuple[Path, ...]:
    """The files that ship with the exporter."""
    kinds = (corpus.passages_file, corpus.questions_file)
    return tuple(file(language) for file in kinds for language in corpus.LANGUAGES)


def files_read(files: Sequence[Path]) -> tuple[Path, ...]:
    """These files of questions or passages, and our own of a kind that none of them holds."""
    kinds = {holds_passages(file) for file in files}
    return (*files, *(own for own in own_files() if holds_passages(own) not in kinds))


def read(files: Sequence[Path]) -> Calibration:
    """Reads files of questions or passages, up to TEXTS of each kind, evenly; a kind that none holds is our own.

    Raises:
        QuestionFileError, PassageFileError, GateDataError: a file breaks its format or is empty, or there are fewer
            than MIN_TEXTS of a kind.
    """
    questions: list[str] = []
    passages: list[tuple[str, str]] = []
    described = []
    for file in files_read(files):
        before = len(questions) + len(passages)
        if holds_passages(file):
            passages += [(row.passage.title, row.passage.text) for row in passage_files.read(file)]
        else:
            questions += [question.text for question in question_files.read(file)]
        count = len(questions) + len(passages) - before
        if not count:
            raise GateDataError(f"{file} holds no texts to calibrate on; give it some, or leave --calibration out")
        described.append(DataFile(file.name, durable.sha256_file(file), count))
    for what, count in (("questions", len(questions)), ("passages", len(passages))):
        if count < MIN_TEXTS:
            raise GateDataError(
                f"int8 is calibrated on at least {MIN_TEXTS} {what}, and {', '.join(map(str, files))} has {count}; "
                f"give more, or no file of {what} for those that ship with the exporter"
            )
    return Calibration(_spread(questions), _spread(passages), tuple(described))


def _spread(texts: Sequence[T]) -> tuple[T, ...]:
    places = np.linspace(0, len(texts), min(TEXTS, len(texts)), endpoint=False).astype(int)
    return tuple(texts[place] for place in places)


def observe(file: Path, texts: Sequence[TokenIds], pad_id: int, threads: int) -> Seen:
    """Runs a fused graph on texts, each alone, and keeps what its products read: about ROWS rows of each, evenly."""
    model = onnx.load(file)
    sources = list(dict.fromkeys(product.source for product in products(model)))
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in sources
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    step = max(1, round(sum(len(ids) for ids in texts) / ROWS))
    kept: dict[str, list[Floats]] = {name: [] for name in sources}
    counts = dict.fromkeys(sources, 0)
    for number, ids in enumerate(texts):
        input_ids, mask = pad_right([ids], pad_id)
        outputs = session.run(sources, {INPUT_IDS: input_ids, ATTENTION_MASK: mask})
        for name, values in zip(sources, outputs, strict=True):
            rows = values.reshape(-1, values.shape[-1])
            counts[name] += len(rows)
            kept[name].append(rows if len(rows) == 1 else rows[number % step :: step])
    return Seen({name: np.concatenate(parts) for name, parts in kept.items()}, counts, len(texts))
