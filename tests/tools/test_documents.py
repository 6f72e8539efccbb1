"""Documents -> passages -> a file that `narrows index build` reads."""

import errno
import gzip
import json
import os
from pathlib import Path

import psutil
import pytest
from building import build
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows import passage_files
from narrows.bundle import Bundle
from narrows.errors import PassageFileError
from narrows.index.opened import open_index
from narrows.passages import Passage
from narrows_tools import documents
from narrows_tools.cli import main
from narrows_tools.documents import Counts, split_text

TEXTS = st.text(
    st.one_of(st.sampled_from('ab"\t\r\n ,\u2028\u00a0\x1c\x0b\0'), st.characters(exclude_categories=["Cs"]))
)
SUFFIXES = st.sampled_from([".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz"])


def write_jsonl(file: Path, *items: dict[str, object]) -> Path:
    file.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")
    return file


def write_passages(file: Path, *passages: Passage, fail: bool = False) -> None:
    with passage_files.writer(file) as write:
        for passage in passages:
            write(passage)
        if fail:
            raise ZeroDivisionError


def split(
    source: Path, words: int = 100, last: documents.Last = "keep", ids: documents.Ids = "document"
) -> list[Passage]:
    return list(documents.split(source, words, last, ids, Counts()))


# Blocks


@given(TEXTS, st.integers(1, 5))
def test_blocks_hold_every_word_once_in_order(text: str, words: int) -> None:
    blocks = split_text(text, words)
    assert [word for block in blocks for word in block.split()] == text.split()
    assert all(len(block.split()) == words for block in blocks[:-1])
    assert all(block == block.strip() for block in blocks)
    position = 0
    for block in blocks:  # spacing and punctuation inside a block are the document's
        position = text.index(block, position) + len(block)


@given(TEXTS, st.integers(1, 5))
def test_fill_and_drop_change_the_last_block_alone(text: str, words: int) -> None:
    kept, filled, dropped = (split_text(text, words, last) for last in ("keep", "fill", "drop"))
    is_whole = bool(kept) and len(kept[-1].split()) == words
    assert dropped == (kept if is_whole else kept[:-1])
    assert filled[:-1] == kept[:-1]
    if len(kept) > 1:
        assert filled[-1].split() == (kept[-1].split() + text.split())[:words]
        assert filled[-1].startswith(kept[-1])
    else:
        assert filled == kept


def test_the_example_of_the_paper_size() -> None:
    text = '  One, two;\n\nthree "four"   five.  '
    assert split_text(text, 2) == ["One, two;", 'three "four"', "five."]
    assert split_text(text, 2, "fill") == ["One, two;", 'three "four"', "five. One,"]
    assert split_text(text, 2, "drop") == ["One, two;", 'three "four"']
    assert split_text(text) == ['One, two;\n\nthree "four"   five.']
    assert split_text(" \n ") == []


# Files of passages


@settings(max_examples=150)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), SUFFIXES)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]], suffix: str
):
    file = tmp_path_factory.mktemp("passages") / f"passages{suffix}"
    passages = [Passage(f"{n}", title, text) for n, (title, text) in enumerate(texts) if title.strip() or text.strip()]
    if ".tsv" in suffix and any(not p.title.strip() and not p.text.strip('"').strip() for p in passages):
        with pytest.raises(PassageFileError, match="quotation marks alone"):
            write_passages(file, *passages)
        assert list(file.parent.iterdir()) == []
        return
    write_passages(file, *passages)
    strip = '"' if ".tsv" in suffix else ""  # as reading DPR's file does
    expected = [(p.id, p.title, p.text.strip(strip) if strip else p.text) for p in passages]
    assert [(row.passage.id, row.passage.title, row.passage.text) for row in passage_files.read(file)] == expected


def test_the_same_passages_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.tsv.gz", "b.tsv.gz"):
        write_passages(tmp_path / name, Passage("1", "t", 'a "quoted"\ttext'))
    assert (tmp_path / "a.tsv.gz").read_bytes() == (tmp_path / "b.tsv.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.tsv.gz").read_bytes()) == b'id\ttext\ttitle\n1\t"a ""quoted""\ttext"\tt\n'


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".jsonl.gz"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"passages{suffix}"
    file.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        write_passages(file, Passage("1", "t", "x"), fail=True)
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_field_too_long_for_tsv_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PassageFileError, match=r"text or title of 131073 characters.*write \.jsonl"):
        write_passages(tmp_path / "p.tsv", Passage("1", "t", "x" * 131_073))
    write_passages(tmp_path / "p.jsonl", Passage("1", "t", "x" * 131_073))
    assert [len(row.passage.text) for row in passage_files.read(tmp_path / "p.jsonl")] == [131_073]


# Documents


