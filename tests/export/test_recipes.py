"""fp16 and int8 made from fp32: their operators, their distance, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from checkpoints import LAYERS, Pair, write_dpr
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from transformers import DPRQuestionEncoder

from narrows import durable
from narrows.bundle import Bundle, Role, open_bundle, read_manifest, write_manifest
from narrows.encoder import EMBEDDING, Encoder, Golden
from narrows.errors import BundleError, ExportError
from narrows.towers import load_towers
from narrows_export import checks, recipes
from narrows_export.export import ExportRequest, export_bundle
from narrows_export.recipes import Made, Making, Recipe, extend_bundle
from narrows_tools.cli.main import main

ROLES: tuple[Role, ...] = ("question_encoder", "context_encoder")
FP16_OPERATORS = {
    "EmbedLayerNormalization (fp16)": 1,
    "Attention (fp16)": LAYERS - 1,
    "MultiHeadAttention (fp16)": 1,  # of the last layer, whose query is one row a text
    "SkipLayerNormalization (fp16)": 2 * LAYERS,
    "BiasGelu (fp16)": LAYERS,
    "MatMul (fp16)": 3 * LAYERS + 3,  # the last layer's query, key and value too
    "NonZero": 0,
}
INT8_OPERATORS = {
    "EmbedLayerNormalization": 1,
    "QAttention": 0,
    "Attention": 0,
    "MultiHeadAttention": LAYERS,
    "MatMulIntegerToFloat": 6 * (LAYERS - 1) + 2,  # of the last layer, key and value only: the rest reads one row
    "QuantizeLinear": 4 * (LAYERS - 1) + 1,
    "MatMul": 3,
    "Gemm": 1,
    "LayerNormalization": 2 * LAYERS,
    "SkipLayerNormalization": 0,
    "BiasGelu": LAYERS,
}
LAST = f"layer.{LAYERS - 1}"
ONE_ROW = (
    f"{LAST}/attention/self/query",
    *(f"{LAST}/{part}/dense" for part in ("attention/output", "intermediate", "output")),
)


@pytest.mark.parametrize("packed", [True, False])
def test_batches_are_priced_as_the_variant_was_made(copy: Path, packed: bool):
    manifest = read_manifest(copy)
    if not packed:  # a bundle that was made before variants were packed says nothing about it
        text = (copy / "manifest.json").read_text("utf-8")
        (copy / "manifest.json").write_text(text.replace('"packed": true', '"later": 1'), "utf-8")
    tower = load_towers(open_bundle(copy), "int8", 1, ["question_encoder"])["question_encoder"]
    variants = manifest.towers["question_encoder"].variants
    assert {name: variant.packed for name, variant in variants.items()} == {"fp32": True, "fp16": False, "int8": True}
    assert tower.measure_costs(budget_ms=1.0).packed == packed


@pytest.fixture
def copy(tmp_path: Path, variants_bundle: Bundle) -> Path:
    """A bundle with all variants, to damage."""
    return shutil.copytree(variants_bundle.path, tmp_path / "copy.bundle")


def operators(file: Path) -> list[str]:
    return [node.op_type for node in onnx.load(file).graph.node]


# What is made


@pytest.mark.parametrize("role", ROLES)
def test_fp16_computes_its_layers_in_half_precision(variants_bundle: Bundle, role: Role):
    tower = variants_bundle.tower(role)
    fp16 = tower.variants["fp16"]
    assert (fp16.recipe, fp16.experimental, fp16.fused_ops) == ("fused-fp16", False, FP16_OPERATORS)
    file = variants_bundle.file(tower, fp16.file)
    model = onnx.load(file)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}
    assert [value.type.tensor_type.elem_type for value in model.graph.output] == [onnx.TensorProto.FLOAT]
    assert fp16.size_bytes < 0.6 * tower.variants["fp32"].size_bytes
    assert fp16.parity_min_cosine >= 0.9999
    assert 0 < fp16.parity_max_abs_error < 0.02
    assert fp16.batch_max_abs_difference == 0
    assert fp16.golden_tolerance == 4 * fp16.parity_max_abs_error


@pytest.mark.parametrize("role", ROLES)
def test_int8_computes_every_product_of_many_rows_in_integers(variants_bundle: Bundle, role: Role):
    tower = variants_bundle.tower(role)
    int8 = tower.variants["int8"]
    assert int8.packed
    assert (int8.recipe, int8.experimental, int8.fused_ops) == ("static-int8", False, INT8_OPERATORS)
    run = recipes.count_run(variants_bundle.file(tower, int8.file))  # what ONNX Runtime makes of it
    assert {name: run.get(name, 0) for name in INT8_OPERATORS} == INT8_OPERATORS
    assert int8.parity_min_cosine >= 0.99
    assert int8.batch_max_abs_difference == 0
    assert int8.golden_tolerance == int8.parity_max_abs_error
    assert int8.quantization is not None
    assert int8.quantization.rounding.in_float == ONE_ROW
    assert [(file.name, file.texts) for file in int8.quantization.calibration] == [
        ("passages.en.jsonl", 300), ("passages.es.jsonl", 100), ("questions.en.jsonl", 130), ("questions.es.jsonl", 70),
    ]  # fmt: skip


def test_the_measured_distance_is_that_of_the_embeddings(variants_bundle: Bundle):
    role: Role = "context_encoder"
    fp32, fp16, int8 = (
        load_towers(variants_bundle, name, 1, [role])[role] for name in ("fp32", "fp16", "int8")
    )  # fmt: skip
    texts = [*checks.golden_texts(fp32.tokenizer), *checks.sample_texts(fp32.tokenizer, "question_encoder")]
    texts += checks.sample_texts(fp32.tokenizer, "context_encoder")
    expected = np.concatenate([fp32.encoder.encode([ids]) for ids in texts])
    for tower, name in ((fp16, "fp16"), (int8, "int8")):
        alone = np.concatenate([tower.encoder.encode([ids]) for ids in texts])
        recorded = variants_bundle.tower(role).variants[name]
        assert recorded.parity_max_abs_error == np.abs(alone - expected).max()
        cosine = (alone * expected).sum(1) / np.linalg.norm(alone, axis=1) / np.linalg.norm(expected, axis=1)
        assert recorded.parity_min_cosine == pytest.approx(cosine.min(), abs=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_int8_gives_a_text_the_same_bits_alone_and_in_any_batch(variants_bundle: Bundle, data: st.DataObject):
    tower = variants_bundle.tower("context_encoder")
    encoder = int8_encoder(variants_bundle.file(tower, tower.variants["int8"].file))
    lengths = data.draw(st.lists(st.integers(2, 90), min_size=2, max_size=9))
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    texts = [random.integers(0, 2000, length) for length in lengths]
    alone = np.concatenate([encoder.encode([ids]) for ids in texts])
    assert np.array_equal(encoder.encode(texts), alone)
    assert np.array_equal(encoder.encode(texts[1:]), alone[1:])


@cache
def int8_encoder(file: Path) -> Encoder:
    return Encoder(file, pad_id=0, threads=1)


def test_a_projection_is_quantized_too_and_stays_in_single_precision_in_fp16(tmp_path: Path, vocabulary: list[str]):
    pair = [
        write_dpr(tmp_path / role, role, vocabulary, seed=seed, projection_dim=32) for seed, role in enumerate(ROLES)
    ]
    out = tmp_path / "out.bundle"
    request = ExportRequest(str(pair[0]), str(pair[1]), out, "x", max_tokens=16, allow_unpaired=True)
    export_bundle(replace(request, variants=("fp16", "int8")), step=lambda what: None)
    bundle = open_bundle(out)
    variants = bundle.tower("question_encoder").variants
    assert variants["int8"].fused_ops == INT8_OPERATORS | {"Gemm": 2}
    assert variants["fp16"].fused_ops == FP16_OPERATORS
    assert recipes.count_operators(out / "question_encoder" / "model.fp16.onnx").get("Gemm") == 1  # the projection's
    for name in variants:
        assert load_towers(bundle, name, 1, ROLES)["context_encoder"].manifest.dim == 32


def test_the_real_minilm_as_fp16_and_int8(minilm_bundle: Bundle, tmp_path: Path):
    out = shutil.copytree(minilm_bundle.path, tmp_path / "minilm.bundle")
    manifest = extend_bundle(out, ["fp16", "int8"], threads=2, step=lambda what: None)
    assert manifest.towers["question_encoder"] == manifest.towers["context_encoder"]
    variants = manifest.towers["question_encoder"].variants
    assert variants["fp16"].parity_min_cosine > 0.99999
    assert variants["fp16"].batch_max_abs_difference == 0
    fused = {"Attention (fp16)": 6, "MultiHeadAttention (fp16)": 0, "MatMul (fp16)": 18}
    assert variants["fp16"].fused_ops.items() >= fused.items()
    assert variants["int8"].parity_min_cosine > 0.995
    assert variants["int8"].batch_max_abs_difference == 0
    assert (variants["int8"].fused_ops["QAttention"], variants["int8"].fused_ops["MatMulIntegerToFloat"]) == (0, 36)
    nodes = list(onnx.load(out / "shared_encoder" / "model.fp16.onnx").graph.node)
    pooling = nodes[max(place for place, node in enumerate(nodes) if node.op_type == "CumSum") :]
    assert "Cast" not in [node.op_type for node in pooling]
    tower = load_towers(open_bundle(out), "fp16", 2, ["context_encoder"])["context_encoder"]
    embedding = tower.encoder.encode([tower.tokenizer.questions(["normalized in single precision"])[0].ids])
    assert np.linalg.norm(embedding) == pytest.approx(1, abs=2e-7)


# Through the command line


def test_export_makes_the_variants_that_are_listed(
    small_pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.bundle"
    towers = ["--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    options = ["--out", str(out), "--max-tokens", "16", "--allow-unpaired", "--variants", "int8,fp32"]
    assert main(["export", *towers, *options]) == 0
    shown = capsys.readouterr().out
    assert "experimental" not in shown
    assert "(fp32, int8)" in shown
    assert list(open_bundle(out).tower("context_encoder").variants) == ["fp32", "int8"]


def test_add_variants_and_info(small_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = str(shutil.copytree(small_bundle.path, tmp_path / "out.bundle"))
    assert main(["bundle", "add-variants", out, "--variants", "fp16", "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    assert list(added["question encoder"]) == list(added["context encoder"]) == ["fp32", "fp16"]
    assert main(["bundle", "info", out]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fp16", "fp32", "unverified", "-"] in lines
    assert ["fp32", "fp32", "reference", "-"] in lines
    assert main(["bundle", "info", out, "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["towers"]["question_encoder"]["variants"]["fp16"]["recipe"] == "fused-fp16"
    assert {"question_variant": "fp32", "passage_variant": "fp16", "status": "unverified"} in described["pairs"]
    assert main(["bundle", "add-variants", out, "--variants", "fp32"]) == 1
    assert "--variants fp32 names nothing to make" in capsys.readouterr().err
    assert main(["bundle", "add-variants", out, "--variants", "fp16"]) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith("out.bundle has fp16 already; export to another --out to make it anew")
    )


# Refusals


@pytest.mark.parametrize("names", [["int4"], ["fp16", "bf16"]])
def test_an_unknown_variant_is_refused_before_any_work(copy: Path, small_pair: Pair, tmp_path: Path, names: list[str]):
    steps: list[str] = []
    with pytest.raises(ExportError, match=rf"there is no variant '{names[-1]}' to make; there are fp16, int8"):
        extend_bundle(copy, names, 1, steps.append)
    request = ExportRequest(str(small_pair.question), str(small_pair.context), tmp_path / "o", "x", variants=(*names,))
    with pytest.raises(ExportError, match="there is no variant"):
        export_bundle(request, steps.append)
    assert steps == []


def test_a_graph_that_lacks_operators_of_its_recipe(
    small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def not_quantized(fp32: Path, out: Path, making: Making) -> Made:
        made = recipes.make_int8(fp32, out, making)
        shutil.copyfile(fp32, out)
        return made

    refused(small_bundle, tmp_path, monkeypatch, not_quantized, "where its recipe demands .*MatMulIntegerToFloat")


def test_embeddings_too_far_from_fp32(small_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def spoilt(fp32: Path, out: Path, making: Making) -> Made:
        made = recipes.make_int8(fp32, out, making)
        scale_weights(out, "LayerNorm.bias", -3.0)
        return made

    refused(small_bundle, tmp_path, monkeypatch, spoilt, "the int8 embeddings are too far from fp32: cosine")


def refused(
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path, Path, Making], Made],
    said: str,
) -> None:
    """Adding int8 by another way of making it fails, and the bundle is as it was."""
    out = shutil.copytree(bundle.path, tmp_path / "out.bundle")
    usual: Recipe = recipes.RECIPES["int8"]
    monkeypatch.setitem(recipes.RECIPES, "int8", replace(usual, make=make))
    with pytest.raises(ExportError, match=said):
        extend_bundle(out, ["int8"], 1, lambda what: None)
    assert open_bundle(out).manifest == bundle.manifest


def scale_weights(file: Path, ending: str, factor: float) -> None:
    model = onnx.load(file)
    changed = [tensor for tensor in model.graph.initializer if tensor.name.endswith(ending)]
    assert changed
    for tensor in changed:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))
    onnx.save(model, file)


def test_values_beyond_half_precision(small_pair: Pair, tmp_path: Path):
    model = DPRQuestionEncoder.from_pretrained(small_pair.question)
    with torch.no_grad():
        model.question_encoder.bert_model.encoder.layer[0].intermediate.dense.bias.fill_(1e5)
    large = shutil.copytree(small_pair.question, tmp_path / "large")
    model.save_pretrained(large)
    request = ExportRequest(
        str(large), str(small_pair.context), tmp_path / "o", "x", max_tokens=16, allow_unpaired=True, variants=("fp16",)
    )
    with pytest.raises(ExportError, match=r"the fp16 embeddings are too far from fp32|is NaN or infinite"):
        export_bundle(request, lambda what: None)
    assert not (tmp_path / "o").exists()


# Golden pairs: the tolerance refuses what the hashes cannot see


def restamped(path: Path, role: Role, name: str) -> Bundle:
    """The bundle with the hashes of one variant's files as they are now."""
    bundle = Bundle(path, read_manifest(path))
    tower = bundle.tower(role)
    variant = tower.variants[name]
    stamped = replace(
        variant,
        sha256=durable.sha256_file(bundle.file(tower, variant.file)),
        golden_sha256=durable.sha256_file(bundle.file(tower, variant.golden_file)),
    )
    towers = bundle.manifest.towers | {role: replace(tower, variants=tower.variants | {name: stamped})}
    write_manifest(path, replace(bundle.manifest, towers=towers))
    return open_bundle(path)


