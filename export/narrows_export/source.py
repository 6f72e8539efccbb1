"""SRC -> checkpoint files here, from a directory, a hub, or a file of DPR's own, and what kind of checkpoint it is."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from narrows.bundle import Role, TextPreset
from narrows.errors import CheckpointError
from narrows_export import original
from narrows_export.original import Original

Kind = Literal["dpr", "sentence-transformers"]

# In the order of preference; everything else in a repository (TensorFlow twins, Flax, ONNX) is left alone.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
MODULES = "modules.json"  # only a sentence-transformers directory has it
CONFIG_FILES = (
    CONFIG,
    "config_sentence_transformers.json",
    MODULES,
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A checkpoint on disk; where it is a file of DPR's own (`original`), the directory is that of its tokenizer."""

    directory: Path
    name: str  # as given: a hub id, or the last parts of the directory
    revision: str  # hub commit; empty for a directory
    license: str  # from the model card, when it says
    language: str
    original: Original | None = None
    note: str = ""  # what its user should know

    def text_preset(self, role: Role) -> TextPreset:
        """That of a role's texts, where none is asked for."""
        return self.original.text_preset(role) if self.original else "hf"

    def json(self, name: str) -> dict[str, Any]:
        """Reads one of the JSON files; {} when it is absent.

        Raises:
            CheckpointError: the file is not a JSON object.
        """
        file = self.directory / name
        try:
            content = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        except ValueError as error:
            raise CheckpointError(f"{file} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{file} must hold a JSON object")
        if self.original and name == CONFIG:
            content |= {"projection_dim": self.original.projection_dim}
        if self.original and self.original.lowercase is not None and name == TOKENIZER_CONFIG:
            content |= {"do_lower_case": self.original.lowercase}  # as DPR's code hands it to the tokenizer
        return content

    @property
    def weights(self) -> Path:
        """The file of weights: DPR's own, or of a directory safetensors before .bin.

        Raises:
            CheckpointError: there is none.
        """
        if self.original:
            return self.original.file
        for name in WEIGHT_FILES:
            if (self.directory / name).is_file():
                return self.directory / name
        raise CheckpointError(f"{self.directory} holds no weights: expected {' or '.join(WEIGHT_FILES)}")

    @property
    def kind(self) -> Kind:
        """Told by modules.json."""
        if self.original:
            return "dpr"
        return "sentence-transformers" if (self.directory / MODULES).is_file() else "dpr"


def resolve(source: str, revision: str | None = None, *, with_weights: bool = True) -> CheckpointFiles:
    """Finds a checkpoint: a directory if one of that name exists, else a hub id, of which only the needed files load.

    Args:
        source: the directory, or the hub id.
        revision: of the hub repository.
        with_weights: or only the files that describe model and tokenizer.

    Raises:
        CheckpointError: neither a directory nor a reachable hub repository, or no config.json in it.
    """
    directory = Path(source).expanduser()
    if directory.is_dir():
        if revision:
            raise CheckpointError(f"--revision {revision} was given, but {source} is a local directory, not a hub id")
        files = _from_directory(directory)
    elif directory.exists():
        raise CheckpointError(f"{source} is a file; give the checkpoint's directory or a hub id")
    else:
        files = _from_hub(source, revision, with_weights)
    if not (files.directory / CONFIG).is_file():
        raise CheckpointError(f"{source} has no config.json, so it is not a Hugging Face checkpoint")
    return files


def resolve_file(file: Path, tokenizer: str | None, revision: str | None) -> CheckpointFiles:
    """Reads a file of DPR's own, and finds its tokenizer and BERT configuration.

    Args:
        file: the checkpoint.
        tokenizer: a directory or a hub id; None: what the checkpoint says that it began with.
        revision: of that hub repository.

    Raises:
        CheckpointError: as `original.read`; or there are no such files.
    """
    found = original.read(file)
    if not (tokenizer or found.began_with):
        raise CheckpointError(
            f"{file} does not say which BERT it began with: give --tokenizer, a directory or a hub id"
        )
    try:
        beside = resolve(tokenizer or found.began_with, revision, with_weights=False)
    except CheckpointError as error:
        hint = "" if tokenizer else f"; {file} began with it: give its files' directory as --tokenizer"
        raise CheckpointError(f"{error}{hint}") from None
    return CheckpointFiles(beside.directory, file.name, "", "", beside.language, found, _case_note(found, beside))


def _case_note(found: Original, tokenizer: CheckpointFiles) -> str:
    """Says where a file was trained with another case than its tokenizer has by itself."""
    theirs = tokenizer.json(TOKENIZER_CONFIG).get("do_lower_case")
    if found.lowercase is None or theirs is None or found.lowercase == theirs:
        return ""
    return (
        f"the tokenizer of {tokenizer.name} has do_lower_case={theirs}, but {found.file} was trained with "
        f"{found.lowercase}, which is used"
    )


def _from_directory(directory: Path) -> CheckpointFiles:
    parts = directory.resolve().parts[-2:]
    return CheckpointFiles(directory, "/".join(part for part in parts if part != "/"), "", "", "")


def _from_hub(repository: str, revision: str | None, with_weights: bool) -> CheckpointFiles:
    try:
        info = HfApi().model_info(repository, revision=revision)
        present = {sibling.rfilename for sibling in info.siblings or ()}
        weights = next((name for name in WEIGHT_FILES if name in present), None)
        wanted = [name for name in CONFIG_FILES if name in present]
        if with_weights and weights is None:
            raise CheckpointError(f"hub repository {repository} holds no weights: expected {' or '.join(WEIGHT_FILES)}")
        if with_weights and weights:
            wanted.append(weights)
        if not wanted:
            raise CheckpointError(f"hub repository {repository} has none of {', '.join(CONFIG_FILES)}")
        if MODULES in present:
            wanted += sorted(name for name in present if name.endswith("_Pooling/config.json"))
        paths = {name: Path(hf_hub_download(repository, name, revision=info.sha)) for name in wanted}
    except HFValidationError:
        raise CheckpointError(
            f"{repository} is neither a directory here nor a hub id "
            "such as facebook/dpr-question_encoder-single-nq-base"
        ) from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise CheckpointError(
            f"{repository} is not a directory here, and the hub did not deliver it ({_reason(error)}). "
            "Check the spelling and the connection, or download the files and give their directory"
        ) from None
    card = info.card_data
    language = getattr(card, "language", None) or ""
    return CheckpointFiles(
        directory=paths[wanted[0]].parent,
        name=repository,
        revision=info.sha or "",
        license=str(getattr(card, "license", None) or ""),
        language=language if isinstance(language, str) else ",".join(language),
    )


def _reason(error: Exception) -> str:
    """One line; huggingface_hub puts the status first, then an empty line, then what was wrong."""
    if not isinstance(error, HfHubHTTPError):
        return "it cannot be reached"
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return ": ".join(lines[:2]) or type(error).__name__
