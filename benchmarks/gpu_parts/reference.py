"""The towers in PyTorch, in single precision: what embeddings are held to."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from benchmarks.gpu_parts.weights import PREFIXES
from narrows.bundle import Role, TowerManifest
from narrows.encoder import Embeddings
from narrows.padding import pad_right
from narrows.tokenizer import TokenIds

BATCH_TEXTS = 16
UNREAD = ("pooler.", "embeddings.position_ids")


class Reference:
    """One tower: a BERT, pooled and normalized as the bundle's manifest says."""

    def __init__(self, checkpoint: Path, role: Role, tower: TowerManifest) -> None:
        """Reads CHECKPOINT/ROLE, or CHECKPOINT itself where one model is both towers.

        Raises:
            ValueError: its weights are not those of this kind of tower.
        """
        folder = checkpoint / role if (checkpoint / role).is_dir() else checkpoint
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        if config.pop("projection_dim", 0):
            raise ValueError("a tower with a projection has no reference here")
        config.pop("model_type", None)
        prefix = PREFIXES[role]
        weights = {
            name.removeprefix(prefix): tensor for name, tensor in load_file(folder / "model.safetensors").items()
        }
        made: Any = BertModel(BertConfig(**config), add_pooling_layer=False)  # type: ignore[no-untyped-call]
        missing, unexpected = made.load_state_dict(weights, strict=False)
        wrong = [name for name in (*missing, *unexpected) if not name.startswith(UNREAD)]
        if wrong:
            raise ValueError(f"{folder} lacks, or has too many: {', '.join(wrong[:5])}")
        self._place = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = made.float().eval().to(self._place)
        self._tower = tower

    def encode(self, texts: Sequence[TokenIds]) -> Embeddings:
        """float32 (texts, dim), in the order given."""
        return np.concatenate(
            [self._batch(texts[start : start + BATCH_TEXTS]) for start in range(0, len(texts), BATCH_TEXTS)]
        )

    def _batch(self, texts: Sequence[TokenIds]) -> Embeddings:
        ids, mask = (torch.from_numpy(each).to(self._place) for each in pad_right(texts, 0))
        with torch.no_grad():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        pooled = hidden[:, 0]
        if self._tower.pooling == "mean":
            pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        if self._tower.normalize:
            pooled = torch.nn.functional.normalize(pooled)
        embeddings: Embeddings = pooled.cpu().numpy()
        return embeddings
