"""A BERT whose weights are made from their names: the same numbers everywhere, so that nothing has to carry them.

Integers of 16 bits from a fixed stream, scaled by a power of two: no rounding, no library's logarithm, and no weight so
small that half precision would flush it. Needs numpy alone.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
Transform = Literal["same", "transposed", "joined", "summed"]

PREFIXES = {"question_encoder": "question_encoder.bert_model.", "context_encoder": "ctx_encoder.bert_model."}
LAYER_PARAMETERS = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """Of a BERT; the defaults are BERT-base's."""

    vocabulary: int = 30_522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    positions: int = 512

    @property
    def spread(self) -> float:
        """Half the range of the weights, a power of two: a product about doubles what it is given.

        With less, what a token reads of the others is lost beside its own, and all embeddings are alike.
        """
        return 2.0 ** round(math.log2(2 * math.sqrt(3 / self.hidden)))

    def config(self) -> dict[str, Any]:
        """What stands in a checkpoint's config.json."""
        return {
            "model_type": "dpr", "hidden_act": "gelu", "layer_norm_eps": 1e-12, "projection_dim": 0,
            "vocab_size": self.vocabulary, "hidden_size": self.hidden, "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads, "type_vocab_size": 2,
            "max_position_embeddings": self.positions,
        }  # fmt: skip

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter that a DPR tower reads, by BERT's own names."""
        found: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocabulary, self.hidden),
            "embeddings.position_embeddings.weight": (self.positions, self.hidden),
            "embeddings.token_type_embeddings.weight": (2, self.hidden),
            "embeddings.LayerNorm.weight": (self.hidden,),
            "embeddings.LayerNorm.bias": (self.hidden,),
        }
        for layer in range(self.layers):
            for name in LAYER_PARAMETERS:
                rows = 4 * self.hidden if name == "intermediate.dense" else self.hidden
                columns = 4 * self.hidden if name == "output.dense" else self.hidden
                found[f"encoder.layer.{layer}.{name}.weight"] = (rows,) if "Norm" in name else (rows, columns)
                found[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
        return found


def parameter(size: Size, name: str) -> npt.NDArray[np.float32]:
    """The values of one parameter; both towers have the same, so that questions find texts that share their words."""
    shape = size.shapes()[name]
    count = int(np.prod(shape))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    words = np.random.PCG64(seed).random_raw(-(-count // 4)).astype("<u8")
    values = words.view("<i2")[:count].astype(np.float32) * np.float32(size.spread / 2**15)
    return (values + np.float32(name.endswith("LayerNorm.weight"))).reshape(shape)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a weight of a graph is made of."""

    parameters: tuple[str, ...]
    transform: Transform
    dtype: str  # <f4 or <f2

    def make(self, made: Mapping[str, Values]) -> bytes:
        """Its bytes, from the parameters."""
        parts = [made[name] for name in self.parameters]
        match self.transform:
            case "same":
                [values] = parts
            case "transposed":
                values = parts[0].T
            case "joined":  # query, key and value side by side, as Attention wants them
                values = np.concatenate([part.T for part in parts], axis=-1)
            case "summed":  # positions, and the segment that every token is in
                values = parts[0] + parts[1][0]
        return np.ascontiguousarray(values, dtype=self.dtype).tobytes()


def recipes(size: Size) -> Iterator[Recipe]:
    """All that an exported graph may hold."""
    for dtype in ("<f4", "<f2"):
        for name, shape in size.shapes().items():
            yield Recipe((name,), "same", dtype)
            if len(shape) == 2:
                yield Recipe((name,), "transposed", dtype)
        for layer in range(size.layers):
            for kind in ("weight", "bias"):
                names = [f"encoder.layer.{layer}.{part}.{kind}" for part in LAYER_PARAMETERS[:3]]
                yield Recipe(tuple(names), "joined", dtype)
        segments = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")
        yield Recipe(segments, "summed", dtype)


def write_checkpoint(directory: Path, role: str, size: Size, made: Mapping[str, Values], files: Sequence[Path]) -> None:
    """Writes a DPR checkpoint; `files` are the tokenizer's, copied. The format is safetensors', written by hand."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(size.config()), "utf-8")
    for file in files:
        (directory / file.name).write_bytes(file.read_bytes())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in made.items():
        offsets = [end, end := end + values.nbytes]
        header[PREFIXES[role] + name] = {"dtype": "F32", "shape": values.shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (directory / "model.safetensors").open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for values in made.values():
            out.write(np.ascontiguousarray(values, dtype="<f4").data)
