"""The real trained pair on real passages: what the server finds beside what transformers' PyTorch models find."""

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from server_process import run_narrows, server
from transformers import (
    DPRContextEncoder,
    DPRContextEncoderTokenizerFast,
    DPRQuestionEncoder,
    DPRQuestionEncoderTokenizerFast,
)

from narrows import Client

PASSAGES, QUESTIONS = 4000, 800
TOLERANCE = 0.001  # 0.1 point
MAX_TOKENS = 256


def embed_with_torch(
    model: torch.nn.Module, texts: Sequence[object], tokenize: Callable[..., dict[str, torch.Tensor]]
) -> npt.NDArray[np.float32]:
    """Embeds with transformers alone: its tokenizer, its model, CLS, segment ids all zero."""
    order = sorted(range(len(texts)), key=lambda number: len(str(texts[number])))
    embeddings = np.empty((len(texts), 384), dtype=np.float32)
    for start in range(0, len(order), 16):
        rows = order[start : start + 16]
        batch = tokenize(
            [texts[row] for row in rows], padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        with torch.no_grad():
            output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        embeddings[rows] = output.pooler_output.numpy()
    return embeddings


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_server_reaches_the_accuracy_of_pytorch(shared: Path, tmp_path: Path) -> None:
    towers = shared / "models" / "tiny-dpr"
    question_tower, context_tower = towers / "question_encoder", towers / "context_encoder"
    bundle, index, passages_file = tmp_path / "tiny.bundle", tmp_path / "en.index", tmp_path / "passages.tsv"
    with gzip.open(shared / "data" / "en" / "passages.tsv.gz", "rt", encoding="utf-8", newline="") as file:
        passages_file.write_text("".join(file.readline() for _ in range(PASSAGES + 1)), "utf-8", newline="")
    with gzip.open(shared / "data" / "en" / "questions.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    unseen = [row for row in rows if row["seen_by_tiny_dpr"] is False]
    chosen = [unseen[number] for number in np.random.default_rng(0).choice(len(unseen), QUESTIONS, replace=False)]

    export = ["--question-encoder", str(question_tower), "--context-encoder", str(context_tower)]
    exported = run_narrows("export", *export, "--out", str(bundle))
    assert exported.returncode == 0, exported.stderr
    build = ["index", "build", "--bundle", str(bundle), "--passages", str(passages_file), "--out", str(index)]
    built = run_narrows(*build, timeout_s=1000)
    assert built.returncode == 0, built.stderr
    with server(bundle, index) as running, Client(running.address, timeout_s=60.0) as client:
        results = client.search([row["question"] for row in chosen], k=100, view="id")
    served_ids = [[hit.id for hit in result] for result in results]

    with passages_file.open(encoding="utf-8", newline="") as file:
        records = list(csv.DictReader(file, delimiter="\t"))
    assert len(records) == PASSAGES
    pairs = [(record["title"], record["text"].strip('"')) for record in records]
    tokenizer = DPRContextEncoderTokenizerFast.from_pretrained(context_tower)
    context_model = DPRContextEncoder.from_pretrained(context_tower, dtype=torch.float32).eval()
    passages = embed_with_torch(
        context_model, pairs, lambda batch, **how: tokenizer(*map(list, zip(*batch, strict=True)), **how)
    )
    question_model = DPRQuestionEncoder.from_pretrained(question_tower, dtype=torch.float32).eval()
    questions = embed_with_torch(
        question_model,
        [row["question"] for row in chosen],
        DPRQuestionEncoderTokenizerFast.from_pretrained(question_tower),
    )
    best = np.argsort(-(questions @ passages.T), axis=1, kind="stable")[:, :100]
    torch_ids = [[records[row]["id"] for row in ranking] for ranking in best]

    for k in (1, 5, 20, 100):
        served, reference = (
            np.mean(
                [bool(set(ids[:k]) & set(row["positive_passage_ids"])) for ids, row in zip(found, chosen, strict=True)]
            )
            for found in (served_ids, torch_ids)
        )
        print(f"top-{k}: served {served:.4f}, PyTorch {reference:.4f}")
        assert served == pytest.approx(reference, abs=TOLERANCE)
    same_first_20 = np.mean(
        [served[:20] == reference[:20] for served, reference in zip(served_ids, torch_ids, strict=True)]
    )
    assert same_first_20 > 0.99, "ranks differ only where scores are equal to float32's last digits"
