"""DPR's own `.cp` files: the same bundles as from the same weights in Hugging Face's form."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from checkpoints import Pair, write_dpr
from local_hub import Hub, Repository, hub_environment, running_hub
from safetensors.torch import load_file
from server_process import NARROWS
from transformers import BertTokenizer

from narrows.bundle import Bundle, Role, TextPreset, open_bundle
from narrows.errors import CheckpointError, ExportError
from narrows.reader import Reader
from narrows.spans import RULES
from narrows.tokenizer import load_tokenizer
from narrows.towers import load_towers
from narrows_export import corpus, original, source, vocabulary
from narrows_export.export import ExportRequest, ReaderRequest, export_bundle
from narrows_tools.cli.main import main

OMEGACONF = Path(__file__).parents[1] / "data" / "original" / "omegaconf-2.0.6.cp"
FORMATS = {"zip": True, "legacy": False}
PRESETS = get_args(TextPreset)
NAMES = (
    ("question_encoder.bert_model.", "question_model."),
    ("question_encoder.encode_proj.", "question_model.encode_proj."),
    ("ctx_encoder.bert_model.", "ctx_model."),
    ("ctx_encoder.encode_proj.", "ctx_model.encode_proj."),
    ("span_predictor.encoder.bert_model.", "encoder."),
    ("span_predictor.qa_outputs.", "qa_outputs."),
    ("span_predictor.qa_classifier.", "qa_classifier."),
)


def original_names(*checkpoints: Path) -> dict[str, torch.Tensor]:
    """The weights of Hugging Face checkpoints by DPR's own names, with those that DPR's files carry in vain."""
    tensors: dict[str, torch.Tensor] = {}
    for directory in checkpoints:
        for name, tensor in load_file(directory / "model.safetensors").items():
            theirs, ours = next(pair for pair in NAMES if name.startswith(pair[0]))
            tensors[ours + name.removeprefix(theirs)] = tensor
    for prefix in {name.split("embeddings.")[0] for name in tensors if "embeddings." in name}:
        tensors[f"{prefix}pooler.dense.weight"] = torch.ones(4, 4)
        tensors[f"{prefix}embeddings.position_ids"] = torch.arange(512)[None]
    return tensors


def write_cp(
    file: Path, tensors: dict[str, torch.Tensor], *, zipped: bool = True, optimizer_numbers: int = 3, **params: object
) -> Path:
    average = torch.ones(optimizer_numbers)
    state = {
        "model_dict": tensors,
        "optimizer_dict": {"state": {0: {"step": 7, "exp_avg": average}}, "param_groups": [{"lr": 1e-5}]},
        "scheduler_dict": {"last_epoch": 3},
        "offset": 11,
        "epoch": 25,
        "encoder_params": {"do_lower_case": True, "encoder_model_type": "hf_bert", "projection_dim": 0, **params},
    }
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    return file


@pytest.fixture(scope="module")
def tokenizer(small_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer and BERT configuration without weights, as of the model that DPR begins with."""
    directory = tmp_path_factory.mktemp("began-with") / "bert"
    shutil.copytree(small_pair.question, directory)
    (directory / "model.safetensors").unlink()
    return directory


def export(out: Path, question: Path, context: Path, **options: Any) -> Bundle:
    export_bundle(
        ExportRequest(str(question), str(context), out, "x", allow_unpaired=True, **options), lambda what: None
    )
    return open_bundle(out)


@pytest.mark.parametrize("kind", FORMATS)
def test_both_encoders_of_one_file_are_those_of_hugging_faces_form(
    tmp_path: Path, small_pair: Pair, small_bundle: Bundle, tokenizer: Path, kind: str
) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    file = write_cp(tmp_path / "dpr_biencoder.25.cp", tensors, zipped=FORMATS[kind])
    bundle = export(tmp_path / "b", file, file, tokenizer=str(tokenizer))
    assert bundle.tower_ids == small_bundle.tower_ids
    source = bundle.tower("question_encoder").source
    assert (source.name, source.kind, source.weights_file) == ("dpr_biencoder.25.cp", "dpr", "dpr_biencoder.25.cp")

    questions = [question.question for question in corpus.questions("en")[:10]]
    for role in ("question_encoder", "context_encoder"):
        ours, theirs = (load_towers(each, "fp32", 1, [role])[role] for each in (bundle, small_bundle))
        for text in ours.tokenizer.questions(questions):
            difference = ours.encoder.encode([text.ids]) - theirs.encoder.encode([text.ids])
            assert np.abs(difference).max() <= 1e-5