@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize("role", ROLES)
def test_an_altered_model_is_refused_by_its_golden_pairs(copy: Path, role: Role, name: str):
    scale_weights(copy / role / f"model.{name}.onnx", "layer.1.output.LayerNorm.weight", 1.5)
    bundle = restamped(copy, role, name)
    with pytest.raises(BundleError, match=rf"variant {name} of the {role} in .* is off by .* on this machine"):
        load_towers(bundle, name, 1, [role])
    load_towers(bundle, "fp32", 1, [role])


@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize(("share", "refused"), [(0.5, False), (1.5, True)])
def test_golden_embeddings_are_compared_within_the_tolerance(copy: Path, name: str, share: float, refused: bool):
    role: Role = "question_encoder"
    file = copy / role / f"golden.{name}.npz"
    golden = Golden.load(file)
    golden.embeddings[7, 3] += share * open_bundle(copy).tower(role).variants[name].golden_tolerance
    golden.save(file)
    bundle = restamped(copy, role, name)
    if refused:
        with pytest.raises(BundleError, match=f"variant {name} of the {role} .* is off by"):
            load_towers(bundle, name, 1, [role])
    else:
        load_towers(bundle, name, 1, [role])


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_every_variant_reproduces_its_own_golden_pairs(variants_bundle: Bundle, name: str):
    for role in ROLES:
        tower = variants_bundle.tower(role)
        golden = Golden.load(variants_bundle.file(tower, tower.variants[name].golden_file))
        assert len(golden.token_ids) == 32
        encoder = Encoder(variants_bundle.file(tower, tower.variants[name].file), pad_id=0, threads=2)
        alone = np.concatenate([encoder.encode([ids]) for ids in golden.token_ids])
        assert np.array_equal(alone, golden.embeddings)
        assert not np.array_equal(
            golden.embeddings, Golden.load(variants_bundle.file(tower, "golden.fp32.npz")).embeddings
        )


def test_each_role_may_have_its_own_variant(variants_bundle: Bundle):
    towers = load_towers(variants_bundle, {"question_encoder": "int8", "context_encoder": "fp16"}, 1, ROLES)
    for role, name in (("question_encoder", "int8"), ("context_encoder", "fp16")):
        alone = load_towers(variants_bundle, name, 1, [role])[role]
        texts = checks.golden_texts(alone.tokenizer)[:2]
        assert np.array_equal(towers[role].encoder.encode(texts), alone.encoder.encode(texts))


def test_the_embedding_is_the_only_output(variants_bundle: Bundle):
    for name in ("fp16", "int8"):
        model = onnx.load(variants_bundle.path / "context_encoder" / f"model.{name}.onnx")
        assert [value.name for value in model.graph.output] == [EMBEDDING]
