"""The rewriting of a graph into integers, and how weights are rounded."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from narrows.bundle import Bundle, Rounding
from narrows.encoder import Encoder
from narrows.errors import NarrowsError
from narrows.tokenizer import load_tokenizer
from narrows_export import calibrate
from narrows_export.calibrate import Seen
from narrows_export.quantize import INTEGER_PRODUCTS, products, quantize, round_weights


@pytest.fixture(scope="module")
def tower_file(small_bundle: Bundle) -> Path:
    return small_bundle.path / "context_encoder" / "model.fp32.onnx"


@pytest.fixture(scope="module")
def seen(small_bundle: Bundle, tower_file: Path) -> Seen:
    tower = small_bundle.tower("context_encoder")
    tokenizer = load_tokenizer(small_bundle, tower)
    texts = calibrate.read(()).token_ids(tokenizer, "context_encoder")[::10]
    return calibrate.observe(tower_file, texts, tokenizer.pad_id, threads=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32), rows=st.integers(1, 70), columns=st.integers(1, 9), spread=st.sampled_from([0, 1, 4])
)
def test_no_pair_of_weights_can_saturate_and_none_is_far_off(seed: int, rows: int, columns: int, spread: int):
    random = np.random.default_rng(seed)
    weight = (random.standard_normal((rows, columns)) * np.exp(spread * random.standard_normal(columns))).astype("f4")
    rounded, scales = round_weights(weight)
    padded = np.pad(rounded.astype(int), ((0, rows % 2), (0, 0)))
    for reading in (np.maximum(padded, 0), np.maximum(-padded, 0)):
        assert (255 * (reading[0::2] + reading[1::2])).max() < 2**15
    assert np.all(np.abs(rounded * scales - weight).max(axis=0) <= 0.51 * np.abs(weight).max(axis=0) + 1e-9)
    seven_bits = np.abs(weight).max(axis=0) / 64
    plain = np.square(np.clip(np.rint(weight / seven_bits), -64, 64) * seven_bits - weight).sum(axis=0)
    assert np.all(np.square(rounded * scales - weight).sum(axis=0) <= plain * 1.001)


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_product_left_in_float_is_in_float_and_the_others_are_not(tower_file: Path, seen: Seen, place: int):
    model = onnx.load(tower_file)
    names = [product.name for product in products(model)]
    made = quantize(model, seen.rows, Rounding(0.8, 100, (names[place],)))
    integer = {node.name for node in made.graph.node if node.op_type in INTEGER_PRODUCTS}
    assert integer == set(names) - {names[place]}
    assert [product.name for product in products(made)] == [names[place]]


def test_migration_alone_changes_nothing_but_rounding(tower_file: Path, seen: Seen, tmp_path: Path):
    """Even by a migration that is far too strong, the graph computes the same function, only less exactly."""
    texts = [np.arange(5, 40), np.arange(700, 1500, 30)]
    expected = Encoder(tower_file, 0, 1).encode(texts)
    errors = []
    for alpha in (0.0, 0.5, 0.8):
        onnx.save(quantize(onnx.load(tower_file), seen.rows, Rounding(alpha, 100)), tmp_path / "made.onnx")
        errors.append(float(np.abs(Encoder(tmp_path / "made.onnx", 0, 1).encode(texts) - expected).max()))
    assert max(errors) < 0.2 * np.abs(expected).max()
    assert min(errors) > 0


def test_weights_are_integers_with_a_scale_for_each_output(tower_file: Path, seen: Seen):
    model = onnx.load(tower_file)
    made = quantize(model, seen.rows, Rounding(0.8, 100))
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for product in products(model):
        weight = constants[f"{product.name}.weight"]
        assert (weight.dtype, weight.shape) == (np.int8, product.weight.shape)
        assert constants[f"{product.name}.weight_scale"].shape == (product.weight.shape[1],)


def test_what_is_read_for_calibration(tmp_path: Path):
    own = calibrate.read(())
    assert (len(own.questions), len(own.passages)) == (200, 400)
    file = tmp_path / "some.jsonl"
    file.write_text("".join(f'{{"id": "{n}", "title": "t", "text": "passage {n}"}}\n' for n in range(1000)), "utf-8")
    mixed = calibrate.read([file])
    assert len(mixed.passages) == calibrate.TEXTS
    assert mixed.passages[-1] == ("t", "passage 997")
    assert mixed.questions == own.questions
    assert [each.name for each in mixed.files] == ["some.jsonl", "questions.en.jsonl", "questions.es.jsonl"]
    halves = mixed.half(0), mixed.half(1)
    assert not set(halves[0].passages) & set(halves[1].passages)


def test_an_empty_calibration_file(tmp_path: Path):
    file = tmp_path / "empty.jsonl"
    file.write_text("", "utf-8")
    with pytest.raises(NarrowsError, match=r"empty\.jsonl"):
        calibrate.read([file])
