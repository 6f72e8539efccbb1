"""Lines of text files: a `with` block closes the file, however it ends."""

import gzip
from pathlib import Path

import psutil
import pytest

from narrows import passage_files
from narrows.errors import PassageFileError
from narrows.text_lines import TextLines


@pytest.fixture(params=["lines.tsv", "lines.tsv.gz"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / request.param
    data = b"\xef\xbb\xbfid\ttext\ttitle\n1\tone\t\n2\n3\tthree\t\n"
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def _is_open(file: Path) -> bool:
    return str(file) in {opened.path for opened in psutil.Process().open_files()}


def test_a_block_goes_through_the_lines_once_and_closes_the_file_behind_it(file: Path) -> None:
    with TextLines(file, PassageFileError) as lines:
        assert next(iter(lines)) == "id\ttext\ttitle\n"
        assert _is_open(file)
        assert [(lines.number, line) for line in lines] == [(2, "1\tone\t\n"), (3, "2\n"), (4, "3\tthree\t\n")]
        assert not _is_open(file)
    with TextLines(file, PassageFileError) as lines:
        next(iter(lines))
    assert not _is_open(file)
    assert lines.number == 1


def test_an_error_in_the_middle_closes_the_file_while_it_is_still_being_handled(file: Path) -> None:
    with pytest.raises(PassageFileError, match=":3: expected 3") as caught:
        list(passage_files.read(file))
    assert caught.tb is not None  # whose frames hold the reader
    assert not _is_open(file)
