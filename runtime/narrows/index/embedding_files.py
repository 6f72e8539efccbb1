"""Embeddings that others have made: which files they are in, and the ids and vectors in those.

Three layouts are known:

- `dpr-pickles`: the shards that DPR's generate_dense_embeddings.py writes, `<out>_0`, `<out>_1`, ...: each a pickled
  list of (id, vector);
- `dpr-faiss`: what DPR's indexers write: `<name>.index.dpr`, or `index.dpr` in a directory, with the vectors, and
  beside it `<name>.index_meta.dpr` or `index_meta.dpr`, a pickled list of ids in the order of rows;
- `pyserini`: a directory with `index`, a FAISS file, and `docid`, an id a line.

Entries are counted from 1. A shard of pickles is in memory whole while it is read, and so are all ids of a FAISS file.
Whether ids are unique, and which passages they are of, is for the reader of the blocks to check.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from narrows.errors import EmbeddingFileError
from narrows.index import embedding_pickles
from narrows.index.embedding_faiss import BLOCK_ROWS, open_vectors
from narrows.text_lines import TextLines

Kind = Literal["dpr-pickles", "dpr-faiss", "pyserini"]
Vectors = npt.NDArray[np.float32]

_DPR_FAISS = re.compile(r"(?P<name>(?:.*\.)?)index(?:_meta)?\.dpr", re.DOTALL)
_NUMBER = re.compile(r"([0-9]+)")
_EXPECTED = (
    "expected DPR's pickles (<out>_0, <out>_1, ...), <name>.index.dpr with <name>.index_meta.dpr, or Pyserini's "
    "directory of index and docid"
)


@dataclass(frozen=True, slots=True)
class EmbeddingBlock:
    """Consecutive embeddings."""

    ids: Sequence[str]  # passage ids as the file has them, id prefix cut off
    vectors: Vectors  # (len(ids), dim), C-contiguous, finite


@dataclass(frozen=True, slots=True)
class EmbeddingFiles:
    """What was found, and of which layout."""

    kind: Kind
    files: tuple[Path, ...]  # in the order read; of FAISS files each is followed by that of its ids


@dataclass(frozen=True, slots=True)
class _Part:
    """Consecutive embeddings as they are in their files, and where."""

    ids_file: Path
    vectors_file: Path
    first: int  # entry
    ids: Sequence[object]
    vectors: Vectors


def find(paths: Sequence[Path]) -> EmbeddingFiles:
    """Finds out which layout files and directories are of.

    Args:
        paths: files; directories, of which all files of the one layout that is in them are taken; or the name that DPR
            was given for an index, without `.index.dpr`. One file of a pair is enough.

    Raises:
        EmbeddingFileError: there is nothing, or no known layout, or several; half of a pair is missing; or a file is
            named twice.
    """
    files = sorted((file for path in paths for file in _files(path)), key=_natural)
    if not files:
        raise EmbeddingFileError(f"no embedding files were named: {_EXPECTED}")
    seen: set[Path] = set()
    for file in files:
        if (real := file.resolve()) in seen:
            raise EmbeddingFileError(f"{file} is named twice: its embeddings would be there twice; name it once")
        seen.add(real)
    kinds = {_kind(file): file for file in files}
    if len(kinds) > 1:
        listed = ", ".join(f"{file} ({kind})" for kind, file in kinds.items())
        raise EmbeddingFileError(f"files of several layouts: {listed}; name those of one")
    kind = _kind(files[0])
    if kind != "dpr-pickles":
        files = [file for pair in dict.fromkeys(map(_pair, files)) for file in pair]
        for file in files:
            if not file.is_file():
                raise EmbeddingFileError(f"{file} is missing: vectors and ids belong together; {_EXPECTED}")
    return EmbeddingFiles(kind, tuple(files))


def read(found: EmbeddingFiles, id_prefix: str = "") -> Iterator[EmbeddingBlock]:
    """Yields the embeddings in blocks of up to 4096, in order. Files are opened, and found wrong, as it comes to them.

    Args:
        found: what `find` returned.
        id_prefix: what every id begins with in the files and not in the passages, such as `wiki:`.

    Raises:
        EmbeddingFileError: a file is damaged, asks for more than ids and vectors need, or is of a type that is not
            read; vectors differ in dimension, are not finite, or are not as many as their ids; an id lacks the prefix.
    """
    dim_of: tuple[Path, int] | None = None
    for part in _parts(found):
        dim = part.vectors.shape[1]
        first_file, first_dim = dim_of = dim_of or (part.vectors_file, dim)
        if dim != first_dim:
            raise EmbeddingFileError(
                f"{part.vectors_file} holds vectors of {dim} dimensions, {first_file} of {first_dim}: import the files "
                "of one encoder"
            )
        ids = _ids(part, id_prefix)
        finite = np.isfinite(part.vectors).all(axis=1)
        if not finite.all():
            row = int(finite.argmin())
            raise EmbeddingFileError(
                f"{part.vectors_file}: entry {part.first + row}, id {_short(ids[row])}: the vector holds NaN or "
                "infinity: embed this passage again"
            )
        yield EmbeddingBlock(ids, part.vectors)


def _ids(part: _Part, prefix: str) -> list[str]:
    ids = []
    for number, value in enumerate(part.ids, part.first):
        where = f"{part.ids_file}: entry {number}"
        try:
            identifier = embedding_pickles.identifier(value)
        except ValueError as error:
            raise EmbeddingFileError(f"{where}: {error}; write the file again") from None
        if not identifier.startswith(prefix):
            raise EmbeddingFileError(
                f"{where}: the id {_short(identifier)} does not begin with {prefix!r}; --id-prefix must be what "
                "every id begins with, or be left out"
            )
        ids.append(identifier.removeprefix(prefix))
        if not ids[-1]:
            raise EmbeddingFileError(f"{where}: the id is empty" + (f" after the prefix {prefix!r}" if prefix else ""))
    return ids


def _short(identifier: str) -> str:
    return repr(identifier if len(identifier) <= 80 else identifier[:77] + "...")


def _files(path: Path) -> list[Path]:
    """The files that a path stands for."""
    if path.is_dir():
        return _files_in(path)
    if path.exists():
        return [path]
    named = [path.with_name(f"{path.name}{suffix}") for suffix in (".index.dpr", ".index_meta.dpr")]
    if files := [file for file in named if file.is_file()]:
        return files
    raise EmbeddingFileError(f"{path} does not exist: {_EXPECTED}")


def _files_in(directory: Path) -> list[Path]:
    try:
        files = [file for file in directory.iterdir() if file.is_file() and not file.name.startswith(".")]
        begins = {file: _begins_as_pickle(file) for file in files}
    except OSError as error:
        raise EmbeddingFileError(f"{error.filename or directory} cannot be read: {error.strerror or error}") from None
    # A shard that is empty or overwritten is not passed over: its neighbours' names tell that it is one.
    series = {_series(file) for file in files if begins[file]}
    found = [file for file in files if _kind(file) != "dpr-pickles" or _series(file) in series]
    if not found:
        raise EmbeddingFileError(f"{directory} holds no embedding files: {_EXPECTED}")
    return found


def _begins_as_pickle(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(2).startswith(embedding_pickles.STARTS)


def _series(file: Path) -> str:
    """A shard's name without its number."""
    return _NUMBER.sub("#", file.name)


