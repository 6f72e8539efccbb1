"""Embeddings that others have made: what is read of each layout, and that every other file is refused, unrun."""

import gc
import io
import os
import pickle
import struct
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import ClassVar

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from narrows.errors import EmbeddingFileError
from narrows.index.embedding_files import EmbeddingBlock, find, read

Vectors = npt.NDArray[np.float32]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
DIM = 6
REPRODUCIBLE = settings(
    derandomize=True, deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def some_vectors(count: int, dim: int = DIM, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)


def numbered(count: int, prefix: str = "wiki:") -> list[str]:
    return [f"{prefix}{number}" for number in range(1, count + 1)]


def everything(paths: Sequence[Path], id_prefix: str = "") -> tuple[list[str], Vectors]:
    """All that `read` yields, after a look at each block's form."""
    blocks = list(read(find(paths), id_prefix))
    for block in blocks:
        assert isinstance(block, EmbeddingBlock)
        assert block.vectors.dtype == np.float32
        assert block.vectors.flags.c_contiguous
        assert len(block.ids) == len(block.vectors) > 0
    return [identifier for block in blocks for identifier in block.ids], np.concatenate(
        [block.vectors for block in blocks]
    )


def refusal(*paths: Path, id_prefix: str = "") -> str:
    with pytest.raises(EmbeddingFileError) as caught:
        list(read(find(paths), id_prefix))
    return str(caught.value)


def shard(file: Path, entries: object, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    with file.open("wb") as stream:
        pickle.dump(entries, stream, protocol)
    return file


# --- Pickles that are read


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    vectors = some_vectors(5)
    file = shard(tmp_path / "out_0", list(zip(numbered(5), vectors, strict=True)), protocol)
    assert find([file]).kind == "dpr-pickles"
    ids, found = everything([file])
    assert ids == numbered(5)
    assert np.array_equal(found, vectors)


class Numpy1Pickler(pickle._Pickler):
    """Writes the names that numpy 1 has for numpy's functions."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_global(self, obj: object, name: str | None = None) -> None:
        if not obj.__module__.startswith("numpy._core."):
            return super().save_global(obj, name)  # type: ignore[misc, no-any-return]
        module = obj.__module__.replace("._core", ".core")
        if self.proto >= 4:  # type: ignore[attr-defined]
            self.save(module)  # type: ignore[attr-defined]
            self.save(obj.__name__)  # type: ignore[attr-defined]
            self.write(pickle.STACK_GLOBAL)  # type: ignore[attr-defined]
        else:
            self.write(f"c{module}\n{obj.__name__}\n".encode())  # type: ignore[attr-defined]
        return self.memoize(obj)  # type: ignore[attr-defined, no-any-return]

    dispatch[FunctionType] = save_global


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_of_numpy_1(tmp_path: Path, protocol: int) -> None:
    vectors = some_vectors(5)
    stream = io.BytesIO()
    Numpy1Pickler(stream, protocol).dump(list(zip(numbered(5), vectors, strict=True)))
    assert b"numpy.core" in stream.getvalue()
    assert b"_core" not in stream.getvalue()
    (tmp_path / "out_0").write_bytes(stream.getvalue())
    ids, found = everything([tmp_path / "out_0"])
    assert ids == numbered(5)
    assert np.array_equal(found, vectors)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f2"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_vectors_of_both_precisions_and_byte_orders(tmp_path: Path, dtype: str, protocol: int) -> None:
    vectors = some_vectors(3).astype(dtype)
    file = shard(tmp_path / "out_0", list(zip("abc", vectors, strict=True)), protocol)
    assert np.array_equal(everything([file])[1], vectors.astype(np.float32))


def test_vectors_that_are_columns_and_bytes_that_are_shared(tmp_path: Path) -> None:
    vectors = some_vectors(4)
    file = shard(tmp_path / "out_0", [("a", vectors[:, 1]), ("b", vectors[:, 1]), ("c", vectors[::-1, 2])])
    assert np.array_equal(everything([file])[1], [vectors[:, 1], vectors[:, 1], vectors[::-1, 2]])


@pytest.mark.parametrize(("identifier", "text"), [(7, "7"), (-7, "-7"), (2**70, str(2**70)), (np.int64(7), "7")])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_integer_as_id_is_its_decimal(tmp_path: Path, identifier: int, text: str, protocol: int) -> None:
    file = shard(tmp_path / "out_0", [(identifier, some_vectors(1)[0])], protocol)
    assert everything([file])[0] == [text]


def test_the_prefix_of_ids_is_cut_off_once(tmp_path: Path) -> None:
    file = shard(tmp_path / "out_0", [("wiki:wiki:1", some_vectors(1)[0])])
    assert everything([file])[0] == ["wiki:wiki:1"]
    assert everything([file], "wiki:")[0] == ["wiki:1"]


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    vectors = some_vectors(12)
    for number in range(12):
        shard(tmp_path / f"out_{number}", [(number, vectors[number])])
    (tmp_path / "out.log").write_text("done")
    (tmp_path / ".out_12").write_bytes(b"\x80\x04")
    (tmp_path / "out_11_checked").mkdir()
    files = [tmp_path / f"out_{number}" for number in range(12)]
    assert list(find([tmp_path]).files) == files
    assert list(find(files[::-1]).files) == files
    ids, found = everything([tmp_path])
    assert ids == [str(number) for number in range(12)]
    assert np.array_equal(found, vectors)


def test_many_entries_come_in_blocks(tmp_path: Path) -> None:
    vectors = some_vectors(9000, dim=2)
    file = shard(tmp_path / "out_0", list(zip(range(9000), vectors, strict=True)))
    assert [len(block.ids) for block in read(find([file]))] == [4096, 4096, 808]
    assert np.array_equal(everything([file])[1], vectors)


@given(
    entries=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300) | st.integers(),
            st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=6,
    ),
    protocol=st.sampled_from(PROTOCOLS),
)
@REPRODUCIBLE
def test_whatever_is_pickled_reads_back(
    tmp_path: Path, entries: list[tuple[str | int, list[float]]], protocol: int
) -> None:
    vectors = np.array([vector for _, vector in entries], dtype=np.float32)
    ids = [identifier for identifier, _ in entries]
    file = shard(tmp_path / "out_0", list(zip(ids, vectors, strict=True)), protocol)
    found_ids, found = everything([file])
    assert found_ids == [str(identifier) for identifier in ids]
    assert np.array_equal(found, vectors)


# --- Pickles that want to run something


class Runs:
    """Pickled as a call."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def program(*opcodes: bytes) -> bytes:
    return b"\x80\x04" + b"".join(opcodes) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


DTYPE = b"cnumpy\ndtype\n" + text("f4") + b"\x85R(K\x03" + text("<") + b"tb"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
HOSTILE = {
    "os.system": (lambda mark: pickle.dumps([("a", Runs(os.system, f"touch {mark}"))]), f"{os.name}.system"),
    "protocol 0": (lambda mark: pickle.dumps(Runs(os.system, f"touch {mark}"), 0), f"{os.name}.system"),
    "eval": (lambda mark: pickle.dumps(Runs(eval, f"open({str(mark)!r}, 'w')")), "builtins.eval"),
    "getattr": (lambda _: pickle.dumps(Runs(getattr, "a", "upper")), "builtins.getattr"),
    "numpy.load": (lambda _: pickle.dumps(Runs(np.load, "x", None, True)), "numpy.load"),
    "an allowed module": (
        lambda _: program(named("numpy.core.multiarray", "fromfile"), text("x"), b"\x85R"),
        "numpy.core.multiarray.fromfile",
    ),
    "dots in a name": (
        lambda mark: program(named("numpy", "f2py.os.system"), text(f"touch {mark}"), b"\x85R"),
        "numpy.f2py.os.system",
    ),
    "dots below a function": (
        lambda _: program(named("numpy.core.multiarray", "_reconstruct.__globals__"), b"\x85R"),
        "numpy.core.multiarray._reconstruct.__globals__",
    ),
    "a name cut elsewhere": (
        lambda _: program(named("numpy", "core.multiarray._reconstruct")),
        "numpy.core.multiarray._reconstruct",
    ),
    "encode to run a codec": (
        lambda _: program(
            b"](", text("a"), RECONSTRUCT, b"N\x85R(K\x03K\x01\x85", DTYPE,
            b"\x89c_codecs\nencode\n", text("4 is"), text("utf-7"), b"\x86Rtbta",
        ),
        "entry 1: the vector should have 4 bytes of float32, but has the result of encode()",
    ),
    "INST": (lambda mark: program(b"(", text(f"touch {mark}"), b"ios\nsystem\n"), "INST"),
    "OBJ": (lambda _: program(b"(", b"cnumpy\nndarray\n", b"o"), "OBJ"),
    "NEWOBJ": (lambda _: program(b"cnumpy\nndarray\n", b")\x81"), "NEWOBJ"),
    "an extension": (lambda _: program(b"\x82\x01"), "EXT1"),
    "a persistent id": (lambda _: program(text("a"), b"Q"), "BINPERSID"),
    "a function's state": (lambda _: program(RECONSTRUCT, b"K\x01b"), "sets the state of _reconstruct"),
    "a text's state": (lambda _: program(text("a"), b"NK\x01\x86b"), "damaged"),
    "an array of any memory": (
        lambda _: program(
            b"](", text("a"), b"cnumpy\nndarray\n(K\x01\x85", text("O"), b"C\x08AAAAAAAAtR", b"t", b"a"
        ),
        "the vector is the result of ndarray()",
    ),
    "an array of objects": (
        lambda _: pickle.dumps([("a", np.array([1.5, "b"], dtype=object))]),
        "entry 1: the vector has the dtype 'O8', expected float16 or float32",
    ),
    "objects behind float32": (lambda _: pickle.dumps([("a", np.zeros(2, np.dtype("f4,O")))]), "damaged"),
    "a dictionary": (lambda _: pickle.dumps({"a": some_vectors(1)[0]}), "EMPTY_DICT"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_file_asks_for_is_run(tmp_path: Path, name: str) -> None:
    make, expected = HOSTILE[name]
    mark = tmp_path / "mark"
    file = tmp_path / "out_0"
    file.write_bytes(make(mark))
    said = refusal(file)
    assert str(file) in said
    assert expected in said
    assert not mark.exists()


def test_nothing_that_the_ids_of_a_faiss_file_ask_for_is_run(tmp_path: Path) -> None:
    faiss_pair(tmp_path, flat(some_vectors(1)), [Runs(os.mkdir, str(tmp_path / "mark"))])
    assert f"{os.name}.mkdir" in refusal(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"]r\xff\xff\xff\xff",  # the place of a list in the memory of those seen
        b"\x8e" + struct.pack("<Q", 2**40),  # the length of bytes
        b"\x96" + struct.pack("<Q", 2**31),  # of a bytearray
        b"\x8d" + struct.pack("<Q", 2**40),  # of a text
        b"\x95" + struct.pack("<Q", 2**40),  # of a frame
    ],
)
def test_no_memory_is_taken_for_what_a_file_only_claims(tmp_path: Path, opcodes: bytes) -> None:
    file = tmp_path / "out_0"
    file.write_bytes(b"\x80\x04" + opcodes)
    tracemalloc.start()
    try:
        assert str(file) in refusal(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_tuples_within_tuples_end_in_a_message(tmp_path: Path) -> None:
    file = tmp_path / "out_0"
    file.write_bytes(program(b"](N", b"\x85" * 300_000, b"e"))
    assert "entry 1: expected a tuple (id, numpy vector), found a tuple of 1" in refusal(file)
    gc.collect()


ENTRIES = [
    ("wiki:1", some_vectors(1)[0]),
    (2, some_vectors(1)[0].astype(np.float16)),
    (np.int64(3), some_vectors(1)[0]),
]


@given(
    protocol=st.sampled_from(PROTOCOLS),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), min_size=1, max_size=4),
)
@REPRODUCIBLE
def test_a_changed_pickle_is_read_or_refused(
    tmp_path: Path, protocol: int, changes: list[tuple[int, int, bytes]]
) -> None:
    data = pickle.dumps(ENTRIES, protocol)
    for place, removed, put in changes:
        at = place % len(data)
        data = data[:at] + put + data[at + removed :]
    file = tmp_path / "out_0"
    file.write_bytes(data)
    try:
        ids, vectors = everything([file])
    except EmbeddingFileError as error:
        assert str(file) in str(error)  # noqa: PT017 - a change may leave a good file
    else:
        assert all(isinstance(identifier, str) for identifier in ids)
        assert np.isfinite(vectors).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_short_anywhere_is_refused(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps(ENTRIES, protocol)
    file = tmp_path / "out_0"
    for length in range(len(data)):
        file.write_bytes(data[:length])
        assert str(file) in refusal(file)


# --- Pickles that hold something else


@pytest.mark.parametrize(
    ("entries", "what"),
    [
        ([], "the list is empty"),
        ("text", "expected a pickled list, found of type str"),
        ((("a", some_vectors(1)[0]),), "expected a pickled list, found a tuple of 1"),
        (["a"], "entry 1: expected a tuple (id, numpy vector), found of type str"),
        ([["a", some_vectors(1)[0]]], "entry 1: expected a tuple (id, numpy vector), found a list of 2"),
        ([("a", some_vectors(1)[0], 1)], "entry 1: expected a tuple (id, numpy vector), found a tuple of 3"),
        ([("a", [1.0, 2.0])], "entry 1: the vector is a list of 2, expected a numpy array"),
        ([("a", np.float32(1))], "entry 1: the vector is the result of scalar(), expected a numpy array"),
        ([("a", some_vectors(1)[0]), ("b", some_vectors(1))], "entry 2: the vector has shape (1, 6)"),
        ([("a", np.zeros((), np.float32))], "entry 1: the vector has shape ()"),
        ([("a", np.zeros(0, np.float32))], "entry 1: the vector has shape (0)"),
        ([("a", np.zeros(2))], "entry 1: the vector has the dtype 'f8', expected float16 or float32"),
        ([("a", np.zeros(2, np.int32))], "entry 1: the vector has the dtype 'i4', expected float16 or float32"),
        ([("a", np.zeros(2, np.float32)), ("b", np.zeros(3, np.float32))], "entry 2: the vector has 3 dimensions"),
        ([("a", np.array([0, np.nan], np.float32))], "entry 1, id 'a': the vector holds NaN or infinity"),
        ([(1, np.zeros(1, np.float32)), (2, np.array([np.inf], np.float16))], "entry 2, id '2': the vector holds NaN"),
        ([("", np.zeros(2, np.float32))], "entry 1: the id is empty"),
        ([(None, np.zeros(2, np.float32))], "entry 1: the id is None, expected a text or an integer"),
        ([(True, np.zeros(2, np.float32))], "entry 1: the id is of type bool, expected a text or an integer"),
        ([(b"a", np.zeros(2, np.float32))], "entry 1: the id is of type bytes, expected a text or an integer"),
        ([(1.0, np.zeros(2, np.float32))], "entry 1: the id is of type float, expected a text or an integer"),
        ([(np.str_("a"), np.zeros(2, np.float32))], "entry 1: the id has the dtype 'U1', expected int32"),
        ([("a\ud800", np.zeros(2, np.float32))], "entry 1: the id 'a\\ud800' is no valid Unicode text"),
    ],
)
def test_other_contents_are_refused(tmp_path: Path, entries: object, what: str) -> None:
    file = shard(tmp_path / "out_0", entries, 4)
    said = refusal(file)
    assert said.startswith(f"{file}: ")
    assert what in said


@pytest.mark.parametrize(
    "data", [b"not a pickle", b"\x80\x04", b"\x80\xff.", b"\x89HDF\r\n\x1a\n", b"PK\x03\x04", b"["]
)
def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "out_0"
    file.write_bytes(data)
    assert str(file) in refusal(file)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out_0").touch()
    assert refusal(tmp_path / "out_0").startswith(f"{tmp_path / 'out_0'} is empty")


def test_a_second_list_in_a_file_is_not_passed_over(tmp_path: Path) -> None:
    file = shard(tmp_path / "out_0", ENTRIES)
    file.write_bytes(file.read_bytes() * 2)
    assert f"{file}: {file.stat().st_size // 2} bytes follow the list" in refusal(file)


def test_entries_beyond_the_first_block_are_numbered_on(tmp_path: Path) -> None:
    vectors = some_vectors(5000, dim=2)
    file = shard(tmp_path / "out_0", [*zip(range(5000), vectors, strict=True), "last"])
    assert f"{file}: entry 5001: expected a tuple" in refusal(file)
    vectors[4500] = np.inf
    shard(file, list(zip(range(5000), vectors, strict=True)))
    assert f"{file}: entry 4501, id '4500'" in refusal(file)


def test_shards_of_different_dimensions_are_refused(tmp_path: Path) -> None:
    files = [shard(tmp_path / f"out_{dim}", [("a", np.ones(dim, np.float32))]) for dim in (3, 4)]
    assert refusal(*files).startswith(f"{files[1]} holds vectors of 4 dimensions, {files[0]} of 3")


def test_an_id_without_the_prefix_is_named(tmp_path: Path) -> None:
    file = shard(tmp_path / "out_0", [("wiki:1", np.ones(2, np.float32)), ("2", np.ones(2, np.float32))])
    said = refusal(file, id_prefix="wiki:")
    assert said.startswith(f"{file}: entry 2: the id '2' does not begin with 'wiki:'")
    assert "--id-prefix" in said
    assert f"{file}: entry 1: the id is empty after the prefix 'wiki:1'" in refusal(file, id_prefix="wiki:1")


# --- Directories and names


@pytest.mark.parametrize("damage", [b"", b"\0" * 100])
def test_a_damaged_shard_in_a_directory_is_not_passed_over(tmp_path: Path, damage: bytes) -> None:
    for number in range(3):
        shard(tmp_path / f"out_{number}.pkl", ENTRIES)
    (tmp_path / "out_1.pkl").write_bytes(damage)
    assert str(tmp_path / "out_1.pkl") in refusal(tmp_path)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    assert "no embedding files were named" in refusal()
    assert f"{tmp_path} holds no embedding files: expected DPR's pickles" in refusal(tmp_path)
    (tmp_path / "README_1").write_text("text")
    assert f"{tmp_path} holds no embedding files" in refusal(tmp_path)
    assert f"{tmp_path / 'absent'} does not exist: expected" in refusal(tmp_path / "absent")


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    file = shard(tmp_path / "out_0", ENTRIES)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "out_0").symlink_to(file)
    for again in (file, tmp_path, tmp_path / "link"):
        assert "out_0 is named twice" in refusal(file, again)


def test_files_of_two_layouts_are_refused(tmp_path: Path) -> None:
    shard(tmp_path / "out_0", ENTRIES)
    faiss_pair(tmp_path, flat(some_vectors(1)), ["a"])
    said = refusal(tmp_path)
    assert "files of several layouts" in said
    assert "out_0 (dpr-pickles)" in said
    assert "(dpr-faiss)" in said
    assert find([tmp_path / "out_0"]).kind == "dpr-pickles"
    assert find([tmp_path / "index.dpr"]).kind == "dpr-faiss"


# --- FAISS


def flat(vectors: Vectors) -> faiss.Index:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def dpr_hnsw(vectors: Vectors) -> faiss.Index:
    """As DPR makes it: one more component brings all vectors to the same length."""
    squares = (vectors**2).sum(axis=1)
    augmented = np.hstack([vectors, np.sqrt(squares.max() - squares)[:, None]])
    index = faiss.IndexHNSWFlat(augmented.shape[1], 8)
    index.add(augmented)
    return index


def hnsw(vectors: Vectors, metric: int) -> faiss.Index:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 8, metric)
    index.add(vectors)
    return index


def faiss_pair(directory: Path, index: faiss.Index, ids: object, name: str = "") -> tuple[Path, Path]:
    faiss.write_index(index, str(directory / f"{name}index.dpr"))
    return directory / f"{name}index.dpr", shard(directory / f"{name}index_meta.dpr", ids)


def pyserini(directory: Path, index: faiss.Index, docid: str) -> tuple[Path, Path]:
    faiss.write_index(index, str(directory / "index"))
    (directory / "docid").write_text(docid)
    return directory / "index", directory / "docid"


@pytest.mark.parametrize("make", [flat, dpr_hnsw, lambda vectors: hnsw(vectors, faiss.METRIC_INNER_PRODUCT)])
@pytest.mark.parametrize("name", ["", "wiki.x."])
def test_an_index_of_dpr(tmp_path: Path, make: Callable[[Vectors], faiss.Index], name: str) -> None:
    vectors = some_vectors(5000)
    files = faiss_pair(tmp_path, make(vectors), [*numbered(4999), 5000], name)
    ways = [[tmp_path], [files[0]], [files[1]], list(files)]
    if name:
        ways.append([tmp_path / "wiki.x"])
    for way in ways:
        assert find(way).kind == "dpr-faiss"
        assert find(way).files == files
    ids, found = everything([tmp_path])
    assert ids == [*numbered(4999), "5000"]
    assert np.array_equal(found, vectors)


def test_several_indexes_of_dpr_in_a_row(tmp_path: Path) -> None:
    vectors = some_vectors(30)
    for number in (10, 9, 2):
        faiss_pair(tmp_path, flat(vectors[number : number + 5]), list(range(number, number + 5)), f"part{number}.")
    ids, found = everything([tmp_path])
    assert ids == [str(number) for start in (2, 9, 10) for number in range(start, start + 5)]
    assert np.array_equal(found, vectors[[int(identifier) for identifier in ids]])


@pytest.mark.parametrize("make", [flat, lambda vectors: hnsw(vectors, faiss.METRIC_INNER_PRODUCT)])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_an_index_of_pyserini(tmp_path: Path, make: Callable[[Vectors], faiss.Index], end: str) -> None:
    vectors = some_vectors(4)
    (tmp_path / "README").write_text("text")
    files = pyserini(tmp_path, make(vectors), (end or "\n").join(["añ\x85b", "c", "d", "e"]) + end)
    for way in ([tmp_path], [files[0]], [files[1]]):
        assert find(way).kind == "pyserini"
        assert find(way).files == files
    ids, found = everything([tmp_path])
    assert ids == ["añ\x85b", "c", "d", "e"]
    assert np.array_equal(found, vectors)


def test_other_faiss_indexes_are_refused(tmp_path: Path) -> None:
    vectors = some_vectors(400)
    quantized = faiss.IndexHNSWSQ(DIM, faiss.ScalarQuantizer.QT_8bit, 8)
    coded = faiss.IndexPQ(DIM, 2, 4)
    lists = faiss.index_factory(DIM, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    cases = [
        (quantized, "is an IndexHNSWSQ, which keeps its vectors in 8 bits"),
        (coded, "is an IndexPQ"),
        (lists, "is an IndexIVFFlat"),
        (faiss.IndexFlatL2(DIM), "is an IndexFlatL2"),
        (faiss.index_factory(DIM, "LSH"), "is neither an IndexFlatIP nor an IndexHNSWFlat of FAISS"),
    ]
    for index, what in cases:
        index.train(vectors)
        index.add(vectors)
        file, _ = faiss_pair(tmp_path, index, list(range(400)))
        said = refusal(tmp_path)
        assert said.startswith(f"{file} {what}")
        assert "import the embeddings that it was made of" in said


def test_an_hnsw_index_that_dpr_did_not_make_is_refused(tmp_path: Path) -> None:
    vectors = some_vectors(20)
    vectors[:5, -1] = np.abs(vectors[:5, -1])
    file, _ = faiss_pair(tmp_path, hnsw(vectors, faiss.METRIC_L2), list(range(20)))
    assert f"{file}: entry 2 lacks the additional component" in refusal(file)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    faiss_pair(tmp_path, hnsw(vectors / lengths, faiss.METRIC_L2), list(range(20)))
    assert f"{file}: entry {int((vectors[:, -1] < 0).argmax()) + 1} lacks the additional component" in refusal(file)
    (tmp_path / "other").mkdir()
    file, _ = pyserini(tmp_path / "other", dpr_hnsw(vectors), "\n".join(numbered(20)))
    assert f"{file} compares its vectors by a distance" in refusal(file)


@pytest.mark.parametrize("make", [flat, dpr_hnsw])
def test_vectors_of_faiss_that_are_not_finite_are_refused(
    tmp_path: Path, make: Callable[[Vectors], faiss.Index]
) -> None:
    index = make(some_vectors(20))
    storage = index if make is flat else faiss.downcast_index(index.storage)
    stored = faiss.rev_swig_ptr(storage.get_xb(), 20 * storage.d).reshape(20, storage.d)
    for value in (np.nan, np.inf):
        for row in (7, 0):
            stored[row, 1] = value
            file, _ = faiss_pair(tmp_path, index, list(range(100, 120)))
            assert f"{file}: entry {row + 1}, id '{100 + row}': the vector holds NaN or infinity" in refusal(file)
            stored[row, 1] = 0.5
            stored[row] = stored[3]


@pytest.mark.parametrize("count", [3, 5])
def test_ids_and_vectors_of_different_number_are_refused(tmp_path: Path, count: int) -> None:
    vectors, ids = faiss_pair(tmp_path, flat(some_vectors(4)), list(range(count)))
    assert f"{vectors} holds 4 vectors and {ids} {count} ids" in refusal(tmp_path)
    (tmp_path / "other").mkdir()
    vectors, ids = pyserini(tmp_path / "other", flat(some_vectors(4)), "".join(f"{n}\n" for n in range(count)))
    assert f"{vectors} holds 4 vectors and {ids} {count} ids" in refusal(tmp_path / "other")


def test_bad_ids_beside_a_faiss_file_are_named_with_their_file(tmp_path: Path) -> None:
    _, ids = faiss_pair(tmp_path, flat(some_vectors(3)), ["wiki:1", "wiki:2", None])
    assert f"{ids}: entry 3: the id is None" in refusal(tmp_path)
    assert f"{ids}: entry 1: the id 'wiki:1' does not begin with 'web:'" in refusal(tmp_path, id_prefix="web:")
    (tmp_path / "other").mkdir()
    _, ids = pyserini(tmp_path / "other", flat(some_vectors(3)), "a\n\nc\n")
    assert f"{ids}: entry 2: the id is empty" in refusal(tmp_path / "other")
    ids.write_bytes(b"a\n\xff\nc\n")
    assert f"{ids}:2: invalid UTF-8" in refusal(tmp_path / "other")
    ids.write_bytes(b"")
    assert f"{ids} is empty" in refusal(tmp_path / "other")


def test_indexes_of_different_dimensions_are_refused(tmp_path: Path) -> None:
    first, _ = faiss_pair(tmp_path, flat(some_vectors(2, dim=4)), ["a", "b"], "x1.")
    second, _ = faiss_pair(tmp_path, flat(some_vectors(2, dim=5)), ["c", "d"], "x2.")
    assert refusal(tmp_path).startswith(f"{second} holds vectors of 5 dimensions, {first} of 4")


@pytest.mark.parametrize("half", [0, 1])
def test_half_of_a_pair_is_refused(tmp_path: Path, half: int) -> None:
    files = faiss_pair(tmp_path, flat(some_vectors(2)), ["a", "b"], "wiki.")
    files[half].unlink()
    for way in (tmp_path, tmp_path / "wiki", files[1 - half]):
        assert refusal(way).startswith(f"{files[half]} is missing: vectors and ids belong together")
    (tmp_path / "other").mkdir()
    files = pyserini(tmp_path / "other", flat(some_vectors(2)), "a\nb\n")
    files[half].unlink()
    assert refusal(tmp_path / "other").startswith(f"{files[half]} is missing")


@pytest.mark.parametrize("make", [flat, dpr_hnsw])
def test_a_faiss_file_cut_short_anywhere_is_refused(tmp_path: Path, make: Callable[[Vectors], faiss.Index]) -> None:
    file, _ = faiss_pair(tmp_path, make(some_vectors(4, dim=3)), list("abcd"))
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        assert refusal(tmp_path).startswith(str(file))


@given(
    is_graph=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 1000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3),
)
@REPRODUCIBLE
def test_a_changed_faiss_file_is_read_or_refused(
    tmp_path: Path, is_graph: bool, changes: list[tuple[int, bytes]]
) -> None:
    make = dpr_hnsw if is_graph else flat
    file, _ = faiss_pair(tmp_path, make(some_vectors(4, dim=3)), list("abcd"))
    data = file.read_bytes()
    for place, put in changes:
        at = place % len(data)
        data = data[:at] + put + data[at + len(put) :]
    file.write_bytes(data)
    try:
        ids, vectors = everything([file])
    except EmbeddingFileError as error:
        assert str(file) in str(error)  # noqa: PT017 - a change may leave a good file
    else:
        assert ids == list("abcd")
        assert np.isfinite(vectors).all()


@pytest.mark.parametrize(("place", "value"), [(4, struct.pack("<i", 5)), (8, struct.pack("<q", 3))])
def test_a_graph_over_other_vectors_than_its_own_is_refused(tmp_path: Path, place: int, value: bytes) -> None:
    file, _ = faiss_pair(tmp_path, dpr_hnsw(some_vectors(4, dim=3)), list("abcd"))
    data = file.read_bytes()
    file.write_bytes(data[:place] + value + data[place + len(value) :])
    assert f"{file} is damaged or cut short" in refusal(tmp_path)


def test_a_faiss_file_of_nothing_and_ids_of_nothing_are_refused(tmp_path: Path) -> None:
    _, ids = faiss_pair(tmp_path, faiss.IndexFlatIP(DIM), [])
    assert refusal(tmp_path) == f"{ids}: the list is empty"
