"""Passage files: what is read, and that every broken file is refused with its file and line."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from narrows.errors import PassageFileError
from narrows.passage_files import BadRow, read
from narrows.passages import Passage

HEADER = "id\ttext\ttitle\n"
NO_SURROGATES = st.characters(exclude_categories=["Cs"])
TROUBLE = st.sampled_from(
    ['"', '""', "\t", "\n", "\r", "\r\n", "\0", "\x1c", "\x85", "\u2028", "\ufeff", "ñ", "\U0001f4a1"]
)
STRINGS = st.lists(TROUBLE | st.text(NO_SURROGATES, max_size=6), max_size=8).map("".join)
IDS = STRINGS.filter(lambda value: 0 < len(value.encode()) <= 512)
REPRODUCIBLE = settings(
    derandomize=True, deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Turns the bytes of a file into the file: plain, or gzipped.
Write = Callable[[str, bytes], Path]


@pytest.fixture(params=["plain", "gz"])
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Write:
    def write_plain(name: str, data: bytes) -> Path:
        file = tmp_path / name
        file.write_bytes(data)
        return file

    def write_gz(name: str, data: bytes) -> Path:
        return write_plain(f"{name}.gz", gzip.compress(data))

    return write_plain if request.param == "plain" else write_gz


def passages(file: Path) -> list[Passage]:
    return [row.passage for row in read(file)]


def refusal(file: Path) -> str:
    """What is said about a file that is refused, after the file's name."""
    with pytest.raises(PassageFileError) as caught:
        list(read(file))
    message = str(caught.value)
    assert message.startswith(f"{file}:")
    return message.removeprefix(f"{file}:")


# --- TSV


def test_tsv_reads_plain_and_quoted_fields(write: Write) -> None:
    data = HEADER + 'a\tAdobe is dried mud.\tAdobe\nb\t"He said ""yes"" twice."\t"The ""Yes"" man"\nc\tTab\t"x\ty"\n'
    assert passages(write("p.tsv", data.encode())) == [
        Passage("a", "Adobe", "Adobe is dried mud."),
        Passage("b", 'The "Yes" man', 'He said "yes" twice.'),
        Passage("c", "x\ty", "Tab"),
    ]


def test_tsv_strips_the_quotation_marks_around_a_text_as_dpr_does(write: Write) -> None:
    data = HEADER + 'a\t"""All of it is quoted."""\t"""T"""\nb\t"""Start"" only"\tT\nc\t"the ""end"""\tT\n'
    assert passages(write("p.tsv", data.encode())) == [
        Passage("a", '"T"', "All of it is quoted."),  # a title keeps them
        Passage("b", "T", 'Start" only'),
        Passage("c", "T", 'the "end'),
    ]


def test_tsv_line_numbers_are_right_after_a_text_of_many_lines(write: Write) -> None:
    data = HEADER + 'a\t"one\ntwo\r\nthree"\tT\n\n\r\nb\tB\tT\nc\t"\n\nC"\tT\nd\tD\tT\n'
    rows = list(read(write("p.tsv", data.encode())))
    assert [(row.line, row.passage.id, row.passage.text) for row in rows] == [
        (2, "a", "one\ntwo\r\nthree"),
        (7, "b", "B"),
        (8, "c", "\n\nC"),
        (11, "d", "D"),
    ]


def test_tsv_error_after_a_text_of_many_lines_names_the_right_line(write: Write) -> None:
    file = write("p.tsv", (HEADER + 'a\t"one\ntwo"\tT\nb\tB\n').encode())
    assert refusal(file).startswith("4: expected 3 tab-separated fields (id, text, title), found 2")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_tsv_with_any_line_end_and_byte_order_mark(write: Write, newline: str, mark: str, last: bool) -> None:
    lines = ["id\ttext\ttitle", "a\tA\tT", "b\tB\tñ"]
    data = mark + newline.join(lines) + (newline if last else "")
    assert passages(write("p.tsv", data.encode())) == [Passage("a", "T", "A"), Passage("b", "ñ", "B")]


def test_tsv_byte_order_mark_is_text_when_it_is_not_first(write: Write) -> None:
    assert passages(write("p.tsv", (HEADER + "\ufeffa\tA\tT\n").encode())) == [Passage("\ufeffa", "T", "A")]


