"""PyTorch's pickles, read as data: tensors and plain containers load, everything else is refused and never run."""

import pickle
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeGuard

import torch

from narrows.errors import CheckpointError

ZIP = b"PK\x03\x04"  # since PyTorch 1.6; older files are pickles one after another
StandIn = tuple[type, str]  # a class of ours, and the full name that the file gives to what it stands for


def read(file: Path, stand_ins: Sequence[StandIn] = ()) -> object:
    """Loads a file of torch.save. Tensors of a zip file stay on disk until they are used.

    Raises:
        CheckpointError: the file is damaged, does not fit into memory, or holds an object that is neither plain data
            nor has a stand-in.
        OSError: it cannot be opened.
    """
    with file.open("rb") as opened:
        zipped = opened.read(len(ZIP)) == ZIP
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(stand_ins)):
            warnings.simplefilter("ignore")  # legacy pickles warn of TypedStorage
            content: object = torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
            return content
    except pickle.UnpicklingError as error:  # torch's own text advises to load the file all the same
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({refused[1]})" if refused else ""
        raise CheckpointError(
            f"{file} is damaged, or holds Python objects besides tensors{what}; loading those may run code, so it is "
            "refused"
        ) from None
    except OSError as error:  # a disk that fails; but torch's reader of zip files says so of damage, too
        raise CheckpointError(f"{file} cannot be read: {error.strerror}; it may be damaged") from None
    except Exception as error:  # each reader raises its own kinds for damaged files
        if isinstance(error, MemoryError) or "allocate memory" in str(error):  # which torch has as a RuntimeError
            raise CheckpointError(
                f"{file} does not fit into the memory that is free: free some, or use a machine with more"
            ) from None
        raise CheckpointError(f"{file} cannot be read, so it is probably damaged: {error!r}") from None


def is_table(content: object) -> TypeGuard[dict[str, torch.Tensor]]:
    """Whether this is what files of weights hold: names and tensors."""
    return isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in content.items()
    )
