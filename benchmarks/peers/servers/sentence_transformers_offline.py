"""sentence-transformers in process: its own `encode`, which sorts by length."""

import argparse

import offline
import torch
from sentence_transformers import SentenceTransformer


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    offline.add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = SentenceTransformer(options.checkpoint, device="cpu")
    model.max_seq_length = options.max_tokens
    offline.measure(
        lambda texts: model.encode(texts, batch_size=options.batch_size, normalize_embeddings=True), options
    )


if __name__ == "__main__":
    main()