def test_a_passage_may_lack_title_or_text(write: Write) -> None:
    file = write("p.tsv", (HEADER + 'a\t\tT\nb\tB\t\nc\t" "\tT\n').encode())
    assert passages(file) == [Passage("a", "T", ""), Passage("b", "", "B"), Passage("c", "T", " ")]


def test_a_file_with_a_header_alone_holds_nothing(write: Write) -> None:
    assert passages(write("p.tsv", HEADER.encode())) == []


@given(
    items=st.lists(st.builds(Passage, IDS, STRINGS, STRINGS), unique_by=lambda passage: passage.id, max_size=6),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    mark=st.sampled_from(["", "\ufeff"]),
)
@REPRODUCIBLE
def test_any_passages_written_as_tsv_read_back(tmp_path: Path, items: list[Passage], quoting: int, mark: str) -> None:
    items = [item for item in items if item.text.strip('"').strip() or item.title.strip()]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(["id", "text", "title"])
    writer.writerows([item.id, item.text, item.title] for item in items)
    file = tmp_path / "p.tsv"
    file.write_bytes((mark + text.getvalue()).encode())
    assert passages(file) == [Passage(item.id, item.title, item.text.strip('"')) for item in items]


@pytest.mark.parametrize(
    ("rows", "line", "what"),
    [
        ("a\tA\tT\nb\tB\tT\na\tC\tT\n", 4, "the id 'a' was used on line 2 already"),
        ('a\t"A\nA"\tT\n\na\tC\tT\n', 5, "the id 'a' was used on line 2 already"),
        ('a\tA\tT\na\t"C\nC\nC"\tT\n', 3, "the id 'a' was used on line 2 already"),
        ("a\tA\n", 2, "expected 3 tab-separated fields (id, text, title), found 2"),
        ("a\tA\tT\tmore\n", 2, "expected 3 tab-separated fields (id, text, title), found 4"),
        ("a\tA\tT\n \n", 3, "expected 3 tab-separated fields (id, text, title), found 1"),
        ('a\t"A\n\nA"\tT\tmore\n', 2, "expected 3 tab-separated fields (id, text, title), found 4"),
        ("a\tA\tT\n\tB\tT\n", 3, "the id is empty"),
        ("a\tA\tT\nb\t\t\n", 3, "passage 'b' has neither title nor text"),
        ('a\tA\tT\nb\t""""""\t\u3000\n', 3, "passage 'b' has neither title nor text"),
        ("a\tA\tT\n" + "ñ" * 256 + "x\tB\tT\n", 3, "the id has 513 bytes; at most 512 are allowed"),
        ('a\t"A"A\tT\nb\tB\tT\n', 2, "malformed row: "),
        ('a\tA\tT\nb\t"never closed\tT\nc\tC\tT\nd\tD\tT\n', 3, "malformed row: "),
        ("a\tA\rB\tT\n", 2, "malformed row: "),
    ],
)
def test_tsv_refuses_bad_rows(write: Write, rows: str, line: int, what: str) -> None:
    assert refusal(write("p.tsv", (HEADER + rows).encode())).startswith(f"{line}: {what}")


@pytest.mark.parametrize(
    "data", ["", "a\tA\tT\n", "id\ttitle\ttext\na\tT\tA\n", "ID\tTEXT\tTITLE\n", "id,text,title\n", "\n" + HEADER]
)
def test_tsv_refuses_another_header(write: Write, data: str) -> None:
    assert refusal(write("p.tsv", data.encode())).startswith("1: expected the header ['id', 'text', 'title']")


# --- JSON lines


def test_jsonl_reads_any_order_extra_keys_integer_ids_and_missing_titles(write: Write) -> None:
    lines = [
        '{"id": "a", "title": "T", "text": "A"}',
        "",
        '  {"text": "B", "id": "b", "source": {"page": [1, null]}, "title": ""}  ',
        "   \t",
        '{"id": 7, "text": "seven"}',
        '{"id": -3, "text": "", "title": "minus"}',
        '{"id": 123456789012345678901234567890, "text": "large"}',
        r'{"id": "\u00f1\ud83d\udca1", "text": "tab\tline\nquote\"", "title": "\"T\""}',
    ]
    rows = list(read(write("p.jsonl", "\n".join(lines).encode())))
    assert [(row.line, row.passage) for row in rows] == [
        (1, Passage("a", "T", "A")),
        (3, Passage("b", "", "B")),
        (5, Passage("7", "", "seven")),
        (6, Passage("-3", "minus", "")),
        (7, Passage("123456789012345678901234567890", "", "large")),
        (8, Passage("ñ\U0001f4a1", '"T"', 'tab\tline\nquote"')),
    ]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_jsonl_with_any_line_end_and_byte_order_mark(write: Write, newline: str, mark: str) -> None:
    data = mark + newline.join(['{"id": "a", "text": "A"}', '{"id": "b", "text": "ñ"}', ""])
    assert passages(write("p.jsonl", data.encode())) == [Passage("a", "", "A"), Passage("b", "", "ñ")]


