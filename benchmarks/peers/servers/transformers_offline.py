"""Plain transformers in process: batches sorted by length, mean pooling as MiniLM's card has it."""

import argparse

import numpy as np
import numpy.typing as npt
import offline
import torch
from transformers import AutoModel, AutoTokenizer


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    offline.add_arguments(parser)
    parser.add_argument("--attention", choices=("eager", "sdpa"), required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.checkpoint)
    model = AutoModel.from_pretrained(options.checkpoint, attn_implementation=options.attention, dtype=torch.float32)
    model.eval()

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        rows: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(order), options.batch_size):
            batch = [texts[number] for number in order[start : start + options.batch_size]]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=options.max_tokens, return_tensors="pt")
            with torch.inference_mode():
                hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows.extend(torch.nn.functional.normalize(mean).numpy())
        embedded = np.empty((len(texts), len(rows[0])), dtype=np.float32)
        embedded[order] = rows
        return embedded

    offline.measure(embed, options)


if __name__ == "__main__":
    main()
