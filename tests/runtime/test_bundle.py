"""Opening a bundle: anything missing, changed or of another version is refused by name."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from narrows import durable
from narrows.bundle import STAMP, Bundle, Role, TowerManifest, open_bundle, tower_files, write_manifest
from narrows.encoder import Golden, load_encoder
from narrows.errors import BundleError
from narrows.tokenizer import load_tokenizer
from narrows.towers import load_towers

ROLES: tuple[Role, Role] = ("question_encoder", "context_encoder")
FILES = [
    f"{role}/{name}" for role in ROLES for name in ("model.fp32.onnx", "tokenizer.json", "golden.fp32.npz")
]  # fmt: skip


@pytest.fixture
def copy(tmp_path: Path, small_bundle: Bundle) -> Path:
    """A bundle to damage."""
    return shutil.copytree(small_bundle.path, tmp_path / "copy.bundle")


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    return str(caught.value)


def pad_id(bundle: Bundle, role: Role) -> int:
    tower = bundle.tower(role)
    return load_tokenizer(bundle, tower).pad_id


def test_these_are_all_files(small_bundle: Bundle) -> None:
    towers = small_bundle.manifest.towers.values()
    assert sorted(f"{tower.directory}/{name}" for tower in towers for name in tower_files(tower)) == sorted(FILES)
    on_disk = [
        path.relative_to(small_bundle.path).as_posix() for path in small_bundle.path.rglob("*") if path.is_file()
    ]
    assert sorted(set(on_disk) - {STAMP}) == sorted([*FILES, "manifest.json"])


def test_a_copy_opens(copy: Path, small_bundle: Bundle) -> None:
    assert open_bundle(copy) == Bundle(copy, small_bundle.manifest)


@pytest.mark.parametrize("name", FILES)
def test_flipped_byte(copy: Path, name: str) -> None:
    file = copy / name
    for place in (0, file.stat().st_size // 2, file.stat().st_size - 1):
        good = file.read_bytes()
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert refusal(copy).startswith(f"{file} does not match the manifest's hash")
        file.write_bytes(good)
    open_bundle(copy)


@pytest.mark.parametrize("name", FILES)
def test_missing_and_cut_files(copy: Path, name: str) -> None:
    file = copy / name
    file.write_bytes(file.read_bytes()[:-1])
    assert refusal(copy).startswith(f"{file} does not match the manifest's hash")
    file.unlink()
    assert refusal(copy).startswith(f"{file} is missing")
    file.mkdir()
    assert refusal(copy).startswith(f"{file} is missing")


@pytest.mark.parametrize(("version", "said"), [(b"1", "1"), (b"3", "3"), (b"0", "0"), (b"null", "None")])
def test_another_schema_version(copy: Path, version: bytes, said: str) -> None:
    manifest = copy / "manifest.json"
    data = manifest.read_bytes()
    manifest.write_bytes(data.replace(b'"schema_version": 2', b'"schema_version": ' + version))
    assert refusal(copy).startswith(f"{manifest} has schema version {said}; this program reads 2; make it again")


def test_a_later_schema_is_known_by_its_version_whatever_else_it_holds(copy: Path) -> None:
    (copy / "manifest.json").write_bytes(b'{"schema_version": 3, "everything": ["else"]}')
    assert "has schema version 3; this program reads 2" in refusal(copy)
    (copy / "manifest.json").write_bytes(b"{}")
    assert "has schema version None" in refusal(copy)


@pytest.mark.parametrize("what", ["nothing", "directory", "file"])
def test_not_a_bundle(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x"
    if what == "directory":
        path.mkdir()
    elif what == "file":
        path.write_bytes(b"x")
    assert refusal(path).startswith(f"{path} is not a bundle (")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-2],
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: b"[" + data + b"]",
        lambda data: b"null",
        lambda data: b"[" * 100_000,
        lambda data: b'{"deep": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        lambda data: data.replace(b'"name": "small"', b'"name": "sm\xff"'),
        lambda data: data.replace(b'"name": "small"', b'"name": 7'),
        lambda data: data.replace(b'"name": "small"', b'"another": "small"'),
        lambda data: data.replace(b'"pooling": "cls"', b'"pooling": "max"'),
        lambda data: data.replace(b'"dim": 64', b'"dim": 64.5'),
        lambda data: data.replace(b'"question_encoder": {', b'"any_encoder": {'),
    ],
)
def test_damaged_manifest(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    manifest = copy / "manifest.json"
    damaged = damage(manifest.read_bytes())
    assert damaged != manifest.read_bytes()
    manifest.write_bytes(damaged)
    assert refusal(copy).startswith(f"{manifest} cannot be read: ")


def change_towers(path: Path, change: Callable[[Role, TowerManifest], TowerManifest | None]) -> None:
    """Writes the manifest anew; a tower that `change` turns into None is left out."""
    manifest = open_bundle(path).manifest
    changed = {role: change(role, tower) for role, tower in manifest.towers.items()}
    write_manifest(path, replace(manifest, towers={role: tower for role, tower in changed.items() if tower}))


def test_a_missing_tower(copy: Path) -> None:
    change_towers(copy, lambda role, tower: tower if role == "context_encoder" else None)
    assert refusal(copy).endswith("manifest.json must describe a question_encoder and a context_encoder")


def test_towers_of_different_dimensions(copy: Path) -> None:
    change_towers(copy, lambda role, tower: replace(tower, dim=32) if role == "context_encoder" else tower)
    assert "manifest.json has towers of different dimensions" in refusal(copy)


def test_writing_the_manifest_again_changes_nothing(copy: Path) -> None:
    before = (copy / "manifest.json").read_bytes()
    write_manifest(copy, open_bundle(copy).manifest)
    assert (copy / "manifest.json").read_bytes() == before
    assert msgspec.json.decode(before)["schema_version"] == 2


# --- loading


@pytest.mark.parametrize("role", ROLES)
def test_a_sound_tower_loads(small_bundle: Bundle, role: Role) -> None:
    load_encoder(small_bundle, role, "fp32", pad_id(small_bundle, role), threads=1)


def rewrite_golden(path: Path, role: Role, change: Callable[[np.ndarray], None]) -> Bundle:
    """Changes the embeddings in a tower's golden file, and its hash in the manifest."""
    bundle = open_bundle(path)
    file = bundle.file(bundle.tower(role), bundle.tower(role).variants["fp32"].golden_file)
    golden = Golden.load(file)
    embeddings = golden.embeddings.copy()
    change(embeddings)
    Golden(golden.token_ids, embeddings).save(file)
    sha256 = durable.sha256_file(file)

    def with_hash(of: Role, tower: TowerManifest) -> TowerManifest:
        variants = {name: replace(variant, golden_sha256=sha256) for name, variant in tower.variants.items()}
        return replace(tower, variants=variants) if of == role else tower

    write_manifest(
        path, replace(bundle.manifest, towers={r: with_hash(r, t) for r, t in bundle.manifest.towers.items()})
    )
    return open_bundle(path)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("text", [0, 1, -1])
