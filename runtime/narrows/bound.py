"""A session run in fixed shapes, with buffers made beforehand on its device (ONNX Runtime's IOBinding)."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from narrows.padding import ATTENTION_MASK, EMBEDDING, INPUT_IDS, Shapes, pad_right
from narrows.tokenizer import TokenIds

MakeBuffer = Callable[[Sequence[int], Any], onnxruntime.OrtValue]


@dataclass(frozen=True, slots=True)
class _Binding:
    """One shape: its buffers, and the session bound to them."""

    input_ids: onnxruntime.OrtValue
    mask: onnxruntime.OrtValue
    embeddings: onnxruntime.OrtValue
    binding: onnxruntime.IOBinding


class BoundRuns:
    """Runs a session, one call at a time: the buffers are shared."""

    def __init__(
        self, session: onnxruntime.InferenceSession, shapes: Shapes, pad_id: int, make_buffer: MakeBuffer
    ) -> None:
        """Makes the buffers of every shape, and runs each once, so that the device has allocated what it will need."""
        self._session, self._shapes, self._pad_id = session, shapes, pad_id
        self._lock = threading.Lock()
        [output] = session.get_outputs()
        self._bindings: dict[tuple[int, int], _Binding] = {}
        for shape in shapes.all():
            binding = session.io_binding()
            ids, mask = make_buffer(shape, np.int64), make_buffer(shape, np.int64)
            axes = {"texts": shape[0], "tokens": shape[1]}  # as the exporter names them
            embeddings = make_buffer([axes.get(axis, axis) for axis in output.shape], np.float32)
            binding.bind_ortvalue_input(INPUT_IDS, ids)
            binding.bind_ortvalue_input(ATTENTION_MASK, mask)
            binding.bind_ortvalue_output(EMBEDDING, embeddings)
            self._bindings[shape] = _Binding(ids, mask, embeddings, binding)
            self._run([np.full(shape[1], pad_id, dtype=np.int64)] * shape[0])

    def __call__(self, token_ids: Sequence[TokenIds]) -> npt.NDArray[np.float32]:
        """float32 (texts, dim) or (texts, tokens, dim), in the order given; in parts beyond the largest shape."""
        with self._lock:
            parts = [self._run(token_ids[part]) for part in self._shapes.parts([len(ids) for ids in token_ids])]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _run(self, token_ids: Sequence[TokenIds]) -> npt.NDArray[np.float32]:
        shape = self._shapes.fit(len(token_ids), max(len(ids) for ids in token_ids))
        bound = self._bindings[shape]
        input_ids, mask = pad_right(token_ids, self._pad_id, shape)
        bound.input_ids.update_inplace(input_ids)
        bound.mask.update_inplace(mask)
        bound.binding.synchronize_inputs()
        self._session.run_with_iobinding(bound.binding)
        bound.binding.synchronize_outputs()
        embeddings: npt.NDArray[np.float32] = bound.embeddings.numpy()[: len(token_ids)]
        return embeddings.copy()  # on a CPU the array is the buffer itself


def _joined(parts: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """One after another; a reader's have the tokens of their own shape, and get those of the longest."""
    longest = max(part.shape[1] for part in parts)
    return np.concatenate(
        [np.pad(part, [(0, 0), (0, longest - part.shape[1])] + [(0, 0)] * (part.ndim - 2)) for part in parts]
    )
