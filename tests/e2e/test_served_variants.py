"""Variants served: by default only what passed, by name with a warning, and every reply says which answered."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from building import build
from checkpoints import Pair
from server_process import run_narrows, server

from narrows import Client
from narrows.bundle import Bundle, write_manifest
from narrows.index.store import read_manifest
from narrows.quality import Accuracy, DataFile, Estimate, QualityReport, Scale
from narrows.towers import load_towers
from narrows.v1 import retrieval_pb2 as pb
from narrows.v1 import retrieval_pb2_grpc
from narrows_export import corpus

QUESTION = corpus.questions("en")[0].question
PASSAGE = ("Carmen", "Carmen is an opera in four acts.")


@pytest.fixture(scope="module")
def indexes(variants_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The English demo passages, indexed by each variant."""
    base = tmp_path_factory.mktemp("indexes")
    for name in ("fp32", "fp16", "int8"):
        build(variants_bundle, corpus.passages_file("en"), base / name, name="demo", variant=name)
    return {name: base / name for name in ("fp32", "fp16", "int8")}


@pytest.mark.parametrize(
    ("index_variant", "flags", "served", "warning"),
    [
        ("fp32", [], ("fp32", "fp32"), None),
        ("fp32", ["--variant", "int8"], ("int8", "fp32"), "questions by int8 with passages by fp32: unverified: "),
        (
            "fp16",
            [],
            ("fp32", "fp16"),
            "questions by fp32 with passages by fp16: unverified: the bundle has no quality ",
        ),
        (None, ["--variant", "fp16"], ("fp16", "fp16"), "questions by fp16 with passages by fp16: unverified: "),
    ],
)
def test_which_variants_answer(
    variants_bundle: Bundle,
    indexes: dict[str, Path],
    capfd: pytest.CaptureFixture[str],
    index_variant: str | None,
    flags: list[str],
    served: tuple[str, str],
    warning: str | None,
):
    index = indexes[index_variant] if index_variant else None
    question, passage = served
    with server(variants_bundle.path, index, *flags) as process, Client(process.address, timeout_s=30) as client:
        with grpc.insecure_channel(process.address) as channel:
            stub = retrieval_pb2_grpc.RetrievalServiceStub(channel)
            replies = [stub.GetServerInfo(pb.GetServerInfoRequest()), stub.Encode(pb.EncodeRequest(questions=["a"]))]
            if index:
                replies.append(stub.Search(pb.SearchRequest(questions=[QUESTION], k=3)))
        assert {(reply.served.variant, reply.served.passage_variant) for reply in replies} == {served}
        embedded = client.encode_questions([QUESTION]), client.encode_passages([PASSAGE])
        assert process.stop() == 0
    tower = load_towers(variants_bundle, question, 1, ["question_encoder"])["question_encoder"]
    assert np.array_equal(embedded[0][0], tower.encoder.encode([tower.tokenizer.questions([QUESTION])[0].ids])[0])
    tower = load_towers(variants_bundle, passage, 1, ["context_encoder"])["context_encoder"]
    assert np.array_equal(embedded[1][0], tower.encoder.encode([tower.tokenizer.passages([PASSAGE])[0].ids])[0])
    warnings = [line for line in capfd.readouterr().err.splitlines() if " WARNING " in line]
    assert len(warnings) == (1 if warning else 0)
    assert all(warning in line for line in warnings if warning)


def test_a_pair_that_passed_is_the_default(variants_bundle: Bundle, indexes: dict[str, Path], tmp_path: Path):
    accuracy = Accuracy(1, 0.5, Estimate(0.0, -0.01, 0.01))
    report = QualityReport(
        question_variant="fp16",
        passage_variant="fp16",
        question_model_sha256=variants_bundle.tower("question_encoder").variants["fp16"].sha256,
        passage_model_sha256=variants_bundle.tower("context_encoder").variants["fp16"].sha256,
        created_by="narrows test",
        language="en",
        questions=DataFile("q.jsonl", "0" * 64, 1000),
        passages=DataFile("p.tsv", "1" * 64, 10_000),
        where=(),
        calibration=(),
        seed=0,
        scales=(Scale(10_000, Estimate(0.99, 0.98, 1.0), (accuracy,), 1000, (), 0),),
    )
    path = shutil.copytree(variants_bundle.path, tmp_path / "passed.bundle")
    write_manifest(path, replace(variants_bundle.manifest, quality=(report,)))
    with server(path, indexes["fp16"]) as process, Client(process.address, timeout_s=30) as client:
        assert client.server_info().variant == "fp16"
        assert process.stop() == 0


@pytest.mark.slow
def test_int8_that_an_export_searched_for_is_served_by_name(small_pair: Pair, tmp_path: Path):
    out = tmp_path / "out.bundle"
    sources = ["--question-encoder", str(small_pair.question), "--context-encoder", str(small_pair.context)]
    exported = run_narrows("export", *sources, "--out", str(out), "--allow-unpaired", "--int8", "auto", "--json")
    assert exported.returncode == 0, exported.stderr
    printed = [tower["variants"]["int8"]["quantization"] for tower in json.loads(exported.stdout)["towers"]]
    towers = json.loads(run_narrows("bundle", "info", str(out), "--json").stdout)["towers"]
    assert printed == [tower["variants"]["int8"]["quantization"] for tower in towers.values()]
    assert printed[0]["curve"] == printed[1]["curve"] != []

    questions = [pair.question for pair in corpus.questions("en")[:9]]
    for flags, served in ([], "fp32"), (["--variant", "int8"], "int8"):  # nobody judged it, so by name only
        with server(out, None, *flags) as process, Client(process.address, timeout_s=30) as client:
            assert client.server_info().variant == served
            alone = [client.encode_questions([question])[0] for question in questions]
            assert np.array_equal(client.encode_questions(questions), alone)
            passages = [(question, f"{PASSAGE[1]} {question}") for question in questions]
            alone = [client.encode_passages([passage])[0] for passage in passages]
            assert np.array_equal(client.encode_passages([PASSAGE, *passages])[1:], alone)
            assert process.stop() == 0


def test_a_variant_that_the_bundle_lacks(small_bundle: Bundle, small_index: Path):
    flags = ["--bundle", str(small_bundle.path), "--index", str(small_index), "--listen", "127.0.0.1:0"]
    refused = run_narrows("serve", *flags, NARROWS_VARIANT="fp16")
    assert refused.returncode == 1
    assert "has no variant fp16 of its question_encoder; it has fp32" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_an_index_is_built_by_the_variant_asked_for(variants_bundle: Bundle, tmp_path: Path, name: str):
    out = tmp_path / "x.index"
    bundle, passages = str(variants_bundle.path), str(corpus.passages_file("es"))
    arguments = ["--bundle", bundle, "--passages", passages, "--out", str(out), "--threads", "1"]
    built = run_narrows("index", "build", *arguments, "--variant", name, "--json")
    assert built.returncode == 0, built.stderr
    assert json.loads(built.stdout)["count"] == 100
    assert read_manifest(out)[1].variant == name
    warned = "served by default with questions by fp32 with passages by int8: unverified" in built.stderr
    assert warned == (name == "int8")
