"""Texts -> embeddings by ONNX Runtime: what a user of mosec, LitServe or Triton writes into a worker.

It is the graph and the tokenizer file that Narrows serves, with the settings that suit a server on few cores: as many
threads as it has cores, none that spins, a batch padded to its longest text.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer


class OnnxEncoder:
    """One session and its tokenizer."""

    def __init__(self, model: Path, tokenizer: Path, max_tokens: int, threads: int) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        # The file may ask for padding to a fixed length, at which a short question costs seven times as much.
        padding = self._tokenizer.padding or {}
        self._tokenizer.enable_padding(pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
        self._tokenizer.enable_truncation(max_tokens)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embeds texts in one batch: float32 (texts, dim)."""
        encodings = self._tokenizer.encode_batch(list(texts))
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        result: npt.NDArray[np.float32] = self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that every server here takes; workers, which are other processes, read them from ENCODER."""
    parser.add_argument("--model", type=Path, required=True, help="ONNX graph: input_ids, attention_mask -> embedding")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--max-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="threads of a session")
    parser.add_argument("--port", type=int, required=True)


def hand_to_workers(options: argparse.Namespace) -> None:
    """Leaves the encoder's arguments where processes started from this one find them."""
    os.environ["ENCODER"] = "\n".join(
        (str(options.model), str(options.tokenizer), str(options.max_tokens), str(options.threads))
    )


def from_parent() -> OnnxEncoder:
    """The encoder, in a process started after `hand_to_workers`."""
    model, tokenizer, max_tokens, threads = os.environ["ENCODER"].split("\n")
    return OnnxEncoder(Path(model), Path(tokenizer), int(max_tokens), int(threads))
