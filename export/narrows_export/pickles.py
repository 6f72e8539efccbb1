"""PyTorch's pickles, read without running what may be in them."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from narrows.errors import CheckpointError


def load(file: Path) -> Any:  # noqa: ANN401  (tensors, and plain containers of them)
    """Reads a file of torch.save, of today's format or the one before it; tensors of today's are mapped, not read.

    Raises:
        CheckpointError: it is damaged, or holds Python objects besides tensors and plain containers.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # legacy pickles warn of TypedStorage
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError:  # torch's own text advises to load the file all the same
        raise CheckpointError(
            f"{file} is damaged, or holds Python objects besides tensors; loading those may run code, so it is refused"
        ) from None
    except Exception as error:  # torch raises its own kinds for damaged files
        raise CheckpointError(f"{file} cannot be read, so it is probably damaged: {error!r}") from None