def _natural(file: Path) -> list[str | int]:
    """Sorts _10 after _9."""
    return [int(part) if number % 2 else part for number, part in enumerate(_NUMBER.split(str(file)))]


def _kind(file: Path) -> Kind:
    """The layout that a file's name says it is of."""
    if _DPR_FAISS.fullmatch(file.name):
        return "dpr-faiss"
    return "pyserini" if file.name in ("index", "docid") else "dpr-pickles"


def _pair(file: Path) -> tuple[Path, Path]:
    """The FAISS file and that of its ids, of which `file` is one."""
    if match := _DPR_FAISS.fullmatch(file.name):
        return file.with_name(f"{match['name']}index.dpr"), file.with_name(f"{match['name']}index_meta.dpr")
    return file.with_name("index"), file.with_name("docid")


def _parts(found: EmbeddingFiles) -> Iterator[_Part]:
    if found.kind == "dpr-pickles":
        for file in found.files:
            yield from _pickle_parts(file)
    else:
        for vectors_file, ids_file in zip(found.files[::2], found.files[1::2], strict=True):
            yield from _faiss_parts(vectors_file, ids_file, found.kind == "dpr-faiss")


def _pickle_parts(file: Path) -> Iterator[_Part]:
    entries = iter(embedding_pickles.load(file))
    first, dim = 1, None
    while block := list(islice(entries, BLOCK_ROWS)):
        ids, vectors = [], []
        for number, entry in enumerate(block, first):
            try:
                identifier, vector = _entry(entry)
                dim = dim or len(vector)
                if len(vector) != dim:
                    raise ValueError(f"the vector has {len(vector)} dimensions, those before it {dim}")
            except ValueError as error:
                raise EmbeddingFileError(f"{file}: entry {number}: {error}; write the file again") from None
            ids.append(identifier)
            vectors.append(vector)
        yield _Part(file, file, first, ids, np.stack(vectors))
        first += len(block)


def _entry(entry: object) -> tuple[object, Vectors]:
    match entry:
        case (identifier, vector) if isinstance(entry, tuple):
            return identifier, embedding_pickles.vector(vector)
    raise ValueError(f"expected a tuple (id, numpy vector), found {embedding_pickles.described(entry)}")


def _faiss_parts(vectors_file: Path, ids_file: Path, is_dpr: bool) -> Iterator[_Part]:
    vectors = open_vectors(vectors_file, is_dpr)
    ids = embedding_pickles.load(ids_file) if is_dpr else _docids(ids_file)
    if len(ids) != len(vectors.stored):
        raise EmbeddingFileError(
            f"{vectors_file} holds {len(vectors.stored)} vectors and {ids_file} {len(ids)} ids: one of them is cut "
            "short, or they are not of one index"
        )
    first = 1
    for block in vectors.blocks():
        yield _Part(ids_file, vectors_file, first, ids[first - 1 : first - 1 + len(block)], block)
        first += len(block)


def _docids(file: Path) -> list[str]:
    with TextLines(file, EmbeddingFileError) as lines:
        ids = [line.rstrip() for line in lines]  # as Pyserini reads them
    if not ids:
        raise EmbeddingFileError(f"{file} is empty: expected an id a line")
    return ids
