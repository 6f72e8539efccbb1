"""What the clients in other languages must do alike. Each of them is one program with the same command line."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess, server

from narrows import Client
from narrows.bundle import Bundle
from narrows_export import corpus

CLIENTS = Path(__file__).parents[2] / "clients"
QUESTIONS = [question.question for question in corpus.questions("en")]
PAIRS = [(passage.title, passage.text) for passage in corpus.passages("en")[:10]]


@dataclass(frozen=True)
class Program:
    """A client's built program."""

    command: Sequence[str]
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        built = Path(self.command[-1])
        assert built.is_file(), f"{built} is not there: make clients builds it"

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*self.command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | self.variables,
        )

    def run(self, *arguments: str, given: str = "") -> "subprocess.CompletedProcess[str]":
        with self.start(*arguments) as process:
            try:
                out, err = process.communicate(given, timeout=60)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def rows(self, *arguments: str, given: str = "", status: int = 0) -> list[dict[str, Any]]:
        """The JSON objects that a command prints, one a line."""
        done = self.run(*arguments, given=given)
        assert (done.returncode, done.stderr) == (status, "")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def report(self, *arguments: str, status: int = 0) -> dict[str, Any]:
        """What `check` prints: every check's result by name."""
        done = self.run("check", *arguments)
        assert done.returncode == status, done.stdout + done.stderr
        report = json.loads(done.stdout)
        assert report["passed"] == (status == 0) == all(check["passed"] for check in report["checks"])
        return {check["name"]: check for check in report["checks"]}


def hits(client: Client, questions: Sequence[str], k: int) -> list[list[dict[str, Any]]]:
    """The Python client's answers, as the programs print them. A float32 is the same number in every language."""
    return [
        [{"id": hit.id, "title": hit.title, "text": hit.text, "score": hit.score} for hit in result]
        for result in client.search(questions, k=k)
    ]


