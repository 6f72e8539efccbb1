"""Pickles of ids and vectors, read without running anything that a file asks for.

A pickle is a program, and the usual guard, to allow some names of numpy and no others, is not enough: `numpy.ndarray`
alone makes objects out of any bytes. So nothing is allowed here. The names that such files need stand for themselves,
a call of one is written down as a `Call`, and `identifier` and `vector` read what was written down. Of the opcodes only
those are known that lists, tuples, texts, numbers and such calls are written with: no dictionaries, sets or classes.

pickle's reader in Python, not the one in C: it can be told which opcodes there are, and it reserves no memory for what
a file only claims to hold. It takes some 20 us an entry, where that in C takes 4.
"""

import mmap
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Never

import numpy as np
import numpy.typing as npt

from narrows.errors import EmbeddingFileError

STARTS = (b"\x80", b"](", b"]q", b"(l")  # of a pickled list: protocols 2 to 5, then 1, then 0
OPCODES = (
    "PROTO", "FRAME", "STOP", "MARK", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
)  # fmt: skip
GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),  # numpy 1 writes numpy.core, numpy 2 numpy._core
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),  # protocol 5
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),  # bytes, in protocols 0 to 2
}
VECTOR_DTYPES = ("f2", "f4")
ID_DTYPES = ("i4", "i8", "u4", "u8")


@dataclass(slots=True, eq=False)
class Call:
    """A call that a file asks for, written down: of which name, with what, and the state that it sets on the result."""

    name: str
    args: tuple[object, ...]
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


@dataclass(frozen=True, slots=True)
class _Global:
    """A name that a file may use; to call it is to write the call down."""

    name: str

    def __call__(self, *args: object) -> Call:
        return Call(self.name, args)

    def __setstate__(self, state: object) -> Never:
        raise pickle.UnpicklingError(f"it sets the state of {self.name} itself")


class _Opcodes(dict[int, Callable[[pickle.Unpickler], None]]):
    """What each known opcode does."""

    def __missing__(self, code: int) -> Never:
        names = [f"the opcode {opcode.name}" for opcode in pickletools.opcodes if opcode.code == chr(code)]
        what = names[0] if names else f"{bytes([code])!r}, which is no opcode"
        raise pickle.UnpicklingError(f"it uses {what}: ids and vectors are not written with that")


class _Unpickler(pickle._Unpickler):
    dispatch = _Opcodes(
        {code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in OPCODES)}
    )
    # The one for bytearrays reserves as much memory as the file says that there are bytes.
    dispatch[pickle.BYTEARRAY8[0]] = dispatch[pickle.BINBYTES8[0]]

    def find_class(self, module: str, name: str) -> _Global:
        if (module, name) not in GLOBALS:
            asked = f"{module}.{name}"[:80]
            raise pickle.UnpicklingError(f"it asks for {asked!r}, which ids and vectors do not need; nothing was run")
        return _Global(name)


def load(file: Path) -> list[object]:
    """Reads a pickled list, whole; calls that the file asks for are in it as `Call`s.

    Raises:
        EmbeddingFileError: the file cannot be read, is no pickle, asks for more than ids and vectors need, holds
            anything but one list, or that list is empty.
    """
    try:
        if not file.stat().st_size:
            raise EmbeddingFileError(f"{file} is empty: copy or write it again")
        # Mapped: a file object reserves memory for all bytes that it is asked for, a mapping for those that it has.
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            value = _Unpickler(data).load()
            left = len(data) - data.tell()
    except OSError as error:
        raise EmbeddingFileError(f"{file} cannot be read: {error.strerror or error}") from None
    except EmbeddingFileError:
        raise
    except EOFError:
        raise EmbeddingFileError(f"{file}: the pickle ends too early: copy or write the file again") from None
    except Exception as error:  # a wrong program fails in any way that a program can
        why = str(error) if isinstance(error, pickle.UnpicklingError) else f"{type(error).__name__}: {error}"
        raise EmbeddingFileError(
            f"{file} is not a pickle of ids and vectors, or is damaged: {why}. Expected is what DPR writes: a list of "
            "(id, numpy vector), or of ids beside a FAISS file"
        ) from None
    if type(value) is not list:
        raise EmbeddingFileError(f"{file}: expected a pickled list, found {described(value)}")
    if not value:
        raise EmbeddingFileError(f"{file}: the list is empty")
    if left:
        raise EmbeddingFileError(
            f"{file}: {left} bytes follow the list, and would be left out: write one list into each file"
        )
    return value


def identifier(value: object) -> str:
    """An id as text: of a text itself, of an integer in decimal.

    Raises:
        ValueError: it is neither, or no valid text.
    """
    match value:
        case str():
            try:
                value.encode()
            except UnicodeEncodeError:  # pickle, unlike UTF-8, writes halves of surrogate pairs
                raise ValueError(f"the id {value[:80]!r} is no valid Unicode text") from None
            return value
        case int() if not isinstance(value, bool):
            return str(value)
        case Call("scalar", (Call() as dtype, data)):
            return str(int(_numbers("the id", data, dtype, ID_DTYPES, 1)[0]))
    raise ValueError(f"the id is {described(value)}, expected a text or an integer")


def vector(value: object) -> npt.NDArray[np.float32]:
    """A numpy vector of float32 or float16 as float32, (dim,).

    Raises:
        ValueError: it is none, is of another dtype or shape, or its bytes are too few or too many.
    """
    match value:
        case Call("_reconstruct", _, (_, tuple() as shape, dtype, _, data)):
            pass
        case Call("_frombuffer", (data, dtype, tuple() as shape, _)):
            pass
        case _:
            raise ValueError(f"the vector is {described(value)}, expected a numpy array")
    match shape:
        case (int() as dim,) if dim > 0:
            return _numbers("the vector", data, dtype, VECTOR_DTYPES, dim).astype(np.float32)
    lengths = ", ".join(str(length) if isinstance(length, int) else described(length) for length in shape[:4])
    raise ValueError(f"the vector has shape ({lengths}), expected one dimension, and not empty")


def described(value: object) -> str:
    """What a value is, in a few words; never the value itself, which may be of any size and depth."""
    match value:
        case None:
            return "None"
        case Call("_reconstruct" | "_frombuffer"):
            return "a numpy array"
        case Call(name):
            return f"the result of {name}()"
        case _Global(name):
            return f"the function {name}"
        case tuple() | list():
            return f"a {type(value).__name__} of {len(value)}"
    return f"of type {type(value).__name__}"


def _numbers(what: str, data: object, dtype: object, allowed: tuple[str, ...], count: int) -> npt.NDArray[np.generic]:
    match dtype:
        case Call("dtype", (str() as code, *_), (_, "<" | ">" as order, *_)) if code in allowed:
            expected = np.dtype(order + code)
        case Call("dtype", (str() as code, *_)):
            names = " or ".join(np.dtype(name).name for name in allowed)
            raise ValueError(f"{what} has the dtype {code[:20]!r}, expected {names}")
        case _:
            raise ValueError(f"{what} has {described(dtype)} for a dtype")
    match data:
        case Call("encode", (str() as text, "latin1")):
            data = text.encode("latin1")
    if not isinstance(data, bytes) or len(data) != count * expected.itemsize:
        found = f"{len(data)} bytes" if isinstance(data, bytes) else described(data)
        raise ValueError(f"{what} should have {count * expected.itemsize} bytes of {expected.name}, but has {found}")
    return np.frombuffer(data, expected)
