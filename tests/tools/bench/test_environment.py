"""Which commit a result is of."""

import subprocess
from pathlib import Path

import pytest

from narrows_tools.bench.environment import git_commit


def git(directory: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "module.py").write_text("")
    git(tmp_path, "add", "module.py")
    git(tmp_path, "commit", "--quiet", "-m", "first")
    return tmp_path


def test_a_module_of_a_checkout_has_its_commit_and_a_mark_for_what_was_changed(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert git_commit(checkout / "module.py") == commit
    (checkout / "module.py").write_text("pass")
    assert git_commit(checkout / "module.py") == commit + "+"


def test_a_module_that_is_installed_in_somebodys_checkout_has_none_of_its_commits(checkout: Path) -> None:
    installed = checkout / ".venv" / "module.py"
    installed.parent.mkdir()
    installed.write_text("")
    assert git_commit(installed) == ""


def test_elsewhere_there_is_no_commit(tmp_path: Path) -> None:
    assert git_commit(tmp_path / "module.py") == ""