def test_a_projection_comes_along(tmp_path: Path, vocabulary: list[str]) -> None:
    pair = [
        write_dpr(tmp_path / role, role, vocabulary, seed=seed, projection_dim=24)  # type: ignore[arg-type]
        for seed, role in enumerate(("question_encoder", "context_encoder"))
    ]
    file = write_cp(tmp_path / "projected.cp", original_names(*pair), projection_dim=24)
    ours = export(tmp_path / "ours", file, file, tokenizer=str(pair[0]))
    theirs = export(tmp_path / "theirs", *pair)
    assert ours.tower_ids == theirs.tower_ids
    assert ours.manifest.dim == ours.tower("context_encoder").projection_dim == 24


def test_a_reader(tmp_path: Path, small_pair: Pair, reader_checkpoint: Path, reading_bundle: Bundle) -> None:
    file = write_cp(tmp_path / "reader.cp", original_names(reader_checkpoint))
    options = {"reader": ReaderRequest(str(file)), "tokenizer": str(reader_checkpoint)}
    bundle = export(tmp_path / "b", small_pair.question, small_pair.context, **options)
    assert bundle.tower("reader").tower_id == reading_bundle.tower("reader").tower_id
    passages = [(passage.title, passage.text) for passage in corpus.passages("en")[:8]]
    readers = (Reader(each, "fp32", 1) for each in (bundle, reading_bundle))
    ours, theirs = (reader.read("who?", passages, RULES["dpr"], 8) for reader in readers)
    assert ours == theirs


def test_one_encoder_for_both(tmp_path: Path, small_pair: Pair, small_bundle: Bundle, tokenizer: Path) -> None:
    """As where training shared it: each tensor stands in the file once, under two names."""
    question = original_names(small_pair.question)
    context = {name.replace("question_model.", "ctx_model."): tensor for name, tensor in question.items()}
    file = write_cp(tmp_path / "shared.cp", question | context)
    assert file.stat().st_size < 1.5 * sum(tensor.nbytes for tensor in question.values())
    bundle = export(tmp_path / "b", file, file, tokenizer=str(tokenizer))
    assert bundle.tower_ids == (small_bundle.tower_ids[0],) * 2
    towers = load_towers(bundle, "fp32", 1, ["question_encoder", "context_encoder"])
    [text] = towers["question_encoder"].tokenizer.questions(["who wrote it?"])
    asked, found = (tower.encoder.encode([text.ids]) for tower in towers.values())
    assert np.array_equal(asked, found)


def test_the_length_that_it_was_trained_with_counts_unless_another_is_asked_for(
    tmp_path: Path, small_pair: Pair, tokenizer: Path
) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    file = write_cp(tmp_path / "long.cp", tensors, sequence_length=320)
    assert export(tmp_path / "a", file, file, tokenizer=str(tokenizer)).tower("context_encoder").max_tokens == 320
    asked = export(tmp_path / "b", file, file, tokenizer=str(tokenizer), max_tokens=128)
    assert asked.tower("context_encoder").max_tokens == 128


def export_beside_a_hub(hub: Hub, home: Path, file: Path) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    command = [*NARROWS, "export", "--question-encoder", str(file), "--context-encoder", str(file)]
    command += ["--out", str(home / "b"), "--allow-unpaired"]
    environment = hub_environment(hub.endpoint, home)
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=240, check=False)


