"""Checkpoint files -> a PyTorch tower with exactly those weights.

The class is chosen by the prefix of the weights' names, never by AutoModel, which takes DPRQuestionEncoder for every
`dpr` folder and fills a context encoder with random weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.bert.modeling_bert import BertModel, BertPreTrainedModel

from narrows.answers import LOGITS
from narrows.bundle import Pooling, Role, SegmentIds
from narrows.errors import CheckpointError
from narrows_export import pickles
from narrows_export.source import CheckpointFiles

PREFIXES = {"question_encoder.": "question encoder", "ctx_encoder.": "context encoder", "span_predictor.": "reader"}
DPR_CLASSES: dict[Role, tuple[str, type[PreTrainedModel]]] = {
    "question_encoder": ("question_encoder.", DPRQuestionEncoder),
    "context_encoder": ("ctx_encoder.", DPRContextEncoder),
}
READER = "span_predictor."
DPR_TOKENS = 256  # what DPR trains and encodes with
READER_TOKENS = 350  # what DPR's README trains and evaluates its reader with: question, title and text
# Published files carry these of BERT, and no tower reads them: the pooler behind CLS, and a buffer of 0..511.
UNUSED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")


@dataclass(frozen=True, slots=True)
class TorchTower:
    """A tower in PyTorch, float32, in eval mode; and what decides its embeddings besides the weights."""

    model: PreTrainedModel
    output: str  # the model output that holds the embedding
    pooling: Pooling
    normalize: bool
    projection_dim: int
    dim: int
    max_tokens: int
    tensors: Mapping[str, torch.Tensor]  # what was read and used, by the model's own names without prefix
    separator: int | None = None  # the id behind whose first place segment ids are 1; None: they are 0 throughout

    @property
    def segment_ids(self) -> SegmentIds:
        """As the manifest has them."""
        return "zero" if self.separator is None else "pair"


class SentenceTower(BertPreTrainedModel):
    """BERT, mean pooling over the mask, L2 normalization: what sentence-transformers runs, as one module.

    The sum is a running one (CumSum): adding the zeros of padding then never regroups the addition, so the
    embedding does not depend on how far its batch is padded. A plain sum moves the last bit.
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns {"embedding": float32 (texts, dim)}."""
        hidden = self.bert(input_ids, attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = torch.cumsum(hidden * mask, dim=1)[:, -1] / mask.sum(dim=1).clamp(min=1e-9)
        norm = (mean * mean).sum(dim=1, keepdim=True).sqrt()
        return {"embedding": mean / norm.clamp(min=1e-12)}


class ReaderTower(BertPreTrainedModel):
    """DPR's reader as one module: BERT, and three logits of each token.

    They are the token's as the start and as the end of an answer, and, of the first token alone of use, the passage's
    relevance (transformers, modeling_dpr.py, DPRSpanPredictor, which has two layers for them).
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.logits = torch.nn.Linear(config.hidden_size, LOGITS)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns {"logits": float32 (texts, tokens, 3)}; without segment ids (`token_type_ids`) they are zero."""
        return {"logits": self.logits(self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state)}


def load(files: CheckpointFiles, role: Role, max_tokens: int | None) -> TorchTower:
    """Loads a checkpoint as the tower of the given role, which cuts at `max_tokens`; None: at its own length.

    Raises:
        CheckpointError: unreadable files, weights of another role or kind, missing or unexpected weights, a
            non-finite weight, or settings that are not supported.
    """
    tensors = files.original.tensors(role) if files.original else _read_tensors(files.weights)
    if role == "reader":
        tower = _reader_tower(files, tensors, max_tokens)
    elif files.kind == "sentence-transformers":
        tower = _sentence_tower(files, tensors, max_tokens)
    else:
        tower = _dpr_tower(files, role, tensors, max_tokens)
    bad = next((name for name, tensor in tower.tensors.items() if not torch.isfinite(tensor).all()), None)
    if bad is not None:
        raise CheckpointError(f"{files.weights}: {bad} holds NaN or infinity; the file is damaged")
    return tower


def _read_tensors(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix == ".safetensors":
        try:
            tensors: Any = load_file(file)
        except Exception as error:  # it raises its own kinds for damaged files
            raise CheckpointError(f"{file} cannot be read, so it is probably damaged: {error!r}") from None
    else:
        tensors = pickles.read(file)
    if not pickles.is_table(tensors):
        raise CheckpointError(f"{file} does not hold a plain table of tensors")
    return tensors


def _dpr_tower(
    files: CheckpointFiles, role: Role, tensors: dict[str, torch.Tensor], max_tokens: int | None
) -> TorchTower:
    prefix, model_class = DPR_CLASSES[role]
    _check_kind(files, tensors, prefix)
    model = _empty_model(DPRConfig, model_class, files)
    config = model.config
    _fill(model, tensors, f"{prefix}bert_model.", files.weights)
    return TorchTower(
        model=model.float().eval(),
        output="pooler_output",
        pooling="cls",
        normalize=False,
        projection_dim=config.projection_dim,
        dim=config.projection_dim or config.hidden_size,
        max_tokens=_max_tokens(_wanted_tokens(max_tokens, files, DPR_TOKENS), config, files),
        tensors=_canonical(model),
    )


def _reader_tower(files: CheckpointFiles, tensors: dict[str, torch.Tensor], max_tokens: int | None) -> TorchTower:
    _check_kind(files, tensors, READER)
    model = _empty_model(BertConfig, ReaderTower, files)
    config = model.config
    default = min(READER_TOKENS, config.max_position_embeddings)
    if files.json("config.json").get("projection_dim"):
        raise CheckpointError(f"{files.name}: a reader with a projection is not supported")
    renamed = {name.replace(f"{READER}encoder.bert_model.", "bert."): tensor for name, tensor in tensors.items()}
    try:
        for part in ("weight", "bias"):
            spans, relevance = renamed.pop(f"{READER}qa_outputs.{part}"), renamed.pop(f"{READER}qa_classifier.{part}")
            renamed[f"logits.{part}"] = torch.cat([spans, relevance])
    except KeyError as missing:
        raise CheckpointError(f"{files.weights} lacks {missing.args[0]}, which a reader has") from None
    _fill(model, renamed, "bert.", files.weights)
    return TorchTower(
        model=model.float().eval(),
        output="logits",
        pooling="none",
        normalize=False,
        projection_dim=0,
        dim=LOGITS,
        max_tokens=_max_tokens(_wanted_tokens(max_tokens, files, default), config, files, "--reader-max-tokens"),
        tensors=_canonical(model),
    )


def _check_kind(files: CheckpointFiles, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """The weights' names must have `prefix`, and no other of PREFIXES."""
    found = {PREFIXES[known] for known in PREFIXES if any(name.startswith(known) for name in tensors)}
    wanted = PREFIXES[prefix]
    if found != {wanted}:
        what = " and ".join(f"a {kind}" for kind in sorted(found)) or f"no weights named {', '.join(PREFIXES)}"
        raise CheckpointError(f"{files.name} was given as the {wanted}, but its {files.weights.name} holds {what}")


