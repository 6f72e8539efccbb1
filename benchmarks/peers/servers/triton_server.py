"""The encoder behind NVIDIA Triton, through nvidia-pytriton: model `encoder`, TEXT -> EMBEDDING."""

import argparse

import numpy as np
import numpy.typing as npt
from onnx_encoder import OnnxEncoder, add_arguments
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig


class Encoder:
    """One instance of the model."""

    def __init__(self, encoder: OnnxEncoder) -> None:
        self._encoder = encoder

    @batch  # type: ignore[untyped-decorator]
    def __call__(self, TEXT: npt.NDArray[np.bytes_]) -> dict[str, npt.NDArray[np.float32]]:  # noqa: N803
        """A batch: bytes (texts, 1) -> float32 (texts, dim)."""
        return {"EMBEDDING": self._encoder.encode([text.decode() for text in TEXT[:, 0]])}


def main() -> None:
    """Serves until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--queue-delay-us", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    encoders = [
        OnnxEncoder(options.model, options.tokenizer, options.max_tokens, options.threads)
        for _ in range(options.workers)
    ]
    dim = encoders[0].encode(["?"]).shape[1]
    config = TritonConfig(
        http_address="127.0.0.1", http_port=options.port, http_thread_count=1, allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="encoder",
            infer_func=[Encoder(encoder) for encoder in encoders],
            inputs=[Tensor(name="TEXT", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="EMBEDDING", dtype=np.float32, shape=(dim,))],
            config=ModelConfig(
                max_batch_size=options.max_batch_size,
                batcher=DynamicBatcher(max_queue_delay_microseconds=options.queue_delay_us),
            ),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
