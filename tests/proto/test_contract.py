"""The guards of the contract: what they let through, what they refuse, and the page made from it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROTO = REPOSITORY / "proto"
BUF = Path(sys.executable).parent / "buf"


def buf(*arguments: str | Path) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([BUF, *arguments], capture_output=True, timeout=60, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of proto/ to be changed."""
    return Path(shutil.copytree(PROTO, tmp_path / "proto"))


def change(copy: Path, old: str, new: str) -> None:
    file = copy / "narrows" / "v1" / "retrieval.proto"
    text = file.read_text("utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), "utf-8")


def breaking(copy: Path) -> "subprocess.CompletedProcess[bytes]":
    return buf("breaking", copy, "--against", copy / "baseline.binpb")


def test_the_contract_passes_its_own_guards() -> None:
    for checked in (buf("lint", PROTO), breaking(PROTO)):
        assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  float score = 2;", "  float score = 3;", 'field "2" with name "score" on message "Hit" was deleted'),
        ("  float score = 2;", "  double score = 2;", "changed type"),
        ("  rpc Tokenize(TokenizeRequest) returns (TokenizeResponse);", "", 'RPC "Tokenize"'),
        ("  DATA_TYPE_FLOAT16 = 2;", "  DATA_TYPE_FLOAT16 = 3;", "Enum value"),
    ],
)
def test_a_breaking_change_is_refused(copy: Path, old: str, new: str, message: str) -> None:
    change(copy, old, new)
    checked = breaking(copy)
    assert checked.returncode == 100
    assert message.lower() in checked.stdout.decode().lower()


def test_an_addition_breaks_nothing_but_needs_a_comment(copy: Path) -> None:
    change(copy, "  float score = 2;", "  float score = 2;\n  float margin = 3;")
    assert breaking(copy).returncode == 0
    checked = buf("lint", copy)
    assert checked.returncode == 100
    assert b'Field "margin" should have a non-empty comment' in checked.stdout
    change(copy, "  float margin = 3;", "  // To the next hit.\n  float margin = 3;")
    assert buf("lint", copy).returncode == 0


def test_the_page_is_that_of_the_contract_and_names_all_of_it() -> None:
    image = buf("build", PROTO, "--output", "-").stdout
    made = subprocess.run(
        [sys.executable, PROTO / "make_docs.py"], input=image, capture_output=True, timeout=60, check=True
    )
    page = (REPOSITORY / "docs" / "api.md").read_text("utf-8")
    assert made.stdout.decode() == page, "run `make proto`"
    for name in ("### SearchStream\n", "`retry_after_ms`", "(one of `outcome`)", "`ON_TOO_LONG_ERROR`", "DRAINING"):
        assert name in page
