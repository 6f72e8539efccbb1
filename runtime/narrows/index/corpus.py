"""An index without its vectors: what turns the rows that a search found into passages."""

from dataclasses import dataclass
from pathlib import Path

from narrows.bundle import Bundle
from narrows.errors import IndexFileError
from narrows.index.store import IndexManifest, check_towers, identity, read_manifest
from narrows.passages import Passages


@dataclass(frozen=True, slots=True)
class Corpus:
    """Manifest and passages of one generation."""

    manifest: IndexManifest
    generation: str
    passages: Passages


def open_corpus(path: Path, bundle: Bundle, index_id: str) -> Corpus:
    """Opens the passages of the index of that identity, which an engine has opened, and so checked, a moment ago.

    Raises:
        IndexFileError: another one is there now, or it cannot be read.
        MismatchError: another tower filled the index.
    """
    generation, manifest = read_manifest(path)
    check_towers(path, manifest, bundle)
    if identity(manifest) != index_id:
        raise IndexFileError(f"{path} was replaced since the engine opened it")
    try:
        return Corpus(manifest, generation, Passages(path / generation))
    except OSError as error:
        raise IndexFileError(f"generation {generation} of {path} cannot be opened: {error}") from None
