"""The eval commands over a real bundle, index and server: the same numbers everywhere, and those of plain loops."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from building import build
from checkpoints import Pair
from server_process import ServerProcess, environment, run_narrows

from narrows import Client
from narrows.bundle import Bundle, TextPreset, open_bundle
from narrows_export import corpus
from narrows_export.export import ExportRequest, export_bundle

QUESTIONS = corpus.DIRECTORY / "questions.en.jsonl"
DEPTH = 30
BLOCKED = ("onnxruntime", "faiss", "tokenizers", "grpc_health", "grpc_reflection", "torch", "transformers")
WITHOUT_CPU = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError("blocked: " + name, name=name)
sys.meta_path.insert(0, Blocker())
from narrows_tools.cli.main import main
sys.exit(main())
"""


def evaluated(*arguments: str) -> Any:
    done = run_narrows("eval", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def local(small_bundle: Bundle, small_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the result and the rankings of a run without a server."""
    out = tmp_path_factory.mktemp("local")
    arguments = ["--questions", str(QUESTIONS), "--bundle", str(small_bundle.path), "--index", str(small_index)]
    files = ["--save", "result.json", "--out-dpr", "dpr.json", "--out-trec", "run.trec", "--out-pyserini", "pys.json"]
    paths = [str(out / item) if number % 2 else item for number, item in enumerate(files)]
    evaluated("retrieval", *arguments, "-k", str(DEPTH), *paths)
    return out


def test_a_server_gives_the_numbers_of_towers_and_index(local: Path, running: ServerProcess, tmp_path: Path) -> None:
    """With the client and the extra `eval` alone: everything else is blocked."""
    result = tmp_path / "result.json"
    arguments = ["eval", "retrieval", "--questions", str(QUESTIONS), "--server", running.address, "-k", str(DEPTH)]
    files = [
        "--passages",
        str(corpus.passages_file("en")),
        "--save",
        str(result),
        "--out-dpr",
        str(tmp_path / "dpr.json"),
    ]
    command = [sys.executable, "-W", "error", "-c", WITHOUT_CPU, *arguments, *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    assert "130 questions of questions.en.jsonl, 300 passages of demo (g000001), bundle small (fp32)" in done.stdout
    assert json.loads(result.read_text()) == json.loads((local / "result.json").read_text())
    assert (tmp_path / "dpr.json").read_bytes() == (local / "dpr.json").read_bytes()


def test_the_numbers_are_those_of_plain_loops(local: Path, client: Client) -> None:
    result = json.loads((local / "result.json").read_text())
    questions = corpus.questions("en")
    found = client.search([question.question for question in questions], k=DEPTH)
    for k in (1, 5, 20, DEPTH):
        positives = [
            any(hit.id in question.positive_passage_ids for hit in hits[:k])
            for question, hits in zip(questions, found, strict=True)
        ]
        assert result["metrics"]["by_positives"]["accuracy"][str(k)] == pytest.approx(sum(positives) / len(questions))
    retrieved = json.loads((local / "dpr.json").read_text("utf-8"))
    assert [item["question"] for item in retrieved] == [question.question for question in questions]
    assert [[c["id"] for c in item["ctxs"]] for item in retrieved] == [[hit.id for hit in hits] for hits in found]
    for k in (1, 5, 20, DEPTH):
        answered = [any(c["has_answer"] for c in item["ctxs"][:k]) for item in retrieved]
        assert result["metrics"]["by_answers"]["accuracy"][str(k)] == pytest.approx(sum(answered) / len(questions))
    table = result["metrics"]["by_answers"]
    assert table["ceiling"] == 1.0
    assert 0.0 < table["random"]["1"] < table["random"]["20"] < 0.5
    assert len((local / "run.trec").read_text().splitlines()) == DEPTH * len(questions)


def test_a_sample_is_compared_with_its_like_only(
    local: Path, small_bundle: Bundle, small_index: Path, tmp_path: Path
) -> None:
    system = ["--questions", str(QUESTIONS), "--bundle", str(small_bundle.path), "--index", str(small_index)]
    system += ["-k", str(DEPTH), "--no-counts"]
    sample = tmp_path / "sample.json"
    first = evaluated("retrieval", *system, "--limit", "40", "--seed", "2", "--save", str(sample))
    assert (first["asked"]["limit"], first["asked"]["seed"], len(first["judged"])) == (40, 2, 40)
    assert first["metrics"]["by_answers"]["random"] is None

    again = run_narrows("eval", "retrieval", *system, "--limit", "40", "--seed", "2", "--compare", str(sample))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("no difference shown") == 4 + 4 + 3
    compared = evaluated("compare", str(sample), str(sample))
    assert [item["difference"]["difference"] for item in compared] == [0.0] * 11

    failed = run_narrows("eval", "compare", str(sample), str(local / "result.json"))
    assert failed.returncode == 1
    assert "they share 40 of 40 and 130 questions" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert not failed.stdout


def test_what_cannot_be_compared_or_read_is_refused_before_a_question_is_asked(
    local: Path, small_bundle: Bundle, small_index: Path, running: ServerProcess, tmp_path: Path
) -> None:
    same_ids = tmp_path / "other.jsonl"
    same_ids.write_text(QUESTIONS.read_text("utf-8").replace("?", "!"), "utf-8")
    system = ["--bundle", str(small_bundle.path), "--index", str(small_index), "--compare", str(local / "result.json")]
    depth = ["-k", str(DEPTH)]
    for arguments, message in (
        (["--questions", str(QUESTIONS), *system, *depth, "--limit", "40"], "they share 40 of 130 and 40 questions"),
        (["--questions", str(QUESTIONS), *system, "-k", "5"], "depth 30 and 5"),
        (["--questions", str(same_ids), *system, *depth], "questions.en.jsonl and other.jsonl differ in content"),
        (["--questions", str(QUESTIONS), "--server", running.address, "--passages", "no.tsv"], "no.tsv:1: cannot be"),
        (["--questions", str(QUESTIONS), "--server", running.address, "--save", str(tmp_path)], "it is a directory"),
    ):
        done = run_narrows("eval", "retrieval", *arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert "asking questions" not in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def int8_index(variants_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English demo passages, filled by int8."""
    out = tmp_path_factory.mktemp("int8") / "int8.index"
    build(variants_bundle, corpus.passages_file("en"), out, name="int8", variant="int8")
    return out


@pytest.mark.parametrize("action", ["retrieval", "presets"])
@pytest.mark.parametrize(("wanted", "questions_by"), [((), "fp32"), (("--variant", "fp16"), "fp16")])
def test_questions_go_by_what_a_server_would_choose_and_passages_by_the_indexs_own(
    variants_bundle: Bundle, int8_index: Path, action: str, wanted: tuple[str, ...], questions_by: str
) -> None:
    system = ["--questions", str(QUESTIONS), "--bundle", str(variants_bundle.path), "--index", str(int8_index)]
    done = run_narrows("eval", action, *system, "--limit", "20", "-k", "5", "--json", *wanted)
    assert done.returncode == 0, done.stderr
    assert f"WARNING: questions by {questions_by} with passages by int8: unverified: " in done.stderr
    found = json.loads(done.stdout)
    if action == "retrieval":
        assert (found["searched"]["variant"], found["searched"]["passage_variant"]) == (questions_by, "int8")


@pytest.fixture(scope="module")
def half_titled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English demo passages, every other one without a title, every third with a curled apostrophe."""
    file = tmp_path_factory.mktemp("passages") / "half.jsonl"
    rows = [
        {"id": p.id, "title": p.title if number % 2 else "", "text": p.text + (" It’s so." if number % 3 == 0 else "")}
        for number, p in enumerate(corpus.passages("en"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return file


def test_presets_cost_what_a_bundle_with_another_preset_shows(
    small_bundle: Bundle, small_pair: Pair, half_titled: Path, tmp_path: Path
) -> None:
    arguments = ["--questions", str(QUESTIONS), "-k", "20"]
    found = evaluated("presets", *arguments, "--bundle", str(small_bundle.path), "--passages", str(half_titled))
    costs = {cost["preset"]: cost for cost in found["presets"]}
    assert list(costs) == list(get_args(TextPreset))
    assert costs["hf"]["compared"] == []
    changed = [(cost["changed_questions"], cost["changed_passages"]) for cost in costs.values()]
    assert changed == [(0, 0), (130, 0), (0, 100), (130, 150)]

    bundle, index = tmp_path / "haystack.bundle", tmp_path / "haystack.index"
    sources = (str(small_pair.question), str(small_pair.context))
    how = ExportRequest(*sources, bundle, "small", allow_unpaired=True, text_preset="haystack")
    export_bundle(how, step=lambda what: None)
    build(open_bundle(bundle), half_titled, index, name="half")
    system = ["--bundle", str(bundle), "--index", str(index)]
    assert evaluated("retrieval", *arguments, *system, "--no-counts")["metrics"] == costs["haystack"]["metrics"]
    reversed_costs = evaluated("presets", *arguments, *system)["presets"]
    assert reversed_costs[0]["preset"] == "haystack", "the bundle's own comes first"
    assert {cost["preset"]: cost["metrics"] for cost in reversed_costs} == {
        preset: cost["metrics"] for preset, cost in costs.items()
    }
    refused = run_narrows("eval", "presets", *arguments, "--bundle", str(small_bundle.path), "--index", str(index))
    assert refused.returncode == 1
    assert "was filled by another context encoder" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["retrieval", "--questions", "q.csv"], 1, "give either --server, or --bundle and --index together"),
        (["retrieval", "--questions", "q.csv", "--bundle", "b"], 1, "give either --server, or"),
        (["retrieval", "--questions", "q.csv", "--server", "x:1", "--bundle", "b"], 1, "give either --server, or"),
        (["retrieval", "--questions", "absent.csv", "--server", "x:1"], 1, "absent.csv:1: cannot be read"),
        (["retrieval", "--questions", "q.csv", "--server", "x:1", "--where", "seen"], 2, "expected KEY=VALUE"),
        (["retrieval", "--questions", "q.csv", "--server", "x:1", "--seed", "-1"], 2, "--seed: must be at least 0"),
        (["retrieval", "--questions", "q.csv", "--server", "x:1", "-k", "0"], 2, "must be at least 1"),
        (
            ["retrieval", "--questions", "q.csv", "--server", "x:1", "--save", "absent/a.json"],
            1,
            "absent is no directory",
        ),
        (["retrieval", "--questions", "q.csv", "--server", "x:1", "--variant", "int8"], 1, "a --server has its own"),
        (
            ["retrieval", "--questions", "q.csv", "--server", "x:1", "--save", "a.json", "--out-trec", "./a.json"],
            1,
            "need a file each",
        ),
        (["retrieval", "--questions", "q.csv", "--server", "x:1", "--save", "/"], 1, "/ cannot be written: it is a"),
        (["retrieval", "--questions", "q.csv", "--server", "x:1", "--seed", "-1"], 2, "must be at least 0"),
        (["compare", "absent.json", "absent.json"], 1, "absent.json cannot be read: No such file"),
        (["presets", "--questions", "q.csv", "--bundle", "b"], 2, "--index --passages is required"),
    ],
)
def test_bad_usage_says_what_to_do(arguments: list[str], status: int, message: str) -> None:
    done = run_narrows("eval", *arguments)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_result_is_refused(local: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.json"
    damaged.write_bytes((local / "result.json").read_bytes()[:500])
    done = run_narrows("eval", "compare", str(local / "result.json"), str(damaged))
    assert done.returncode == 1
    assert f"{damaged} cannot be read" in done.stderr