def test_an_empty_jsonl_holds_nothing(write: Write) -> None:
    assert passages(write("p.jsonl", b"")) == []


@given(
    items=st.lists(st.builds(Passage, IDS, STRINGS, STRINGS), unique_by=lambda passage: passage.id, max_size=6),
    ascii_only=st.booleans(),
)
@REPRODUCIBLE
def test_any_passages_written_as_jsonl_read_back(tmp_path: Path, items: list[Passage], ascii_only: bool) -> None:
    items = [item for item in items if item.text.strip() or item.title.strip()]
    file = tmp_path / "p.jsonl"
    objects = [{"id": item.id, "text": item.text, "title": item.title} for item in items]
    file.write_bytes("".join(json.dumps(item, ensure_ascii=ascii_only) + "\n" for item in objects).encode())
    assert passages(file) == items


GOOD = '{"id": "good", "text": "G"}\n'


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ('{"id": "good", "text": "again"}', "the id 'good' was used on line 1 already"),
        ('{"id": "", "text": "B"}', "the id is empty"),
        ('{"id": "b", "text": "", "title": " "}', "passage 'b' has neither title nor text"),
        ('{"id": "b", "text": " \\n\\t"}', "passage 'b' has neither title nor text"),
        (json.dumps({"id": "ñ" * 256 + "x", "text": "B"}), "the id has 513 bytes; at most 512 are allowed"),
        ('{"id": "b", "text": "B"', "expected "),
        ('{"id": "b", "text": "B"} {"id": "c", "text": "C"}', "expected "),
        ("{'id': 'b', 'text': 'B'}", "expected "),
        ('["b", "B"]', "expected "),
        ("null", "expected "),
        ('{"text": "B"}', "expected "),
        ('{"id": "b"}', "expected "),
        ('{"id": null, "text": "B"}', "expected "),
        ('{"id": true, "text": "B"}', "expected "),
        ('{"id": 1.0, "text": "B"}', "expected "),
        ('{"id": ' + "9" * 5000 + ', "text": "B"}', "expected "),
        ('{"id": "b", "text": null}', "expected "),
        ('{"id": "b", "text": ["B"]}', "expected "),
        ('{"id": "b", "text": "B", "title": null}', "expected "),
        ('{"id": "b", "text": "B", "title": 4}', "expected "),
        (r'{"id": "\ud800", "text": "B"}', "expected "),
        (r'{"id": "b", "text": "\ud800"}', "expected "),
        (r'{"id": "b", "text": "\udc00 B"}', "expected "),
        (r'{"id": "b", "text": "B", "title": "\ud800\ud800"}', "expected "),
        ('{"id": "b", "text": "a raw \x01"}', "expected "),
        ('{"id": "b", "text": "B", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}", "expected "),
    ],
)
def test_jsonl_refuses_bad_lines(write: Write, bad: str, what: str) -> None:
    file = write("p.jsonl", (GOOD + "\n" + bad + '\n{"id": "last", "text": "L"}\n').encode())
    assert refusal(file).startswith(f"3: {what}")


def test_integer_and_string_of_the_same_digits_are_one_id(write: Write) -> None:
    file = write("p.jsonl", b'{"id": "7", "text": "A"}\n{"id": 7, "text": "B"}\n')
    assert refusal(file) == "2: the id '7' was used on line 1 already"


# --- both


@pytest.mark.parametrize("passage_id", ["x" * 512, "ñ" * 256, "\U0001f4a1" * 128])
def test_an_id_of_512_bytes_is_allowed(write: Write, passage_id: str) -> None:
    tsv = write("p.tsv", f"{HEADER}{passage_id}\tA\tT\n".encode())
    jsonl = write("p.jsonl", json.dumps({"id": passage_id, "text": "A", "title": "T"}).encode())
    assert passages(tsv) == passages(jsonl) == [Passage(passage_id, "T", "A")]


