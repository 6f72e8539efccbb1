"""peers.toml: what each peer is, how it is started, and the settings of which its best is found."""

import sysconfig
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from narrows.errors import BenchmarkError

HERE = Path(__file__).parent
FILE = HERE / "peers.toml"
ENVIRONMENTS = Path(".venv-peers")

Setting = dict[str, int | float | str | bool]
# What a peer computes with: the bundle's own graph; a plain one, which anybody gets of optimum and ONNX Runtime's
# optimizer; or PyTorch.
Graph = Literal["bundle", "plain", "torch"]


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """An ONNX graph in both forms that peers take."""

    model: Path  # input_ids, attention_mask -> embedding
    directory: Path  # the checkpoint's files, and the graph without its pooling as model.onnx, for optimum


@dataclass(frozen=True, slots=True)
class Material:
    """Files for the peers."""

    tokenizer: Path
    max_tokens: int
    checkpoint: Path  # the weights that the bundle was exported from, for torch
    bundle: GraphFiles
    plain: GraphFiles


@dataclass(frozen=True, slots=True)
class Peer:
    """One system. Without a `target` it has no server: its command measures in process and writes a report."""

    environment: str  # requirements/NAME.txt, installed in .venv-peers/NAME
    runs: str  # in words, for the record
    graph: Graph
    command: tuple[str, ...]
    settings: tuple[Setting, ...]
    target: str = ""  # module:name
    directory: str = ""  # where the command runs
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def python(self) -> Path:
        """The Python of its environment, which may not be there."""
        return Path.cwd() / ENVIRONMENTS / self.environment / "bin" / "python"

    def filled(self, material: Material, threads: int, setting: Setting, **more: object) -> "Start":
        """How to start it with one of its settings; `more` are `port`, or `texts` and `report`."""
        files = material.plain if self.graph == "plain" else material.bundle
        values: dict[str, object] = {
            "python": self.python,
            "servers": HERE / "servers",
            "model": files.model.resolve(),
            "tokenizer": material.tokenizer.resolve(),
            "max_tokens": material.max_tokens,
            "checkpoint": material.checkpoint.resolve(),
            "onnx_directory": files.directory.resolve(),
            "threads": threads,
            "libpython": sysconfig.get_config_var("LIBDIR"),
            **more,
        }
        own = {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false" if threads == 1 else "true",
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
        }
        return Start(
            command=(*(part.format_map(values) for part in self.command), *flags(setting)),
            variables=own | {name: value.format_map(values) for name, value in self.variables.items()},
            directory=Path(self.directory.format_map(values) or "."),
        )


@dataclass(frozen=True, slots=True)
class Start:
    """A command, variables that it gets beside the usual ones, and where it runs."""

    command: tuple[str, ...]
    variables: Mapping[str, str]
    directory: Path


def flags(setting: Setting) -> list[str]:
    """A setting as flags of a command line."""
    found: list[str] = []
    for name, value in setting.items():
        if value is not False:
            found.append("--" + name.replace("_", "-"))
        if not isinstance(value, bool):
            found.append(str(value))
    return found


def load_peers(file: Path = FILE) -> dict[str, Peer]:
    """Reads the descriptions, by name; one that is `like` another has all that it does not say from there.

    Raises:
        BenchmarkError: one is not as it should be; says which and how.
    """
    try:
        tables = tomllib.loads(file.read_text("utf-8"))
        whole = {
            name: {**tables[table["like"]], **table} if "like" in table else table for name, table in tables.items()
        }
        return msgspec.convert(whole, dict[str, Peer])
    except KeyError as error:
        raise BenchmarkError(f"{file.name}: a peer is like {error}, which is not there") from None
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BenchmarkError(f"{file.name}: {error}") from None