def test_json_lines(tmp_path: Path) -> None:
    file = write_jsonl(
        tmp_path / "d.jsonl",
        {"id": "a", "title": "A", "text": "one two three"},
        {"id": 7, "text": "four", "more": 1},
        {"id": "empty", "title": "E", "text": " "},
    )
    expected = [("a-1", "A", "one two"), ("a-2", "A", "three"), ("7-1", "", "four")]
    assert [(p.id, p.title, p.text) for p in split(file, 2)] == expected
    assert [p.id for p in split(file, 2, ids="running")] == ["1", "2", "3"]
    counts = Counts()
    assert len(list(documents.split(file, 2, "keep", "running", counts))) == 3
    assert counts == Counts(documents=3, empty_documents=1, passages=3)
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert split(tmp_path / "z.jsonl.gz", 2) == split(file, 2)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"id": "a", "text": "x"}', "d.jsonl:2: the id 'a' was used in .*d.jsonl:1 already"),
        ('{"text": "x"}', "d.jsonl:2: the document has no id; --ids running"),
        ('{"id": "b"}', "d.jsonl:2: expected .*missing required field `text`"),
        ('{"id": "b", "text": 3}', "d.jsonl:2: expected "),
        ("nonsense", "d.jsonl:2: expected "),
        (
            '{"id": "' + "x" * 511 + '", "text": "x"}',
            "d.jsonl:2: the id of its passage 1 would have more than 512 bytes",
        ),
    ],
)
def test_bad_json_lines_say_where(tmp_path: Path, second: str, message: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"id": "a", "text": "x"}\n' + second + "\n", "utf-8")
    with pytest.raises(PassageFileError, match=message):
        split(file)


def test_a_damaged_gzip_file_and_other_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"id": "a", "text": "x"}\n')[:-3])
    with pytest.raises(PassageFileError, match="damaged or cut off"):
        split(tmp_path / "d.jsonl.gz")
    with pytest.raises(PassageFileError, match=r"d\.csv: there is no such file or directory"):
        split(tmp_path / "d.csv")
    (tmp_path / "d.csv").write_text("x")
    with pytest.raises(PassageFileError, match="expected a directory, or a name ending in"):
        split(tmp_path / "d.csv")
    with pytest.raises(PassageFileError, match=r"no \.md or \.txt file in it"):
        split(tmp_path)


def test_a_directory_of_texts(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_bytes("\ufeffplain # text".encode())
    (tmp_path / "a.md").write_text("\n# The *title* ##\n\nBody one.\n\n## Next\n", "utf-8")
    (tmp_path / "c.MD").write_text("Intro.\n```\n# code\n```\n## Later\nEnd.", "utf-8")
    (tmp_path / "d.md").write_text("#hashtag, no heading\n", "utf-8")
    (tmp_path / "skipped.pdf").write_bytes(b"\xff")
    (tmp_path / ".venv" / "package").mkdir(parents=True)
    for hidden in (".venv/package/licence.txt", ".hidden.md"):
        (tmp_path / hidden).write_text("nobody's document")
    assert [(p.id, p.title, p.text) for p in split(tmp_path)] == [
        ("a.md-1", "The *title*", "Body one.\n\n## Next"),
        ("b/notes.txt-1", "notes", "plain # text"),
        ("c.MD-1", "Later", "Intro.\n```\n# code\n```\n## Later\nEnd."),
        ("d.md-1", "d", "#hashtag, no heading"),
    ]
    (tmp_path / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(PassageFileError, match=r"bad\.txt: invalid UTF-8 at byte 3"):
        split(tmp_path)


# The command


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("words", "utf-8")
    with pytest.raises(PassageFileError, match="the name is not UTF-8"):
        list(documents.read(tmp_path))


def test_a_directory_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("words", "utf-8")
    scandir = os.scandir

    def refuse(path: Path | str) -> object:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # permissions do not hold root back
    with pytest.raises(PassageFileError, match="closed: cannot be read: Permission denied"):
        list(documents.read(tmp_path))


def test_command_to_index(tmp_path: Path, capsys: pytest.CaptureFixture[str], small_bundle: Bundle) -> None:
    file = write_jsonl(tmp_path / "d.jsonl", {"id": "a", "title": 'A "title"', "text": "x\ty z\n" * 90 + '"end"'})
    out = tmp_path / "p.tsv.gz"
    command = ["passages", "split", "--documents", str(file), "--out", str(out), "--json"]
    assert main.main(command) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts == {
        "passages_file": str(out), "documents": 1, "empty_documents": 0, "passages": 3, "quote_ended": 1,
    }  # fmt: skip
    build(small_bundle, out, tmp_path / "i")
    index = open_index(tmp_path / "i", small_bundle, 1)
    [first] = index.passages.get([0])
    assert (first.id, first.title, first.text) == ("a-1", 'A "title"', "x\ty z\n" * 33 + "x")

    assert main.main(command) == 1
    assert "exists already: --replace" in capsys.readouterr().err
    assert main.main([*command, "--replace", "--last", "drop", "--words", "50"]) == 0
    assert json.loads(capsys.readouterr().out)["passages"] == 5


def test_command_without_passages_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_jsonl(tmp_path / "d.jsonl", {"id": "a", "text": ""})
    assert main.main(["passages", "split", "--documents", str(file), "--out", str(tmp_path / "p.tsv")]) == 1
    assert "d.jsonl: no passages in 1 documents" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["d.jsonl"]


def test_a_broken_file_is_closed_while_its_error_is_still_being_handled(tmp_path: Path) -> None:
    file = tmp_path / "documents.jsonl"
    file.write_text('{"id": "a", "text": "one"}\nodd\n' + '{"id": "b", "text": "two"}\n' * 3)
    with pytest.raises(PassageFileError, match=":2:") as caught:
        list(documents.read(file))
    assert caught.tb is not None  # whose frames hold the reader
    assert str(file) not in {opened.path for opened in psutil.Process().open_files()}