@pytest.mark.parametrize("value", [0.01, -0.01, np.nan, np.inf])
def test_golden_embeddings_that_the_model_does_not_give(copy: Path, role: Role, text: int, value: float) -> None:
    def change(embeddings: np.ndarray) -> None:
        embeddings[text, 3] += value

    bundle = rewrite_golden(copy, role, change)
    said = re.escape(f"variant fp32 of the {role} in {copy} is off by")
    with pytest.raises(BundleError, match=said):
        load_encoder(bundle, role, "fp32", pad_id(bundle, role), threads=1)
    with pytest.raises(BundleError, match=said):
        load_towers(bundle, "fp32", 1, ROLES)


def test_golden_embeddings_within_the_tolerance(copy: Path, small_bundle: Bundle) -> None:
    tolerance = small_bundle.tower("context_encoder").variants["fp32"].golden_tolerance

    def change(embeddings: np.ndarray) -> None:
        embeddings += tolerance / 4

    bundle = rewrite_golden(copy, "context_encoder", change)
    load_encoder(bundle, "context_encoder", "fp32", pad_id(bundle, "context_encoder"), threads=1)


@pytest.mark.parametrize("role", ROLES)
def test_unknown_variant(small_bundle: Bundle, role: Role) -> None:
    with pytest.raises(BundleError, match=f"has no variant int4 of its {role}; it has fp32"):
        load_encoder(small_bundle, role, "int4", 0, threads=1)


def test_a_model_that_onnx_runtime_cannot_load(copy: Path) -> None:
    bundle = open_bundle(copy)
    file = copy / "context_encoder" / "model.fp32.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(BundleError, match=re.escape(f"{file} cannot be loaded by ONNX Runtime")):
        load_encoder(bundle, "context_encoder", "fp32", 0, threads=1)


def test_a_tokenizer_that_cannot_be_read(copy: Path) -> None:
    bundle = open_bundle(copy)
    file = copy / "context_encoder" / "tokenizer.json"
    file.write_bytes(b"{}")
    with pytest.raises(BundleError, match=re.escape(f"{file} is not a tokenizer")):
        load_towers(bundle, "fp32", 1, ["context_encoder"])