def _sentence_tower(files: CheckpointFiles, tensors: dict[str, torch.Tensor], max_tokens: int | None) -> TorchTower:
    _check_modules(files)
    if files.json("config.json").get("model_type") != "bert":
        raise CheckpointError(f"{files.name}: only sentence-transformers models over BERT are supported")
    model = _empty_model(BertConfig, SentenceTower, files)
    config = model.config
    named = {name if name.startswith("bert.") else f"bert.{name}": tensor for name, tensor in tensors.items()}
    _fill(model, named, "bert.", files.weights)
    limit = _sentence_limit(config.max_position_embeddings, files)
    return TorchTower(
        model=model.float().eval(),
        output="embedding",
        pooling="mean",
        normalize=True,
        projection_dim=0,
        dim=config.hidden_size,
        max_tokens=_max_tokens(limit if max_tokens is None else max_tokens, config, files),
        tensors=_canonical(model),
    )


def _sentence_limit(longest: int, files: CheckpointFiles) -> int:
    """Where sentence-transformers cuts: older versions say so themselves, newer ones leave it to the tokenizer."""
    limit = files.json("sentence_bert_config.json").get("max_seq_length")
    if limit is None:
        limit = min(files.json("tokenizer_config.json").get("model_max_length", longest), longest)
    return int(limit)


