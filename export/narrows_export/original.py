"""DPR's own checkpoint files (`.cp`): one file of torch.save for both encoders, or for a reader.

It holds a dictionary: `model_dict`, the weights; `encoder_params`, what they were trained with, since 2021 as objects
of OmegaConf, which are read as data; and the optimizer's state, which nobody needs. Vocabulary and BERT configuration
are not in it, only the name of the model that it began with, so they come from elsewhere. Weights get the names that
Hugging Face's classes have for the same ones (transformers, convert_dpr_original_checkpoint_to_pytorch.py), and
everything after that is as for their checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from narrows.bundle import Role, TextPreset
from narrows.errors import CheckpointError
from narrows_export import pickles

ENCODER = "hf_bert"  # the one kind of encoder that Hugging Face's BERT can stand for
NESTED = "encoder"  # the setting that holds most others, since 2021
QUESTION, CONTEXT, READER = "question_model.", "ctx_model.", "encoder."
# Prefix in the file -> prefix of Hugging Face's names; the longer ones come first.
NAMES: dict[Role, dict[str, str]] = {
    "question_encoder": {
        f"{QUESTION}encode_proj.": "question_encoder.encode_proj.",
        QUESTION: "question_encoder.bert_model.",
    },
    "context_encoder": {f"{CONTEXT}encode_proj.": "ctx_encoder.encode_proj.", CONTEXT: "ctx_encoder.bert_model."},
    "reader": {
        READER: "span_predictor.encoder.bert_model.",
        "qa_outputs.": "span_predictor.qa_outputs.",
        "qa_classifier.": "span_predictor.qa_classifier.",
    },
}
MARKS: dict[Role, str] = {"question_encoder": QUESTION, "context_encoder": CONTEXT, "reader": "qa_classifier."}


class CheckpointState(NamedTuple):
    """Stands in for DPR's tuple of this name, should a file hold that and not the dictionary of its fields."""

    model_dict: object
    optimizer_dict: object
    scheduler_dict: object
    offset: object
    epoch: object
    encoder_params: object


class Inert:
    """Stands in for an object of OmegaConf: keeps its state and does nothing.

    A container has its items in _content, an item its value in _val.
    """

    def __init__(self, *arguments: object) -> None:
        pass


OMEGACONF = (
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    # Types that its metadata name
    "builtins.dict",
    "builtins.int",
    "builtins.list",
    "collections.defaultdict",
    "typing.Any",
)
STAND_INS: list[pickles.StandIn] = [
    (CheckpointState, "dpr.utils.model_utils.CheckpointState"),
    *((Inert, name) for name in OMEGACONF),
]


@dataclass(frozen=True, slots=True)
class Original:
    """What of a file counts; it was read once, for all roles."""

    file: Path
    weights: Mapping[str, torch.Tensor]  # by DPR's own names
    params: Mapping[str, Any]

    @property
    def roles(self) -> list[Role]:
        """What it holds, by the weights that nothing else has."""
        return [role for role, prefix in MARKS.items() if any(name.startswith(prefix) for name in self.weights)]

    @property
    def began_with(self) -> str:
        """The BERT that training began with, a hub id or a directory of its machine; empty where it does not say."""
        return str(self.params.get("pretrained_model_cfg") or "")

    @property
    def lowercase(self) -> bool | None:
        """Whether it was trained on lower-cased text, where it says so."""
        said = self.params.get("do_lower_case")
        return said if isinstance(said, bool) else None

    @property
    def sequence_length(self) -> int | None:
        """The longest text that it was trained with, in tokens, where it says so."""
        said = self.params.get("sequence_length")
        return said if isinstance(said, int) else None

    def text_preset(self, role: Role) -> TextPreset:
        """What it says of how the texts of a role were prepared, which is when it was saved (docs/decisions/049).

        DPR's code nests the settings since 2021. That code always prepares questions by `dpr-head`, passages only where
        its data sets ask for it, which by default they do not, and nothing for a reader. Flat settings were saved by
        the first release and by early code of 2021, whose rules differ, so they say nothing.
        """
        return "dpr-head" if role == "question_encoder" and NESTED in self.params else "hf"

    @property
    def projection_dim(self) -> int:
        """Rows of the projection, which the weights tell best; 0 without one."""
        found = [tensor.shape[0] for name, tensor in self.weights.items() if name.endswith("encode_proj.weight")]
        return found[0] if found else 0

    def tensors(self, role: Role) -> dict[str, torch.Tensor]:
        """The weights of one role, by Hugging Face's names.

        Raises:
            CheckpointError: the file holds none of that role.
        """
        if role not in self.roles:
            found = " and ".join(f"a {_spelled(each)}" for each in self.roles)
            holds = found or f"no weights named {', '.join(f'{mark}*' for mark in MARKS.values())}"
            raise CheckpointError(f"{self.file} was given as the {_spelled(role)}, but it holds {holds}")
        renamed = {}
        for name, tensor in self.weights.items():
            prefix = next((prefix for prefix in NAMES[role] if name.startswith(prefix)), None)
            if prefix is not None:
                renamed[NAMES[role][prefix] + name.removeprefix(prefix)] = tensor
            elif role == "reader" or not name.startswith((QUESTION, CONTEXT)):  # the other encoder's are left alone
                renamed[name] = tensor  # which is refused, by name
        return renamed


def read(file: Path) -> Original:
    """Reads a file.

    Raises:
        CheckpointError: it is damaged, holds code, or is something else.
    """
    found = pickles.read(file, STAND_INS)
    if isinstance(found, CheckpointState):
        found = found._asdict()
    weights = found.get("model_dict") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not pickles.is_table(weights):
        raise CheckpointError(
            f"{file} is no checkpoint of DPR's own: it lacks a model_dict of tensors. A Hugging Face checkpoint is "
            "given as its directory"
        )
    params = _params(found.get("encoder_params"))
    encoder = params.get("encoder_model_type", ENCODER)
    if encoder != ENCODER:
        raise CheckpointError(f"{file} was trained with the encoder {encoder}; only {ENCODER} is supported")
    return Original(file, weights, params)


def _spelled(role: Role) -> str:
    return role.replace("_", " ")


def _params(saved: object) -> dict[str, object]:
    """encoder_params as one flat table; since 2021 most of it is one level down, under NESTED."""
    params = _unwrapped(saved)
    if not isinstance(params, dict):
        return {}
    nested = _unwrapped(params.get(NESTED))
    both = {**params, **nested} if isinstance(nested, dict) else params
    return {name: _unwrapped(value) for name, value in both.items()}


def _unwrapped(value: object) -> object:
    return vars(value).get("_content", vars(value).get("_val")) if isinstance(value, Inert) else value
