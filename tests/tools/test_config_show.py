"""`narrows config show`, and that the documents say of each setting what the code says."""

import json
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows import settings
from narrows.settings import ABOUT, DEFAULTS, NAMES, ServerSettings, Value, load, resolve
from narrows_tools.cli import config, main

DOCUMENT = Path(__file__).parents[2] / "docs" / "operator.md"


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main.main(["config", "show", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(settings.variable(name), raising=False)


def test_each_value_says_where_it_came_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text('bundle = "t"\nmax_k = 5\nmax_ids = 6\n', "utf-8")
    monkeypatch.setenv("NARROWS_MAX_IDS", "7")
    monkeypatch.setenv("NARROWS_DEVICE", "cpu")
    shown = json.loads(show(capsys, "--config", str(file), "--device", "auto", "--json"))
    assert tuple(shown) == NAMES
    assert {name: (entry["value"], entry["from"]) for name, entry in shown.items() if entry["from"] != "default"} == {
        "bundle": ("t", f"{file}: bundle"),
        "max_k": (5, f"{file}: max_k"),
        "max_ids": (7, "NARROWS_MAX_IDS"),
        "device": ("auto", "--device"),
    }
    assert shown["max_k"] | {"meaning": ""} == {
        "value": 5, "from": f"{file}: max_k", "default": 1000, "bounds": [1, 1_000_000], "choices": None, "meaning": "",
    }  # fmt: skip


def test_without_a_bundle_it_is_shown_as_missing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split() for line in show(capsys).splitlines()]
    assert lines[0] == ["setting", "value", "from", "allowed", "meaning"]
    assert [line[0] for line in lines[1:]] == list(NAMES)
    assert lines[1][:3] == ["bundle", "-", "missing"]
    assert all(line[2] == "default" for line in lines[2:])


def test_a_bad_value_is_refused_as_the_server_would(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NARROWS_MAX_K", "many")
    assert main.main(["config", "show"]) == 1
    assert capsys.readouterr().err == "narrows: NARROWS_MAX_K must be a whole number, not 'many'\n"


def test_the_toml_is_a_file_for_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text(show(capsys, "--bundle", "b", "--log-level", "debug", "--toml"), "utf-8")
    assert load({}, {}, file) == ServerSettings(bundle=Path("b"), log_level="debug")
    file.write_text(show(capsys, "--toml"), "utf-8")
    assert load({"bundle": "b"}, {}, file) == ServerSettings(bundle=Path("b"))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_path_survives_the_toml(name: str) -> None:
    path = Path(f"./{name}")
    text = config.to_toml({"bundle": Value(path, f"{path}: bundle")})
    assert tomllib.loads(text) == {"bundle": str(path)}


def test_load_and_resolve_agree() -> None:
    flags = {"bundle": "b", "max_items": 3}
    found = resolve(flags, {"NARROWS_DRAIN_MS": "1"}, None)
    assert {name: value.value for name, value in found.items()} == asdict(load(flags, {"NARROWS_DRAIN_MS": "1"}, None))


def test_every_setting_has_a_meaning_and_a_rule() -> None:
    for name, about in ABOUT.items():
        assert about.meaning, name
        assert "%" not in about.meaning, f"{name}: argparse would take it for a format"
        if about.bounds is None and not about.choices:
            continue
        in_bounds = not isinstance(DEFAULTS[name], str) and about.bounds is not None
        assert DEFAULTS[name] in about.choices or in_bounds, name
        if in_bounds:
            assert about.bounds[0] <= DEFAULTS[name] <= about.bounds[1], name


def test_the_operator_page_has_the_row_of_each_setting() -> None:
    table = [line for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith("| `")]
    defaults = {name: f"`{value}`" for name, value in DEFAULTS.items() if value not in (None, "")}
    expected = [
        f"| `{name}` | {defaults.get(name, '')} | {settings.allowed(name)} | {about.meaning} |"
        for name, about in ABOUT.items()
    ]
    assert table[: len(expected)] == expected


def test_serve_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["serve", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, about in ABOUT.items():
        assert (settings.flag(name) if about.flag else name) in text
        assert " ".join(about.meaning.split()) in text