def test_the_tokenizer_is_that_of_the_model_it_began_with(
    tmp_path: Path, small_pair: Pair, small_bundle: Bundle, tokenizer: Path
) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    with running_hub() as hub:
        hub.repositories["someone/bert-tiny-uncased"] = Repository.of(tokenizer)
        file = write_cp(tmp_path / "x.cp", tensors, pretrained_model_cfg="someone/bert-tiny-uncased")
        done = export_beside_a_hub(hub, tmp_path, file)
        assert done.returncode == 0, done.stderr
        assert hub.downloaded("someone/bert-tiny-uncased") == {"config.json", "tokenizer_config.json", "vocab.txt"}
    assert open_bundle(tmp_path / "b").tower_ids == small_bundle.tower_ids


def test_a_model_that_no_hub_has(tmp_path: Path, small_pair: Pair) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    file = write_cp(tmp_path / "x.cp", tensors, pretrained_model_cfg="someone/nowhere")
    with running_hub() as hub:
        done = export_beside_a_hub(hub, tmp_path, file)
    assert done.returncode == 1
    assert "x.cp began with it: give its files' directory as --tokenizer" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command(tmp_path: Path, small_pair: Pair, tokenizer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_cp(tmp_path / "x.cp", original_names(small_pair.question, small_pair.context))
    out = tmp_path / "x.bundle"
    arguments = ["--question-encoder", str(file), "--context-encoder", str(file), "--tokenizer", str(tokenizer)]
    assert main(["export", *arguments, "--out", str(out), "--allow-unpaired"]) == 0
    assert f"wrote {out} (fp32)" in capsys.readouterr().out
    assert open_bundle(out).manifest.dim == 64


def test_settings_of_omegaconf_are_read() -> None:
    """A real file, saved with OmegaConf 2.0.6 as DPR saves since 2021 (tests/data/original), read without OmegaConf."""
    params = original.read(OMEGACONF).params
    named = ("pretrained_model_cfg", "do_lower_case", "sequence_length", "projection_dim", "pretrained_file")
    assert [params[name] for name in named] == ["lab/bert", True, 128, 0, None]


@pytest.mark.parametrize(
    ("nested", "asked", "expected"),
    [
        (True, None, ["dpr-head", "hf", "hf"]),
        (True, "dpr-2020", ["dpr-2020"] * 3),
        (False, None, ["hf"] * 3),
        (False, "dpr-2020", ["dpr-2020"] * 3),
    ],
)
def test_questions_have_the_text_preset_of_2021_where_the_form_of_the_settings_proves_it(
    tmp_path: Path,
    small_pair: Pair,
    reader_checkpoint: Path,
    tokenizer: Path,
    capsys: pytest.CaptureFixture[str],
    nested: bool,
    asked: str | None,
    expected: list[str],
) -> None:
    """And neither passages nor what a reader reads."""
    tensors = original_names(small_pair.question, small_pair.context)
    params = {"encoder": {"sequence_length": 32}} if nested else {"sequence_length": 32}
    file = write_cp(tmp_path / "x.cp", tensors, **params)
    reader = write_cp(tmp_path / "reader.cp", original_names(reader_checkpoint), **params)
    arguments = ["--question-encoder", str(file), "--context-encoder", str(file), "--reader", str(reader)]
    preset = ["--text-preset", asked] if asked else []
    arguments += ["--tokenizer", str(tokenizer), *preset, "--out", str(tmp_path / "b"), "--allow-unpaired"]
    assert main(["export", *arguments]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[2 if row[1] == "encoder" else 1] for row in shown[1:4]] == expected
    towers = open_bundle(tmp_path / "b").manifest.by_role.values()
    assert [tower.tokenizer.text_preset for tower in towers] == expected
    assert {tower.max_tokens for tower in towers} == {32}
    assert main(["bundle", "info", str(tmp_path / "b")]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [next(word for word in row if word in PRESETS) for row in shown[3:6]] == expected


def test_settings_of_omegaconf_tell_the_text_preset() -> None:
    found = original.read(OMEGACONF)
    assert (found.text_preset("question_encoder"), found.text_preset("context_encoder")) == ("dpr-head", "hf")


def test_presets_are_judged_beside_the_two_of_a_bundle(
    tmp_path: Path, small_pair: Pair, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    file = write_cp(tmp_path / "x.cp", tensors, encoder={"sequence_length": 32})
    bundle = export(tmp_path / "b", file, file, tokenizer=str(tokenizer))
    questions, passages = tmp_path / "questions.jsonl", tmp_path / "passages.jsonl"
    rows = [("who\u2019s first?", "one"), ("who is second?", "two"), ("where\u2019s the third?", "three")]
    texts = {"one": "It\u2019s the first.", "two": "The second.", "three": "A third."}
    questions.write_text(
        "".join(json.dumps({"question": asked, "positive_passage_ids": [row]}) + "\n" for asked, row in rows), "utf-8"
    )
    passages.write_text(
        "".join(json.dumps({"id": row, "title": "", "text": text}) + "\n" for row, text in texts.items()), "utf-8"
    )
    command = ["eval", "presets", "--bundle", str(bundle.path), "--passages", str(passages), "-k", "1"]
    assert main([*command, "--questions", str(questions), "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)["presets"]
    changed = [(cost["preset"], cost["changed_questions"], cost["changed_passages"]) for cost in costs]
    assert changed == [
        ("dpr-head / hf", 0, 0),
        ("hf", 2, 0),
        ("dpr-2020", 3, 0),
        ("dpr-head", 0, 1),
        ("haystack", 3, 3),
    ]
    assert [bool(cost["compared"]) for cost in costs] == [False, True, True, True, True]


@pytest.mark.parametrize("said", [True, False])
def test_case_is_the_files_where_the_tokenizer_says_nothing(
    tmp_path: Path, small_pair: Pair, tokenizer: Path, said: bool
) -> None:
    silent = shutil.copytree(tokenizer, tmp_path / "silent")
    (silent / "tokenizer_config.json").unlink()
    file = write_cp(tmp_path / "x.cp", original_names(small_pair.question, small_pair.context), do_lower_case=said)
    settings, _ = vocabulary.read(source.resolve_file(file, str(silent), None), "hf")
    assert settings.lowercase is said


@pytest.mark.parametrize("said", [True, False])
@pytest.mark.parametrize("accents", [{}, {"strip_accents": False}])
def test_another_case_than_the_tokenizers_is_the_files_as_in_dpr(
    tmp_path: Path,
    tokenizer: Path,
    vocabulary: list[str],
    capsys: pytest.CaptureFixture[str],
    said: bool,
    accents: dict[str, bool],
) -> None:
    cased = list(dict.fromkeys([*vocabulary, "The", "the", "Nile", "nile", "río", "rio", "Río", "Rio"]))

    def write_pair(under: Path, do_lower_case: bool) -> list[Path]:
        return [
            write_dpr(under / role, role, cased, seed=seed, do_lower_case=do_lower_case, **accents)  # type: ignore[arg-type]
            for seed, role in enumerate(("question_encoder", "context_encoder"))
        ]

    pair = write_pair(tmp_path / "wrong", not said)
    file = write_cp(tmp_path / "x.cp", original_names(*pair), do_lower_case=said)
    arguments = ["--question-encoder", str(file), "--context-encoder", str(file), "--tokenizer", str(pair[0])]
    assert main(["export", *arguments, "--max-tokens", "32", "--out", str(tmp_path / "b"), "--allow-unpaired"]) == 0
    note = f"has do_lower_case={not said}, but {file} was trained with {said}, which is used.\n"
    assert capsys.readouterr().err.count(note) == 1

    reference = BertTokenizer.from_pretrained(pair[0], do_lower_case=said)
    bundle = open_bundle(tmp_path / "b")
    text = "The Nile, the Río; RÍO rio nile"
    for tower in bundle.manifest.towers.values():
        [found] = load_tokenizer(bundle, tower).questions([text])
        assert found.ids.tolist() == reference(text)["input_ids"]
    right = write_pair(tmp_path / "right", said)
    assert bundle.tower_ids == export(tmp_path / "r", *right, max_tokens=32).tower_ids


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_loaded_once(
    tmp_path: Path, small_pair: Pair, tokenizer: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    file = write_cp(tmp_path / "x.cp", tensors, zipped=FORMATS[kind])
    loaded: list[Path] = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda file, **options: loaded.append(file) or load(file, **options))
    export(tmp_path / "b", file, file, tokenizer=str(tokenizer))
    assert loaded == [file]


def resident_bytes(file: Path) -> int:
    """How much of a file that this process has mapped it has touched."""
    total, is_of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            is_of_file = line.endswith(f" {file}")
        elif is_of_file and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


def test_the_optimizers_state_is_left_on_the_disk(tmp_path: Path, small_pair: Pair) -> None:
    """In today's format, in which a file is mapped; each byte of the weights is used."""
    tensors = original_names(small_pair.question, small_pair.context)
    file = write_cp(tmp_path / "large.cp", tensors, optimizer_numbers=2**24)
    opened = original.read(file)
    used = [opened.tensors(role) for role in ("question_encoder", "context_encoder")]
    assert all(tensor.isfinite().all() for each in used for tensor in each.values())
    weights = sum(tensor.nbytes for tensor in tensors.values())
    assert weights <= resident_bytes(file) <= weights + 2**23 < file.stat().st_size - 2**25


# --- what is refused


class Harmful:
    """Would make a directory where it is loaded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.directory),)


@pytest.mark.parametrize("kind", FORMATS)
def test_code_in_a_file_is_not_run(tmp_path: Path, tokenizer: Path, kind: str) -> None:
    harm = tmp_path / "harm"
    file = tmp_path / "x.cp"
    torch.save({"model_dict": {}, "x": Harmful(harm)}, file, _use_new_zipfile_serialization=FORMATS[kind])
    with pytest.raises(CheckpointError, match="holds Python objects besides tensors"):
        export(tmp_path / "b", file, file, tokenizer=str(tokenizer))
    assert not harm.exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("damage", ["empty", "cut", "short", "noise"])
def test_a_damaged_file(tmp_path: Path, small_pair: Pair, tokenizer: Path, damage: str) -> None:
    file = write_cp(tmp_path / "x.cp", original_names(small_pair.question))
    data = file.read_bytes()
    cut = {"cut": data[: len(data) // 2], "short": data[:-5]}
    file.write_bytes({"empty": b"", **cut, "noise": b"noise" * 1000}[damage])
    with pytest.raises(CheckpointError, match=r"x\.cp (is damaged|cannot be read)"):
        export(tmp_path / "b", file, file, tokenizer=str(tokenizer))


LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from narrows_export import original
used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 2**25,) * 2)
original.read(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_does_not_fit_into_memory_is_not_called_damaged(tmp_path: Path, kind: str) -> None:
    file = write_cp(tmp_path / "x.cp", {"question_model.large": torch.ones(2**25)}, zipped=FORMATS[kind])
    command = [sys.executable, "-c", LITTLE_MEMORY, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "x.cp does not fit into the memory that is free: free some" in done.stderr
    assert "damaged" not in done.stderr


def test_a_file_that_cannot_be_opened_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"x\.cp"):  # which the command line prints
        original.read(tmp_path / "x.cp")


@pytest.mark.parametrize("content", [{"weights": torch.ones(1)}, [torch.ones(1)], {"model_dict": {"a": 1}}])
def test_a_file_of_something_else(tmp_path: Path, tokenizer: Path, content: object) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(content, file)
    with pytest.raises(
        CheckpointError, match=r"is no checkpoint of DPR's own: .* Hugging Face checkpoint is given as its"
    ):
        export(tmp_path / "b", file, file, tokenizer=str(tokenizer))


def test_the_wrong_kind_of_file_is_named(
    tmp_path: Path, small_pair: Pair, reader_checkpoint: Path, tokenizer: Path
) -> None:
    reader = write_cp(tmp_path / "reader.cp", original_names(reader_checkpoint))
    question = write_cp(tmp_path / "question.cp", original_names(small_pair.question))
    with pytest.raises(CheckpointError, match=r"reader\.cp was given as the question encoder, but it holds a reader"):
        export(tmp_path / "b", reader, reader, tokenizer=str(tokenizer))
    with pytest.raises(CheckpointError, match="given as the context encoder, but it holds a question encoder"):
        export(tmp_path / "b", question, question, tokenizer=str(tokenizer))
    pair = (small_pair.question, small_pair.context)
    with pytest.raises(CheckpointError, match="given as the reader, but it holds a question encoder"):
        export(tmp_path / "b", *pair, reader=ReaderRequest(str(question)), tokenizer=str(tokenizer))


@pytest.mark.parametrize("role", ["question_encoder", "context_encoder", "reader"])
def test_a_file_of_no_encoder_is_named_for_what_it_lacks(tmp_path: Path, role: Role) -> None:
    file = write_cp(tmp_path / "x.cp", {"bert.dense.weight": torch.ones(2, 2)})
    given = f"given as the {role.replace('_', ' ')}, but it holds no weights named question_model"
    with pytest.raises(CheckpointError, match=rf"x\.cp was {given}\.\*, ctx_model\.\*, qa_classifier\.\*$"):
        original.read(file).tensors(role)


def test_another_kind_of_encoder(tmp_path: Path, small_pair: Pair, tokenizer: Path) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    file = write_cp(tmp_path / "x.cp", tensors, encoder_model_type="fairseq_roberta")
    with pytest.raises(CheckpointError, match="trained with the encoder fairseq_roberta; only hf_bert is supported"):
        export(tmp_path / "b", file, file, tokenizer=str(tokenizer))


def test_a_weight_that_is_missing_is_named(tmp_path: Path, small_pair: Pair, tokenizer: Path) -> None:
    tensors = original_names(small_pair.question, small_pair.context)
    del tensors["ctx_model.encoder.layer.1.output.dense.bias"]
    file = write_cp(tmp_path / "x.cp", tensors)
    with pytest.raises(CheckpointError, match=r"missing weights .*encoder\.layer\.1\.output\.dense\.bias"):
        export(tmp_path / "b", file, file, tokenizer=str(tokenizer))


@pytest.mark.parametrize("name", ["dense.weight", "question_model.dense.weight", "encoder.pooler.dense.weight"])
def test_a_weight_that_no_encoder_has_is_named(tmp_path: Path, small_pair: Pair, tokenizer: Path, name: str) -> None:
    tensors = original_names(small_pair.question, small_pair.context) | {name: torch.ones(4, 4)}
    file = write_cp(tmp_path / "x.cp", tensors)
    with pytest.raises(CheckpointError, match=rf"x\.cp does not fit .*; unexpected .*{name.split('.', 1)[1]}"):
        export(tmp_path / "b", file, file, tokenizer=str(tokenizer))


def test_another_vocabulary_than_the_weights(tmp_path: Path, small_pair: Pair, vocabulary: list[str]) -> None:
    other = write_dpr(tmp_path / "other", "question_encoder", vocabulary[:1500], seed=1)
    file = write_cp(tmp_path / "x.cp", original_names(small_pair.question, small_pair.context))
    with pytest.raises((CheckpointError, ExportError), match=r"word_embeddings\.weight has shape \(2000, 64\)"):
        export(tmp_path / "b", file, file, tokenizer=str(other))


def test_a_file_that_does_not_say_what_it_began_with(tmp_path: Path, small_pair: Pair) -> None:
    file = write_cp(tmp_path / "x.cp", original_names(small_pair.question, small_pair.context))
    with pytest.raises(CheckpointError, match="does not say which BERT it began with: give --tokenizer"):
        export(tmp_path / "b", file, file)


def test_a_tokenizer_for_no_file_is_refused(tmp_path: Path, small_pair: Pair, tokenizer: Path) -> None:
    with pytest.raises(ExportError, match=r"--tokenizer .* is for DPR's own \.cp files, and no source is a file here"):
        export(tmp_path / "b", small_pair.question, small_pair.context, tokenizer=str(tokenizer))
    assert not (tmp_path / "b").exists()


def test_a_pickle_that_is_no_file_of_torch(tmp_path: Path, tokenizer: Path) -> None:
    file = tmp_path / "x.cp"
    file.write_bytes(pickle.dumps({"model_dict": {}}))
    with pytest.raises(CheckpointError, match=r"x\.cp"):
        export(tmp_path / "b", file, file, tokenizer=str(tokenizer))