def _check_modules(files: CheckpointFiles) -> None:
    file = files.directory / "modules.json"
    try:
        listed = json.loads(file.read_text("utf-8"))
        modules = [(module["type"].rsplit(".", 1)[-1], module["path"]) for module in listed]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file} is not a list of modules, each with its type and path: {error!r}") from None
    kinds, paths = [kind for kind, _ in modules], [path for _, path in modules]
    if kinds != ["Transformer", "Pooling", "Normalize"] or paths[0] != "":
        raise CheckpointError(f"{files.name}: its modules are {kinds}; supported is Transformer, Pooling, Normalize")
    pooling = files.json(f"{paths[1]}/config.json")
    active = sorted(key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True)
    if "pooling_mode" in pooling:  # as newer sentence-transformers write it
        active = pooling["pooling_mode"]
    if files.json("config_sentence_transformers.json").get("default_prompt_name"):
        raise CheckpointError(f"{files.name}: it puts a default prompt before every text; that is not supported")
    if active not in (["pooling_mode_mean_tokens"], "mean"):
        raise CheckpointError(f"{files.name}: its pooling is {active}; only mean pooling is supported")


def _empty_model(
    config_class: type[BertConfig | DPRConfig], model_class: type[PreTrainedModel], files: CheckpointFiles
) -> PreTrainedModel:
    """The model that config.json describes, its weights still random."""
    try:
        config = config_class(**files.json("config.json"))
        config._attn_implementation = "eager"
        return model_class(config)
    except Exception as error:  # transformers and torch raise what they come upon first
        file = files.directory / "config.json"
        raise CheckpointError(f"{file} does not describe a BERT that can be built: {error!r}") from None


def _fill(model: PreTrainedModel, tensors: dict[str, torch.Tensor], bert: str, file: Path) -> None:
    """Loads weights; `bert` is the prefix of BERT's own ones."""
    unused = {bert + name for name in UNUSED}
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    expected = model.state_dict()
    missing = sorted(set(expected) - set(used))
    unexpected = sorted(set(used) - set(expected))
    if missing or unexpected:
        raise CheckpointError(
            f"{file} does not fit its config.json: missing weights {_first(missing)}; unexpected {_first(unexpected)}"
        )
    wrong = [name for name in used if used[name].shape != expected[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{file}: {name} has shape {tuple(used[name].shape)}, "
            f"but config.json asks for {tuple(expected[name].shape)}"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in used.items()}, strict=True)


def _canonical(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Tensors under BERT's own names, so that another packaging of the same weights gives the same tower_id."""
    strip = ("question_encoder.", "ctx_encoder.", "bert_model.", "bert.")
    canonical = {}
    for name, tensor in model.state_dict().items():
        for prefix in strip:
            name = name.removeprefix(prefix)
        canonical[name] = tensor
    return canonical


def _wanted_tokens(asked: int | None, files: CheckpointFiles, default: int) -> int:
    trained_with = files.original.sequence_length if files.original else None
    return asked if asked is not None else trained_with or default


def _max_tokens(wanted: int, config: PretrainedConfig, files: CheckpointFiles, option: str = "--max-tokens") -> int:
    if not 8 <= wanted <= config.max_position_embeddings:
        raise CheckpointError(
            f"a maximum of {wanted} tokens does not fit {files.name}: it must be 8 to "
            f"{config.max_position_embeddings}; choose with {option}"
        )
    return wanted


def _first(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "none"
