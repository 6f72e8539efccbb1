"""The stored passages: what was written is read, by row and by id."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.passages import FILES, Passage, Passages, PassageWriter

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PASSAGES = st.builds(Passage, TEXTS.filter(bool), TEXTS, TEXTS)
LISTS = st.lists(PASSAGES, min_size=1, max_size=25, unique_by=lambda passage: passage.id)
REPRODUCIBLE = settings(derandomize=True, deadline=None, max_examples=100)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("passages")


def store(directory: Path, items: list[Passage]) -> Passages:
    for name in FILES:  # written anew: earlier ones may be mapped still
        (directory / name).unlink(missing_ok=True)
    with PassageWriter(directory) as writer:
        for item in items:
            writer.append(item)
    return Passages(directory)


def of_ids(*ids: str) -> list[Passage]:
    return [Passage(passage_id, "", "text") for passage_id in ids]


def ids_in_order(passages: Passages) -> list[str]:
    order = np.argsort(passages.id_rank)
    return [passage.id for passage in passages.get(order.astype(np.int64))]


@given(items=LISTS, data=st.data())
@REPRODUCIBLE
def test_rows_read_back_in_any_order(directory: Path, items: list[Passage], data: st.DataObject) -> None:
    passages = store(directory, items)
    assert len(passages) == len(items)
    rows = data.draw(st.lists(st.integers(0, len(items) - 1)))
    assert passages.get(rows) == [items[row] for row in rows]
    without_text = [Passage(items[row].id, items[row].title, "") for row in rows]
    assert passages.get(np.array(rows, dtype=np.int64), with_text=False) == without_text


@given(items=LISTS, absent=TEXTS)
@REPRODUCIBLE
def test_ids_are_found_and_others_are_not(directory: Path, items: list[Passage], absent: str) -> None:
    passages = store(directory, items)
    row_of = {item.id: row for row, item in enumerate(items)}
    assert {passage_id: passages.find(passage_id) for passage_id in row_of} == row_of
    near = [passage_id[:-1] for passage_id in row_of] + [passage_id + "\0" for passage_id in row_of]
    for passage_id in ["", absent, "\U0010ffff" * 30, *near]:
        assert passages.find(passage_id) == row_of.get(passage_id)


@given(items=LISTS)
@REPRODUCIBLE
def test_rank_is_the_place_among_the_ids_by_bytes(directory: Path, items: list[Passage]) -> None:
    passages = store(directory, items)
    in_order = sorted(item.id.encode() for item in items)
    assert [in_order[rank] for rank in passages.id_rank] == [item.id.encode() for item in items]


def test_absent_ids_before_between_and_after(tmp_path: Path) -> None:
    passages = store(tmp_path, of_ids("doc-2", "doc", "doc-10"))
    assert [passages.find(passage_id) for passage_id in ("doc", "doc-10", "doc-2")] == [1, 2, 0]
    for passage_id in ("", "a", "do", "doc-", "doc-1", "doc-100", "doc-20", "doc-3", "z", "DOC", "doc-2 ", "dôc"):
        assert passages.find(passage_id) is None


def test_the_only_passage(tmp_path: Path) -> None:
    passages = store(tmp_path, of_ids("m"))
    assert [passages.find(passage_id) for passage_id in ("a", "m", "z", "", "mm")] == [None, 0, None, None, None]


def test_order_is_by_bytes_and_by_no_locale(tmp_path: Path) -> None:
    # A Spanish or English locale would mix cases and put accents beside their letters; numbers are not counted.
    ids = ["zorro", "Zorro", "éxito", "exito", "Éxito", "ñu", "nube", "10", "9", "-9", " 9", "ａ", "\U00010000"]
    passages = store(tmp_path, of_ids(*ids))
    expected = [" 9", "-9", "10", "9", "Zorro", "exito", "nube", "zorro", "Éxito", "éxito", "ñu", "ａ", "\U00010000"]
    assert ids_in_order(passages) == expected
    assert [passages.find(passage_id) for passage_id in ids] == list(range(len(ids)))


def test_order_is_by_utf8_not_utf16_and_without_normalization(tmp_path: Path) -> None:
    # UTF-16 puts U+10000 (a surrogate pair, D800 DC00) before U+FFFF; UTF-8 after it. The two forms of é are two ids.
    ids = ["\U00010000", "\uffff", "\ue000", "\u00e9", "e\u0301"]
    assert sorted(ids, key=lambda passage_id: passage_id.encode("utf-16-be"))[2] == "\U00010000"
    passages = store(tmp_path, of_ids(*ids))
    assert ids_in_order(passages) == ["e\u0301", "\u00e9", "\ue000", "\uffff", "\U00010000"]


def test_order_and_rank_are_inverse_files(tmp_path: Path) -> None:
    store(tmp_path, of_ids("c", "a", "d", "b"))
    order, rank = np.load(tmp_path / "id_order.npy"), np.load(tmp_path / "id_rank.npy")
    assert order.tolist() == [1, 3, 0, 2]
    assert rank[order].tolist() == [0, 1, 2, 3]
    assert order.dtype == rank.dtype == np.uint32


def test_nothing_is_left_open_or_indexed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), PassageWriter(tmp_path) as writer:  # noqa: PT012  (the writer must see the error)
        writer.append(Passage("a", "", "A"))
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["passages.blob"]


def test_no_rows_give_no_passages(tmp_path: Path) -> None:
    assert store(tmp_path, of_ids("a")).get([]) == []