@pytest.mark.parametrize("bad", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80"])
def test_invalid_utf8_is_named_by_line_and_byte(write: Write, bad: bytes) -> None:
    tsv = write("p.tsv", HEADER.encode() + b'a\t"A\nA"\tT\nb\tB' + bad + b"\tT\n")
    assert refusal(tsv) == "4: invalid UTF-8 at byte 4 of the line"
    jsonl = write("p.jsonl", b'{"id": "a", "text": "A"}\n\n{"id": "' + bad + b'", "text": "B"}\n')
    assert refusal(jsonl) == "3: invalid UTF-8 at byte 9 of the line"


def test_invalid_utf8_is_counted_from_the_byte_order_mark(write: Write) -> None:
    assert refusal(write("p.tsv", b"\xef\xbb\xbfid\xff\n")) == "1: invalid UTF-8 at byte 6 of the line"


def test_rows_before_a_bad_one_are_given(write: Write) -> None:
    rows = read(write("p.tsv", (HEADER + "a\tA\tT\nb\n").encode()))
    assert next(rows).passage.id == "a"
    with pytest.raises(PassageFileError):
        next(rows)


def many_lines(kind: str) -> bytes:
    if kind == "tsv":
        return (HEADER + "".join(f"{n}\t{n * n % 7919}\tT\n" for n in range(5_000))).encode()
    return "".join(json.dumps({"id": n, "text": str(n * n % 7919)}) + "\n" for n in range(5_000)).encode()


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_truncated_gzip(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"p.{kind}.gz"
    data = gzip.compress(many_lines(kind))
    for size in (5, len(data) // 2, len(data) - 8, len(data) - 1):
        file.write_bytes(data[:size])
        line, _, what = refusal(file).partition(": ")
        assert 1 <= int(line) <= 5_001
        assert "gzip data is damaged or cut off" in what


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_damaged_gzip(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"p.{kind}.gz"
    data = gzip.compress(many_lines(kind))
    for position in range(10, len(data), len(data) // 12):
        file.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        line, _, _ = refusal(file).partition(": ")
        assert 1 <= int(line) <= 5_001


@pytest.mark.parametrize("kind", ["tsv", "jsonl"])
def test_gz_that_is_not_gzip(tmp_path: Path, kind: str) -> None:
    file = tmp_path / f"p.{kind}.gz"
    file.write_bytes(many_lines(kind))
    assert refusal(file).startswith("1: cannot be read: Not a gzipped file")


def test_gzip_without_its_suffix_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.tsv"
    file.write_bytes(gzip.compress(many_lines("tsv")))
    assert refusal(file).startswith("1: invalid UTF-8")


@pytest.mark.parametrize("name", ["p.csv", "p", "p.gz", "p.txt.gz", "p.tsv.bz2", "tsv", "p.json"])
def test_unknown_suffix(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(HEADER.encode())
    assert refusal(file) == " expected a name ending in .tsv, .tsv.gz, .jsonl or .jsonl.gz"


@pytest.mark.parametrize("name", ["P.TSV", "a.b.TSV.GZ", "p.old.tsv"])
def test_suffixes_in_capitals_and_after_other_dots(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    data = (HEADER + "a\tA\tT\n").encode()
    file.write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
    assert passages(file) == [Passage("a", "T", "A")]


@pytest.mark.parametrize("name", ["p.tsv", "p.tsv.gz", "p.jsonl", "p.jsonl.gz"])
def test_missing_file_and_directory(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    assert refusal(file) == "1: cannot be read: No such file or directory"
    file.mkdir()
    assert refusal(file) == "1: cannot be read: Is a directory"


def test_real_passages_in_dpr_format(shared: Path) -> None:
    rows = list(read(shared / "data" / "en" / "passages.tsv.gz"))
    assert len(rows) == 16_176
    assert not any(row.passage.text.startswith('"') or row.passage.text.endswith('"') for row in rows)


# --- bad rows left out


def without_bad_rows(file: Path) -> tuple[list[str], list[tuple[int, str]]]:
    """The ids read, and line and reason of the rows that were skipped."""
    skipped: list[BadRow] = []
    ids = [row.passage.id for row in read(file, skipped.append)]
    return ids, [(row.line, row.reason) for row in skipped]


def test_bad_rows_of_a_tsv_are_skipped_by_reason(write: Write) -> None:
    rows = [
        b"a\tA\tT",  # line 2
        b"b\tB",
        b"c\tC\tT\tmore",
        b"d\t\xff\tT",
        b"a\tagain\tT",
        b"\tE\tT",
        b"x" * 513 + b"\tF\tT",
        b"g\t\t ",
        b'h\t"H"H\tT',  # line 9
        b'i\t"I\n\xff\nI"\tT',  # bad on line 11
        b'j\t"J\nJ"',
        b"k\tK\tT",
    ]
    file = write("p.tsv", HEADER.encode() + b"\n".join(rows) + b"\n")
    assert without_bad_rows(file) == (
        ["a", "k"],
        [
            (3, "wrong columns"),
            (4, "wrong columns"),
            (5, "invalid UTF-8"),
            (6, "duplicate id"),
            (7, "empty id"),
            (8, "over-long id"),
            (9, "empty passage"),
            (10, "malformed quoting"),
            (12, "invalid UTF-8"),
            (14, "wrong columns"),
        ],
    )


def test_bad_lines_of_a_jsonl_are_skipped_by_reason(write: Write) -> None:
    lines = [
        b'{"id": "a", "text": "A"}',
        b'{"id": "b", "text": 7}',
        b"\xff",
        b'{"id": "a", "text": "again"}',
        b'{"id": "", "text": "C"}',
        b'{"id": "d", "text": " "}',
        b'{"id": "e", "text": "E"',
        b"",
        b'{"id": "f", "text": "F"}',
    ]
    assert without_bad_rows(write("p.jsonl", b"\n".join(lines))) == (
        ["a", "f"],
        [
            (2, "malformed JSON"),
            (3, "invalid UTF-8"),
            (4, "duplicate id"),
            (5, "empty id"),
            (6, "empty passage"),
            (7, "malformed JSON"),
        ],
    )


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ('a\tA\tT\nb\t"never closed\tT\nc\tC\tT\nd\tD\tT\n', "3: malformed row: "),
        ('a\tA\tT\nb\t"closed\tT\nc\t"C"\tT\nd\tD\tT\n', "3: malformed row: "),
    ],
)
def test_a_malformed_row_of_several_lines_is_an_error_all_the_same(write: Write, rows: str, what: str) -> None:
    file = write("p.tsv", (HEADER + rows).encode())
    with pytest.raises(PassageFileError) as caught:
        list(read(file, lambda row: None))
    assert str(caught.value).startswith(f"{file}:{what}")


def test_invalid_utf8_in_a_row_that_never_ends_is_an_error(write: Write) -> None:
    file = write("p.tsv", HEADER.encode() + b'a\t"\xff\tT\nb\tB\tT\n')
    with pytest.raises(PassageFileError, match="2: invalid UTF-8"):
        list(read(file, lambda row: None))


@pytest.mark.parametrize("data", [b"", b"id\ttext\n", b"a\tA\tT\n", b"\xff\n"])
def test_another_header_is_an_error_all_the_same(write: Write, data: bytes) -> None:
    with pytest.raises(PassageFileError):
        list(read(write("p.tsv", data), lambda row: None))


def test_damaged_gzip_is_an_error_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / "p.tsv.gz"
    file.write_bytes(gzip.compress(many_lines("tsv"))[:-9])
    with pytest.raises(PassageFileError, match="damaged or cut off"):
        list(read(file, lambda row: None))


@given(data=st.binary(max_size=60), kind=st.sampled_from(["tsv", "jsonl"]))
@REPRODUCIBLE
def test_any_bytes_give_passages_skipped_rows_or_one_clear_error(tmp_path: Path, data: bytes, kind: str) -> None:
    file = tmp_path / f"p.{kind}"
    file.write_bytes((HEADER.encode() if kind == "tsv" else b"") + data)
    skipped: list[BadRow] = []
    try:
        ids = [row.passage.id for row in read(file, skipped.append)]
    except PassageFileError as error:
        assert str(error).startswith(f"{file}:")  # noqa: PT017
    else:
        assert len(set(ids)) == len(ids)
        assert len(ids) + len(skipped) <= data.count(b"\n") + data.count(b"\r") + 1
    if not skipped:
        return
    with pytest.raises(PassageFileError):  # what is skipped is an error otherwise
        list(read(file))
