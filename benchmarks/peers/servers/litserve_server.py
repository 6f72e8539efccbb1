"""The encoder behind LitServe: POST /predict with {"text": ...}, back come float32 bytes."""

import argparse

import litserve
import numpy as np
import numpy.typing as npt
import onnx_encoder
from fastapi import Response


class EncoderApi(litserve.LitAPI):
    """Embeds what LitServe batched."""

    def setup(self, device: str) -> None:
        """Loads the encoder, in each worker."""
        self._encoder = onnx_encoder.from_parent()

    def decode_request(self, request: dict[str, str]) -> str:
        """The text of a request."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """A batch stays a list."""
        return inputs

    def predict(self, inputs: list[str] | str) -> npt.NDArray[np.float32]:
        """A batch, or one text where batches have one."""
        return self._encoder.encode(inputs) if isinstance(inputs, list) else self._encoder.encode([inputs])[0]

    def unbatch(self, output: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """The rows."""
        return list(output)

    def encode_response(self, output: npt.NDArray[np.float32]) -> Response:
        """Bytes: as JSON, 384 numbers would cost more than the request itself."""
        return Response(output.tobytes(), media_type="application/octet-stream")


def main() -> None:
    """Serves until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    onnx_encoder.add_arguments(parser)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--batch-timeout-ms", type=float, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--fast-queue", action="store_true", help="ZeroMQ between server and workers")
    options = parser.parse_args()
    onnx_encoder.hand_to_workers(options)
    api = EncoderApi(max_batch_size=options.max_batch_size, batch_timeout=options.batch_timeout_ms / 1e3)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=options.workers, timeout=30, fast_queue=options.fast_queue
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
        access_log=False,
    )


if __name__ == "__main__":
    main()
