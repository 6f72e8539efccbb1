"""Small checkpoints in DPR's format, made by the tests: real files, random weights, embeddings well spread out."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import DPRConfig, DPRContextEncoder, DPRQuestionEncoder, DPRReader

from narrows.bundle import Role

HIDDEN, LAYERS, HEADS = 64, 2, 4
CLASSES = {"question_encoder": DPRQuestionEncoder, "context_encoder": DPRContextEncoder}


@dataclass(frozen=True)
class Pair:
    """A question and a context checkpoint."""

    question: Path
    context: Path


def english_vocabulary() -> list[str]:
    """A committed uncased vocabulary of 2,000 tokens, made from the English demo passages."""
    file = Path(__file__).parent / "data" / "golden_tokenizer" / "en-uncased" / "vocab.txt"
    return file.read_text("utf-8").removesuffix("\n").split("\n")


def write_dpr(
    directory: Path,
    role: Role,
    vocabulary: list[str],
    *,
    seed: int,
    projection_dim: int = 0,
    layers: int = LAYERS,
    hidden: int = HIDDEN,
    heads: int = HEADS,
    **tokenizer_config: object,
) -> Path:
    """Writes a Hugging Face DPR checkpoint with spread-out random weights."""
    torch.manual_seed(seed)
    config = DPRConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        projection_dim=projection_dim,
        initializer_range=0.15,
    )
    model = CLASSES[role](config)
    with torch.no_grad():  # LayerNorm away from identity, biases away from zero
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory)
    _write_tokenizer(directory, vocabulary, tokenizer_config)
    return directory


def write_reader(
    directory: Path, vocabulary: list[str], *, seed: int, positions: int = 512, **tokenizer_config: object
) -> Path:
    """Writes a Hugging Face DPR reader with spread-out random weights."""
    torch.manual_seed(seed)
    config = DPRConfig(
        vocab_size=len(vocabulary),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=positions,
        initializer_range=0.15,
    )
    DPRReader(config).save_pretrained(directory)
    _write_tokenizer(directory, vocabulary, tokenizer_config)
    return directory


def _write_tokenizer(directory: Path, vocabulary: list[str], config: dict[str, object]) -> None:
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), "utf-8")
    settings = {"do_lower_case": True, "model_max_length": 512, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def write_matching_pair(directory: Path, vocabulary: list[str] | None = None, **tokenizer_config: object) -> Pair:
    """Writes two towers that find each other's texts, English ones by default, without training: by shared words.

    Attention is uniform and hands on what it reads, and all else is passed by, so that an embedding is the mean of
    its words' random vectors; words that are in many passages, the first of the vocabulary, count for nothing.
    """
    vocabulary = vocabulary or english_vocabulary()
    pair = Pair(
        write_dpr(directory / "question", "question_encoder", vocabulary, seed=3, **tokenizer_config),
        write_dpr(directory / "context", "context_encoder", vocabulary, seed=3, **tokenizer_config),
    )
    for tower in (pair.question, pair.context):
        tensors = load_file(tower / "model.safetensors")
        for name, tensor in tensors.items():
            if name.endswith(("LayerNorm.weight",)):
                tensor.fill_(1.0)
            elif name.endswith("word_embeddings.weight"):
                tensor[: len(vocabulary) // 4] = 0.0
            elif name.endswith(("layer.0.attention.self.value.weight", "layer.0.attention.output.dense.weight")):
                tensor.copy_(torch.eye(HIDDEN))
            else:
                tensor.zero_()
        save_file(tensors, tower / "model.safetensors", {"format": "pt"})
    return pair
