"""Token ids -> embeddings, through ONNX Runtime.

On a CPU the embedding of a text is the same, bit for bit, alone and in any batch (contract 2): the graphs are built
so (fp32 fused; CumSum for mean pooling) and the tests hold them to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from narrows.bundle import Bundle, Role
from narrows.errors import BundleError
from narrows.tokenizer import TokenIds

Embeddings = npt.NDArray[np.float32]

INPUT_IDS, ATTENTION_MASK, EMBEDDING = "input_ids", "attention_mask", "embedding"


@dataclass(frozen=True, slots=True)
class Golden:
    """Token ids and the embeddings that the exporting machine computed for them; kept in golden.fp32.npz."""

    token_ids: tuple[TokenIds, ...]
    embeddings: Embeddings  # (texts, dim)

    def save(self, file: Path) -> None:
        """Writes the file."""
        lengths = np.array([len(ids) for ids in self.token_ids], dtype=np.int64)
        np.savez(file, token_ids=np.concatenate(self.token_ids), lengths=lengths, embeddings=self.embeddings)

    @classmethod
    def load(cls, file: Path) -> "Golden":
        """Reads the file."""
        with np.load(file, allow_pickle=False) as arrays:
            token_ids = np.split(arrays["token_ids"], np.cumsum(arrays["lengths"])[:-1])
            return cls(tuple(token_ids), arrays["embeddings"])


def pad_right(token_ids: Sequence[TokenIds], pad_id: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns (input_ids, attention_mask), both int64 of shape (texts, tokens of the longest text)."""
    longest = max(len(ids) for ids in token_ids)
    input_ids = np.full((len(token_ids), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
    return input_ids, mask


class Encoder:
    """One tower on one device. `encode` may be called from several threads at a time."""

    def __init__(self, model_file: Path, pad_id: int, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Spinning threads would take the cores from the event loop and from FAISS.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(model_file), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own types, none of them public
            raise BundleError(f"{model_file} cannot be loaded by ONNX Runtime: {error}; export again") from None
        self._pad_id = pad_id
        self.threads = threads

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """Embeds texts in one right-padded batch.

        Args:
            token_ids: one int64 array of shape (tokens,) a text, special tokens included; at least one text.

        Returns:
            float32 of shape (texts, dim), in the order given.

        Raises:
            BundleError: an embedding is not finite.
        """
        input_ids, mask = pad_right(token_ids, self._pad_id)
        result: Embeddings = self._session.run([EMBEDDING], {INPUT_IDS: input_ids, ATTENTION_MASK: mask})[0]
        if not np.isfinite(result).all():
            raise BundleError("the tower gave NaN or infinity for a text: its weights are damaged")
        return result


def load_encoder(bundle: Bundle, role: Role, variant: str, pad_id: int, threads: int) -> Encoder:
    """Loads one tower of a bundle and recomputes its golden embeddings on this machine.

    Raises:
        BundleError: the bundle lacks the variant, or a golden embedding is outside the variant's tolerance.
    """
    tower = bundle.tower(role)
    if variant not in tower.variants:
        raise BundleError(f"{bundle.path} has no variant {variant} of its {role}; it has {', '.join(tower.variants)}")
    entry = tower.variants[variant]
    encoder = Encoder(bundle.file(tower, entry.file), pad_id, threads)
    golden = Golden.load(bundle.file(tower, entry.golden_file))
    differences = [
        np.abs(encoder.encode([ids])[0] - expected).max()
        for ids, expected in zip(golden.token_ids, golden.embeddings, strict=True)
    ]
    worst = float(np.max(differences))  # NaN if any is; max() would lose it
    if not worst <= entry.golden_tolerance:
        raise BundleError(
            f"variant {variant} of the {role} in {bundle.path} is off by {worst:.2e} on this machine (tolerance "
            f"{entry.golden_tolerance:.0e}): export the bundle again on a machine like this one"
        )
    return encoder
