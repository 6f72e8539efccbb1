"""`narrows eval rank` over a small real bundle: the numbers of plain loops, and what is refused."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from server_process import run_narrows

from narrows import durable
from narrows.bundle import Bundle, Role
from narrows.offline import embed
from narrows.towers import load_towers
from narrows.variants import Choice
from narrows_export import corpus
from narrows_tools.cli.main import main
from narrows_tools.evaluation.ranks import BatchSettings, PoolSettings, RankResult, evaluate

FP32 = Choice("fp32", "fp32", "")
ROLES: list[Role] = ["question_encoder", "context_encoder"]


def context(number: int) -> dict[str, str]:
    passage = corpus.passages("en")[number]
    return {"title": passage.title, "text": passage.text, "passage_id": passage.id}


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    """41 questions: golds that several share, some without hard negatives, one with none at all, one left out."""
    made: list[dict[str, Any]] = [
        {
            "question": question.question,
            "answers": [],
            "positive_ctxs": [context(number % 15), context(299)],
            "hard_negative_ctxs": [context(40 + 3 * number + i) for i in range(0 if number % 10 == 9 else 3)],
            "negative_ctxs": [context(170 + number + i) for i in range(0 if number == 29 else 3)],
        }
        for number, question in enumerate(corpus.questions("en")[:41])
    ]
    made.insert(7, {**made[0], "positive_ctxs": []})
    return made


@pytest.fixture(scope="module")
def file(entries: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("biencoder") / "dev.json"
    path.write_text(json.dumps(entries), "utf-8")
    return path


@pytest.fixture(scope="module")
def result(small_bundle: Bundle, file: Path) -> RankResult:
    return evaluate(small_bundle, file, PoolSettings(30, 2, 1), BatchSettings(size=16, seed=5), FP32, threads=2)


class Scorer:
    """Raw inner products, each text encoded by itself."""

    def __init__(self, bundle: Bundle) -> None:
        self._towers = load_towers(bundle, "fp32", 1, ROLES)
        self._vectors: dict[tuple[str, str], npt.NDArray[np.float32]] = {}

    def __call__(self, question: str, passages: Sequence[dict[str, str]]) -> npt.NDArray[np.float64]:
        asker, reader = (self._towers[role] for role in ROLES)
        for passage in passages:
            key = passage["title"], passage["text"]
            if key not in self._vectors:
                self._vectors[key] = embed(reader, reader.tokenizer.passages([key]), 1)[0]
        vectors = np.array([self._vectors[passage["title"], passage["text"]] for passage in passages])
        asked = embed(asker, asker.tokenizer.questions([question]), 1)[0]
        # Rounded, so that a copy is level with its original: sums in another order differ in their last bits.
        return np.round(vectors.astype(np.float64) @ asked.astype(np.float64), 9)


@pytest.fixture(scope="module")
def score(small_bundle: Bundle) -> Scorer:
    return Scorer(small_bundle)


def test_the_pool_is_dprs(result: RankResult, entries: list[dict[str, Any]], score: Scorer) -> None:
    asked = [entry for entry in entries if entry["positive_ctxs"]][:30]
    pool = [
        passage
        for entry in asked
        for passage in [entry["positive_ctxs"][0], *entry["hard_negative_ctxs"][:2], *entry["negative_ctxs"][:1]]
    ]
    ranks, ties = [], []
    for entry in asked:
        scores = score(entry["question"], pool)
        own = score(entry["question"], entry["positive_ctxs"][:1])[0]
        ranks.append(int((scores > own).sum()))
        ties.append(int((scores == own).sum()) - 1)
    found = result.pool
    assert found
    assert (found.questions, found.passages) == (30, len(pool)) == (30, 30 + 27 * 2 + 29)
    assert found.distinct == len({passage["text"] for passage in pool})
    assert found.average_rank == pytest.approx(np.mean(ranks))
    assert found.average_ties == pytest.approx(np.mean(ties)) == 1.0, "15 gold passages, two questions each"
    assert found.first == pytest.approx(np.mean([rank == 0 for rank in ranks]))
    assert found.average_rank_interval[0] < found.average_rank < found.average_rank_interval[1]


def test_the_batches_are_those_of_plain_loops(result: RankResult, entries: list[dict[str, Any]], score: Scorer) -> None:
    asked = [entry for entry in entries if entry["positive_ctxs"]]
    order = np.random.default_rng(5).permutation(41)
    nll: dict[bool, list[float]] = {False: [], True: []}
    ranks: dict[bool, list[int]] = {False: [], True: []}
    support = {False: 0, True: 0}
    means, copied = [], 0
    for first in range(0, 41, 16):
        members = [asked[number] for number in order[first : first + 16]]
        contexts: list[dict[str, str]] = []
        places = []
        for entry in members:
            places.append(len(contexts))
            contexts += entry["positive_ctxs"][:1]
            contexts += (entry["hard_negative_ctxs"] or entry["negative_ctxs"])[:1]
        for entry, own in zip(members, places, strict=True):
            scores = score(entry["question"], contexts)
            copies = [
                place for place, one in enumerate(contexts) if place != own and one["text"] == contexts[own]["text"]
            ]
            copied += bool(copies)
            for masking in (False, True):
                kept = [place for place in range(len(contexts)) if not (masking and place in copies)]
                support[masking] += len(kept)
                nll[masking].append(math.log(sum(math.exp(scores[place] - scores[own]) for place in kept)))
                ranked = sorted(kept, key=lambda place: (-scores[place], place))
                ranks[masking].append(ranked.index(own))
        means.append(np.mean(nll[False][-len(members) :]))
    found = result.batches
    assert found
    assert (found.with_other_negative, found.without_negative, found.with_gold_copies) == (3, 1, copied)
    for masking, metrics in ((False, found.all_contexts), (True, found.copies_masked)):
        assert (metrics.questions, metrics.batches) == (41, 3)
        assert metrics.gold.support + metrics.other.support == support[masking]
        assert metrics.loss == pytest.approx(np.mean(nll[masking]), rel=1e-4)
        assert metrics.average_rank == pytest.approx(np.mean(ranks[masking]))
        assert metrics.wrong == sum(rank > 0 for rank in ranks[masking])
    assert found.all_contexts.batch_means_over_questions == pytest.approx(sum(means) / 41, rel=1e-4)
    assert copied > 5
    assert found.copies_masked.loss < found.all_contexts.loss


def test_the_order_matters_and_a_seed_fixes_it(small_bundle: Bundle, file: Path, result: RankResult) -> None:
    def batches(seed: int) -> object:
        return evaluate(small_bundle, file, None, BatchSettings(size=16, seed=seed), FP32, threads=1).batches

    assert batches(5) == result.batches
    assert batches(6) != result.batches


def test_passages_that_the_tower_reads_alike_tie(small_bundle: Bundle, tmp_path: Path) -> None:
    """An uncased tower knows no capitals: the same vector, encoded once."""
    file = tmp_path / "dev.json"
    alike = [{"title": "Carmen", "text": "An opera."}, {"title": "CARMEN", "text": "an opera."}]
    file.write_text(
        json.dumps([{"question": "opera?", "positive_ctxs": alike[:1], "hard_negative_ctxs": alike[1:] * 2}])
    )
    advanced: list[tuple[str, list[int]]] = []

    def start(what: str, total: int) -> Any:
        advanced.append((what, [total]))
        return advanced[-1][1].append

    found = evaluate(small_bundle, file, PoolSettings(), BatchSettings(), FP32, 1, start)
    assert found.pool
    assert (found.pool.passages, found.pool.distinct, found.pool.average_rank, found.pool.average_ties) == (3, 1, 0, 2)
    assert found.batches
    assert found.batches.all_contexts.loss == pytest.approx(math.log(2))
    assert found.batches.copies_masked.loss == 0.0
    for what, (total, *done) in advanced:
        assert sum(done) == total, what


def test_the_command_prints_tables_and_json(
    small_bundle: Bundle, file: Path, result: RankResult, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "rank", "--bundle", str(small_bundle.path), "--data", str(file), "--batch", "16", "--seed", "5"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["data"], printed["data_sha256"]) == ("dev.json", durable.sha256_file(file))
    assert (printed["questions"], printed["without_positive"]) == (41, 1)
    assert printed["context_tower_id"] == small_bundle.tower("context_encoder").tower_id
    assert printed["question_tower_id"] == small_bundle.tower("question_encoder").tower_id
    assert printed["pool"]["settings"] == {"questions": 10_000, "hard_negatives": 30, "other_negatives": 30}
    assert printed["pool"]["questions"] == 41
    assert result.batches
    assert printed["batches"]["all_contexts"]["loss"] == result.batches.all_contexts.loss
    assert printed["batches"]["settings"] == {"questions": None, "size": 16, "seed": 5}

    assert main([*command, "--report", "batches", "--questions", "20"]) == 0
    table = capsys.readouterr().out
    assert "41 questions of dev.json, bundle small (fp32)\nleft out: 1 questions without a positive passage" in table
    assert "batches: 20 questions in 2 batches of 16 (seed 5)" in table
    assert "note: 2 questions have no hard negative: another negative is taken" in table
    assert "average rank, from 0" not in table
    assert main([*command, "--report", "rank", "--hard-negatives", "0", "--other-negatives", "0"]) == 0
    table = capsys.readouterr().out
    assert "pool: 41 questions against 41 passages (15 distinct)" in table
    assert "acc_and_f1" not in table


def test_bad_files_and_arguments_are_refused(
    small_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "dev.json"
    bad.write_text('[{"question": "q", "positive_ctxs": [{"title": "t"}]}]')
    command = ["eval", "rank", "--bundle", str(small_bundle.path), "--data", str(bad)]
    assert main(command) == 1
    assert f"narrows: {bad}: entry 1: expected " in capsys.readouterr().err
    assert main([*command, "--variant", "int8"]) == 1
    for arguments, message in (
        (["--batch", "0"], "must be 1 to 4096"),
        (["--questions", "0"], "must be at least 1"),
        (["--seed", "-1"], "must be at least 0"),
        (["--report", "all"], "invalid choice"),
    ):
        with pytest.raises(SystemExit):
            main([*command, *arguments])
        assert message in capsys.readouterr().err


def test_as_a_program_without_warnings(small_bundle: Bundle, file: Path) -> None:
    done = run_narrows("eval", "rank", "--bundle", str(small_bundle.path), "--data", str(file))
    assert done.returncode == 0, done.stderr
    assert "copies masked" in done.stdout
    assert "encoding passages: 100%" in done.stderr
