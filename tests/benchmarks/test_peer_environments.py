"""Making a peer's environment: what cannot be made is said, and tried again the next time."""

from pathlib import Path

import pytest

from benchmarks.peers import environments


def test_an_environment_is_made_once_and_one_that_cannot_be_made_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "HERE", tmp_path)
    monkeypatch.setattr(environments, "ENVIRONMENTS", tmp_path / "made")
    pins = tmp_path / "requirements" / "odd.txt"
    pins.parent.mkdir()
    pins.write_text("this is no requirement\n")
    assert "this is no requirement" in environments.make("odd")
    assert "this is no requirement" in environments.make("odd")
    pins.write_text("\n")
    assert environments.make("odd") == ""
    stamp = tmp_path / "made" / "odd" / environments.STAMP
    (tmp_path / "made" / "odd" / "bin" / "python").unlink()
    assert environments.make("odd") == "", "nothing is installed again while the pins are the same"
    assert stamp.exists()
