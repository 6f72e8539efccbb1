"""JSON <-> manifest dataclasses: strict, and with errors that say which file and what to do."""

from pathlib import Path
from typing import TypeVar

import msgspec

from narrows.errors import NarrowsError

T = TypeVar("T")


def encode(manifest: object) -> bytes:
    """A manifest as readable JSON."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"


def decode(data: bytes, kind: type[T], versions: int | tuple[int, ...], file: Path, error: type[NarrowsError]) -> T:
    """Reads a manifest of one of these schema versions; `file` is named in errors.

    Raises:
        error: it is damaged, or of another schema version.
    """
    try:
        found = msgspec.json.decode(data, type=dict[str, object]).get("schema_version")
        known = (versions,) if isinstance(versions, int) else versions
        if found not in known:
            reads = " and ".join(map(str, known))
            raise error(f"{file} has schema version {found}; this program reads {reads}; make it again")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise error(f"{file} cannot be read: {problem}; make it again") from None
