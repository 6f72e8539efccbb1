"""The encoder behind mosec: POST /inference with a text, back come float32 bytes."""

import argparse
import sys

import onnx_encoder
from mosec import Server, Worker


class Encoder(Worker):
    """Embeds what mosec batched."""

    def __init__(self) -> None:
        super().__init__()
        self._encoder = onnx_encoder.from_parent()

    def deserialize(self, data: bytes) -> str:
        """The body is the text."""
        return data.decode()

    def serialize(self, data: bytes) -> bytes:
        """The reply is the embedding's bytes."""
        return data

    def forward(self, data: list[str]) -> list[bytes]:
        """A batch."""
        return [row.tobytes() for row in self._encoder.encode(data)]


class Single(Encoder):
    """What mosec calls where batches have one text."""

    def forward(self, data: str) -> bytes:  # type: ignore[override]
        """One text."""
        return super().forward([data])[0]


def main() -> None:
    """Serves until a signal."""
    parser = argparse.ArgumentParser(description=__doc__)
    onnx_encoder.add_arguments(parser)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--max-wait-ms", type=int, required=True, help="at least 1")
    parser.add_argument("--workers", type=int, required=True)
    options = parser.parse_args()
    onnx_encoder.hand_to_workers(options)
    # mosec reads its own arguments from the command line.
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(options.port), "--timeout", "30000", "--log-level", "error"]
    server = Server()
    server.append_worker(
        Encoder if options.max_batch_size > 1 else Single,
        num=options.workers,
        max_batch_size=options.max_batch_size,
        max_wait_time=options.max_wait_ms,
    )
    server.run()


if __name__ == "__main__":
    main()
