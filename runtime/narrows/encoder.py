"""Token ids -> embeddings, through ONNX Runtime.

On a CPU the embedding of a text is the same, bit for bit, alone and in any batch (contract 2): the graphs are built
so (fp32 fused; CumSum for mean pooling) and the tests hold them to it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from narrows.bound import BoundRuns
from narrows.bundle import Bundle, Role
from narrows.device import CPU, Device
from narrows.errors import BundleError, DeviceError
from narrows.padding import ATTENTION_MASK, EMBEDDING, INPUT_IDS, pad_right
from narrows.tokenizer import TokenIds

Embeddings = npt.NDArray[np.float32]

MAX_TOKENS = 512  # of any BERT
OFFLINE_TOKENS = 384  # of a batch on a CPU, padding included: beyond, activations outgrow the caches (decision 036)


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


class Encoder:
    """One tower on one device. `encode` may be called from several threads at a time."""

    def __init__(
        self, model_file: Path, pad_id: int, threads: int, device: Device = CPU, max_tokens: int = MAX_TOKENS
    ) -> None:
        """Loads a graph; where the device wants fixed shapes, of texts up to `max_tokens`, it runs each of them once.

        Raises:
            BundleError: ONNX Runtime cannot load it.
            DeviceError: the device cannot, or has too little memory for the largest batches.
        """
        session = device.session(model_file, threads)
        self._run: Callable[[Sequence[TokenIds]], Embeddings]
        self.shapes = device.grid.within(max_tokens) if device.grid else None
        if self.shapes is None:
            self._run = partial(_run_as_it_comes, session, pad_id)
        else:
            try:
                self._run = BoundRuns(session, self.shapes, pad_id, device.buffer)
            except Exception as error:  # onnxruntime's own
                raise DeviceError(f"{device.name} cannot run the batches of {model_file}: {error}") from None
        self.threads = threads
        self.device = device

    def offline_texts(self, tokens: int) -> int:
        """How many texts to run together when all are at hand, the longest of so many tokens."""
        if self.shapes:
            return self.shapes.most_texts(tokens)
        return max(1, OFFLINE_TOKENS // tokens)

    def encode(self, token_ids: Sequence[TokenIds]) -> Embeddings:
        """Embeds texts in one right-padded batch.

        Args:
            token_ids: one int64 array of shape (tokens,) a text, special tokens included; at least one text.

        Returns:
            float32 of shape (texts, dim), in the order given.

        Raises:
            BundleError: an embedding is not finite.
        """
        result = self._run(token_ids)
        if not np.isfinite(result).all():
            raise BundleError("the tower gave NaN or infinity for a text: its weights are damaged")
        return result


def _run_as_it_comes(session: onnxruntime.InferenceSession, pad_id: int, token_ids: Sequence[TokenIds]) -> Embeddings:
    input_ids, mask = pad_right(token_ids, pad_id)
    result: Embeddings = session.run([EMBEDDING], {INPUT_IDS: input_ids, ATTENTION_MASK: mask})[0]
    return result


def load_encoder(bundle: Bundle, role: Role, variant: str, pad_id: int, threads: int, device: Device = CPU) -> Encoder:
    """Loads one tower of a bundle and recomputes its golden embeddings on this machine.

    Raises:
        BundleError: the bundle lacks the variant, or a golden embedding is outside the variant's tolerance.
        DeviceError: the device does not run this variant; or as `Encoder`.
    """
    tower = bundle.tower(role)
    entry = bundle.variant(role, variant)
    if device.variants and variant not in device.variants:
        raise DeviceError(
            f"{device.name} runs {' and '.join(device.variants)}, not {variant}: build the index with, or ask for, one "
            "of these, or use --device cpu"
        )
    encoder = Encoder(bundle.file(tower, entry.file), pad_id, threads, device, tower.max_tokens)
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
