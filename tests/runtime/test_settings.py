"""The server's settings: who wins, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from narrows.errors import SettingsError
from narrows.server.run import front_count
from narrows.settings import NAMES, ServerSettings, load

BUNDLE = {"bundle": "b"}
# One setting of each kind: its default, a value for the file, the environment and the flag, and what these three mean.
KINDS: dict[str, tuple[Any, str, str, Any, list[Any]]] = {
    "bundle": (None, '"t/b"', "e/b", Path("f/b"), [Path("t/b"), Path("e/b"), Path("f/b")]),
    "index": (None, '"t.index"', "e.index", "f.index", [Path("t.index"), Path("e.index"), Path("f.index")]),
    "listen": ("127.0.0.1:50051", '"[::]:1"', "[::]:2", "[::]:3", ["[::]:1", "[::]:2", "[::]:3"]),
    "max_items": (64, "1", "2", 3, [1, 2, 3]),
    "encode_threads": (0, "4", "0", 2, [4, 0, 2]),
    "passages_min_share": (0.1, "0.2", "0.3", 0.0, [0.2, 0.3, 0.0]),
    "verify": ("stamp", '"full"', "stamp", "full", ["full", "stamp", "full"]),
    "log_level": ("info", '"debug"', "warning", "error", ["debug", "warning", "error"]),
    "frontends": ("auto", "2", "0", "auto", [2, 0, "auto"]),
    "device": ("auto", '"cpu"', "cuda:1", "cuda", ["cpu", "cuda:1", "cuda"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, name: str) -> None:
    default, toml, variable, flag, (of_toml, of_variable, of_flag) = KINDS[name]
    file = tmp_path / "narrows.toml"
    file.write_text(f"{name} = {toml}\n" + ("" if name == "bundle" else 'bundle = "b"\n'), "utf-8")
    environment = {f"NARROWS_{name.upper()}": variable}

    def value(**arguments: Any) -> Any:
        return getattr(load(**{"flags": {}, "environment": {}, "file": None, **arguments}), name)

    assert value(file=file) == of_toml
    assert value(file=file, environment=environment) == of_variable
    assert value(file=file, environment=environment, flags={name: flag}) == of_flag
    assert value(flags={**BUNDLE, name: flag}) == of_flag
    assert value(flags=BUNDLE if name != "bundle" else {}, environment=environment) == of_variable
    if name != "bundle":
        assert value(flags=BUNDLE) == default


def test_the_three_sources_mix(tmp_path: Path) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text('bundle = "t"\nmax_k = 5\nmax_ids = 6\n', "utf-8")
    settings = load(
        {"max_items": 1, "max_k": None}, {"NARROWS_MAX_IDS": "7", "PATH": "/bin", "NARROWS_OTHER": "x"}, file
    )
    assert settings == ServerSettings(bundle=Path("t"), max_items=1, max_k=5, max_ids=7)


def test_no_bundle() -> None:
    with pytest.raises(SettingsError, match="--bundle, NARROWS_BUNDLE, or `bundle`"):
        load({"bundle": None}, {"NARROWS_BUNDLE": ""}, None)


def test_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text('bundle = "t"\nmax_k = 5\n', "utf-8")
    assert load({}, {"NARROWS_MAX_K": "", "NARROWS_INDEX": ""}, file) == ServerSettings(bundle=Path("t"), max_k=5)


def test_the_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load({"bundle": "~/b", "index": Path("~/i")}, {}, None).index == Path("/home/someone/i")
    with pytest.raises(SettingsError, match=r"^--bundle: "):
        load({"bundle": "~nosuchuser-narrows/b"}, {}, None)


BAD = [
    ("max_items", "0", "must be a whole number from 1 to 100000, not "),
    ("max_items", "100001", "must be a whole number from 1 to 100000, not "),
    ("encode_threads", "-1", "must be a whole number from 0 to 1024, not "),
    ("max_reply_bytes", "1023", "must be a whole number from 1024 to 1073741824, not "),
    ("frontends", "65", "must be auto or a whole number from 0 to 64, not "),
    ("drain_ms", "1" + "0" * 400, "must be a whole number from 0 to 3600000, not "),
    ("passages_min_share", "0.91", "must be from 0.0 to 0.9, not "),
    ("passages_min_share", "-0.1", "must be from 0.0 to 0.9, not "),
    ("passages_min_share", "nan", "must be from 0.0 to 0.9, not "),
    ("passages_min_share", "inf", "must be from 0.0 to 0.9, not "),
    ("passages_min_share", "1" + "0" * 400, "must be from 0.0 to 0.9, not "),
]


@pytest.mark.parametrize(("name", "value", "what"), BAD)
def test_out_of_bounds_names_the_origin(tmp_path: Path, name: str, value: str, what: str) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text(f"{name} = {value}\n", "utf-8")
    variable, flag = f"NARROWS_{name.upper()}", "--" + name.replace("_", "-")
    assert refusal({**BUNDLE}, {}, file).startswith(f"{file}: {name} {what}")
    assert refusal({**BUNDLE}, {variable: value}, None).startswith(f"{variable} {what}{value!r}")
    number = float(value) if name == "passages_min_share" else int(value)
    assert refusal({**BUNDLE, name: number}, {}, None).startswith(f"{flag} {what}{number!r}")


@pytest.mark.parametrize(
    ("name", "toml", "what"),
    [
        ("max_items", "true", "must be a whole number from 1 to 100000, not True"),
        ("max_items", "false", "must be a whole number from 1 to 100000, not False"),
        ("max_items", "1.5", "must be a whole number from 1 to 100000, not 1.5"),
        ("max_items", "inf", "must be a whole number from 1 to 100000, not inf"),
        ("max_items", "nan", "must be a whole number, not nan"),
        ("max_items", '"many"', "must be a whole number, not 'many'"),
        ("max_items", "[1]", "must be a whole number, not [1]"),
        ("max_items", "{a = 1}", "must be a whole number, not {'a': 1}"),
        ("max_items", "1979-05-27", "must be a whole number, not "),
        ("passages_min_share", "true", "must be from 0.0 to 0.9, not True"),
        ("passages_min_share", '""', "must be a number, not ''"),
        ("bundle", "1", "must be a path"),
        ("bundle", '""', "must be a path"),
        ("index", "false", "must be a path"),
        ("listen", "50051", "must be HOST:PORT, such as 127.0.0.1:50051, not 50051"),
        ("log_level", '"loud"', "must be debug or info or warning or error, not 'loud'"),
        ("device", '"CPU"', "must be auto or cpu or cuda or cuda:N"),
        ("device", '"cuda:"', "must be auto or cpu or cuda or cuda:N"),
        ("device", '"cuda:N"', "must be auto or cpu or cuda or cuda:N"),
        ("device", '"cpu:1"', "must be auto or cpu or cuda or cuda:N"),
        ("device", "0", "must be auto or cpu"),
        ("gpu_vectors", '"fp8"', "must be auto or fp16 or fp32 or off"),
        ("frontends", '"many"', "must be auto or a whole number, not 'many'"),
    ],
)
def test_toml_value_of_another_type(tmp_path: Path, name: str, toml: str, what: str) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text(f"{name} = {toml}\n", "utf-8")
    assert refusal({} if name == "bundle" else BUNDLE, {}, file).startswith(f"{file}: {name} {what}")


@pytest.mark.parametrize("value", ["1.5", "1.0", "1e3", "true", "ten", "0x10", "-"])
def test_variable_that_is_not_a_whole_number(value: str) -> None:
    assert (
        refusal(BUNDLE, {"NARROWS_MAX_ITEMS": value}, None)
        == f"NARROWS_MAX_ITEMS must be a whole number, not {value!r}"
    )


def test_unknown_name_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text('bundle = "b"\nmax_itmes = 3\n', "utf-8")
    message = refusal({}, {}, file)
    assert message.startswith(f"{file}: unknown setting max_itmes; known are bundle, index, variant, listen")
    assert all(name in message for name in NAMES)


@pytest.mark.parametrize(
    "data", [b"bundle = ", b"bundle = '\xff'", b"max_items = " + b"9" * 5000, b"[", b"a = 1\na = 2"]
)
def test_file_that_is_not_toml(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "narrows.toml"
    file.write_bytes(data)
    assert refusal(BUNDLE, {}, file).startswith(f"{file} is not TOML: ")


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(BUNDLE, {}, tmp_path / "none") == f"{tmp_path / 'none'} cannot be read: No such file or directory"
    assert refusal(BUNDLE, {}, tmp_path) == f"{tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize("name", ["max_queued_questions", "max_queued_passages"])
def test_a_lane_holds_a_full_call(name: str) -> None:
    assert refusal({**BUNDLE, name: 63}, {}, None) == (
        f"{name} must be at least max_items (64): no full call would ever fit"
    )
    assert getattr(load({**BUNDLE, name: 63, "max_items": 63}, {}, None), name) == 63


def test_a_bad_value_that_is_overridden_is_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "narrows.toml"
    file.write_text('bundle = "b"\nmax_items = "many"\n', "utf-8")
    assert load({}, {"NARROWS_MAX_ITEMS": "3"}, file).max_items == 3


def refusal(flags: dict[str, Any], environment: dict[str, str], file: Path | None) -> str:
    with pytest.raises(SettingsError) as caught:
        load(flags, environment, file)
    return str(caught.value)


@pytest.mark.parametrize(
    ("frontends", "cores", "expected"), [("auto", 2, 0), ("auto", 8, 1), ("auto", 33, 4), (3, 1, 3), (0, 64, 0)]
)
def test_a_front_for_eight_cores_or_as_many_as_are_asked_for(frontends: int | str, cores: int, expected: int) -> None:
    assert front_count(frontends, cores) == expected
