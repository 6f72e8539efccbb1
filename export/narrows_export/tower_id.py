"""tower_id: one hash over everything that decides a tower's embeddings, and nothing else.

Graph rewrites, re-exports and other packagings of the same weights (fp16 or fp32 files, .bin or safetensors) keep it:
tensors are hashed as float32 under BERT's own names.
"""

import hashlib
import json
from dataclasses import asdict

import numpy as np

from narrows.bundle import TokenizerSettings
from narrows_export.checkpoint import TorchTower

ARCHITECTURE = ("hidden_act", "layer_norm_eps", "num_attention_heads", "num_hidden_layers", "position_embedding_type")


def tower_id(tower: TorchTower, tokenizer: TokenizerSettings) -> str:
    """Returns 32 hex digits. A setting that came later counts where it is on: all other towers keep their ids."""
    settings = {
        "architecture": {name: getattr(tower.model.config, name, None) for name in ARCHITECTURE},
        "pooling": tower.pooling,
        "normalize": tower.normalize,
        "projection_dim": tower.projection_dim,
        "max_tokens": tower.max_tokens,
        "segment_ids": tower.segment_ids,
        "tokenizer": {name: value for name, value in asdict(tokenizer).items() if name != "composes" or value},
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name in sorted(tower.tensors):
        values = np.ascontiguousarray(tower.tensors[name].numpy(), dtype="<f4")
        digest.update(f"\n{name} {values.shape}\n".encode())
        digest.update(values.data)
    return digest.hexdigest()[:32]