def ids_and_scores(found: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
    return [[{"id": hit["id"], "score": hit["score"]} for hit in result] for result in found]


class Contract:
    """The tests; a subclass adds the fixture `program`."""

    def test_every_check_passes_with_the_answers_of_the_python_client(
        self, program: Program, running: ServerProcess, python: Client
    ) -> None:
        questions = QUESTIONS[:20]
        report = program.report(*questions, "-k", "7", "--server", running.address)
        expected = ids_and_scores(hits(python, questions, 7))
        assert report["search"]["seen"]["results"] == expected
        stream = report["search_stream"]["seen"]
        assert stream["results"] == expected
        assert sorted(stream["order"]) == sorted(["bad", *(f"q{i}" for i in range(20))])
        assert stream["bad"] == {
            "code": "INVALID_ARGUMENT",
            "reason": "INVALID_FIELD",
            "field": "questions[0]",
            "message": stream["bad"]["message"],
            "retry_after_ms": None,
        }
        product = report["inner_product"]["seen"]
        assert product["inner_product"] == product["score"] == expected[0][0]["score"]
        refusals = report["errors"]["seen"]
        assert {name: (error["code"], error["reason"], error["field"]) for name, error in refusals.items()} == {
            "invalid": ("INVALID_ARGUMENT", "INVALID_FIELD", "questions[1]"),
            "unknown": ("NOT_FOUND", "UNKNOWN_CORPUS", ""),
            "mismatch": ("FAILED_PRECONDITION", "OTHER_BUNDLE", ""),
        }
        assert report["deadline"]["seen"]["code"] == "DEADLINE_EXCEEDED"
        too_large = report["receive_limit"]["seen"]
        assert (too_large["code"], too_large["reason"]) == ("RESOURCE_EXHAUSTED", "")

    def test_search_finds_what_the_python_client_finds(
        self, program: Program, running: ServerProcess, python: Client
    ) -> None:
        questions = [*QUESTIONS[:3], "¿dónde está el río? 😀 <b>&"]
        rows = program.rows("search", *questions, "-k", "4", "--json", "--server", running.address)
        assert [row["question"] for row in rows] == questions
        assert [row["hits"] for row in rows] == hits(python, questions, 4)

    def test_search_prints_for_people_too(self, program: Program, running: ServerProcess, python: Client) -> None:
        shown = program.run("search", "rivers", "-k", "2", "--server", running.address)
        assert shown.returncode == 0
        for rank, hit in enumerate(python.search(["rivers"], k=2)[0], start=1):
            assert f"{rank:>3}. {hit.score:8.3f}  {hit.title}  [{hit.id}]" in shown.stdout

    def test_embeddings_are_those_of_the_python_client(
        self, program: Program, running: ServerProcess, python: Client
    ) -> None:
        questions, passages = python.encode_questions(QUESTIONS[:9]), python.encode_passages(PAIRS)
        where = ["--server", running.address]

        def embeddings(*arguments: str) -> Any:
            return np.array([row["embedding"] for row in program.rows("encode", *where, *arguments)])

        np.testing.assert_array_equal(embeddings(*QUESTIONS[:9]), questions)
        np.testing.assert_array_equal(embeddings("--passages", *("\t".join(pair) for pair in PAIRS)), passages)
        half = embeddings("--dtype", "float16", *QUESTIONS[:9])
        np.testing.assert_array_equal(half, questions.astype(np.float16))

    def test_a_stream_answers_every_request_and_one_bad_one_is_its_own_error(
        self, program: Program, running: ServerProcess, python: Client
    ) -> None:
        questions = [f"{question} ({repeat})" for repeat in range(8) for question in QUESTIONS[:40]]
        questions[123] = " "
        rows = program.rows(
            "stream", "-k", "3", "--json", "--server", running.address, given="\n".join(questions) + "\n", status=1
        )
        assert sorted(int(row["request_id"]) for row in rows) == list(range(320))
        by_id = {int(row["request_id"]): row for row in rows}
        assert all(by_id[number]["question"] == question for number, question in enumerate(questions))
        bad = by_id.pop(123)
        assert "hits" not in bad
        assert (bad["error"]["code"], bad["error"]["field"]) == ("INVALID_ARGUMENT", "questions[0]")
        good = [question for question in questions if question != " "]
        assert [by_id[number]["hits"] for number in sorted(by_id)] == hits(python, good, 3)

    def test_a_stream_answers_before_it_ends_and_the_death_of_the_server_is_an_error(
        self, program: Program, small_bundle: Bundle, small_index: Path
    ) -> None:
        with (
            server(small_bundle.path, small_index) as mortal,
            program.start("stream", "-k", "1", "--json", "--server", mortal.address) as process,
        ):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            for question in ("rivers", "lakes"):  # the second is asked once the first is answered
                process.stdin.write(f"{question}\n")
                process.stdin.flush()
                assert json.loads(process.stdout.readline())["question"] == question
            mortal.stop(signal.SIGKILL)
            assert process.wait(30) == 1
            assert ": UNAVAILABLE: " in process.stderr.read()

    def test_overload_is_told_with_a_time_to_come_back(
        self, program: Program, small_bundle: Bundle, small_index: Path
    ) -> None:
        with server(small_bundle.path, small_index, max_items="4", max_queued_questions="4") as busy:
            report = program.report("rivers", "lakes", "--overload", "--server", busy.address)
        seen = report["overload"]["seen"]
        assert 0 < seen["refused"] < seen["calls"]
        assert (seen["first"]["code"], seen["first"]["reason"]) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
        assert seen["first"]["retry_after_ms"] >= 1
        assert seen["refused_with_retry"] < seen["refused"], "gRPC's own retry obeys the trailer"

    def test_without_a_server_commands_fail_in_one_line_and_checks_report(self, program: Program) -> None:
        failed = program.run("search", "rivers", "--server", "127.0.0.1:1")
        assert failed.returncode == 1
        assert ": UNAVAILABLE: " in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
        report = program.report("rivers", "--server", "127.0.0.1:1", status=1)
        assert list(report) == ["server_info"]

    @pytest.mark.parametrize(
        "arguments",
        [[], ["find"], ["search"], ["search", "rivers", "-k", "0"], ["search", "rivers", "--no-such"]],
        ids=" ".join,
    )
    def test_bad_usage_shows_the_usage_and_is_status_2(self, program: Program, arguments: list[str]) -> None:
        failed = program.run(*arguments)
        assert failed.returncode == 2
        assert "usage: narrows-" in failed.stderr
