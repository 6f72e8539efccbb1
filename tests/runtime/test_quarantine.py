"""Suspects run alone; who kills twice is refused; the innocent are cleared; everything is forgotten in time."""

import os
import subprocess
import sys

import numpy as np
import pytest

from narrows import quarantine
from narrows.quarantine import MAX_WORKS, REFUSED_S, Guard, Journal, Quarantine, digest
from narrows.work import Work


def work(number: int, lane: str = "questions") -> Work:
    return Work(number, lane, 0.0, token_ids=np.array([101, number, 102]))


def test_a_digest_tells_texts_lanes_and_vectors_apart_and_nothing_else() -> None:
    assert digest(work(1)) == digest(Work(9, "questions", 5.0, token_ids=np.array([101, 1, 102]), k=3))
    vector = Work(1, "questions", 0.0, vector=np.ones(3, np.float32))
    assert len({digest(work(1)), digest(work(2)), digest(work(1, "passages")), digest(vector)}) == 4


def test_the_journal_outlives_a_process_that_is_aborted() -> None:
    journal = Journal.create()
    child = f"""
import os
from narrows.quarantine import Journal
journal = Journal({journal.descriptor})
journal.begin(0, [1, 2])
journal.begin(1, [3])
journal.begin(0, [4])
os.abort()
"""
    done = subprocess.run(
        [sys.executable, "-c", child], pass_fds=[journal.descriptor], check=False, capture_output=True
    )
    assert done.returncode < 0
    assert journal.take() == {4, 3}
    assert journal.take() == set()


def test_the_journal_holds_a_full_batch_and_not_more() -> None:
    journal = Journal.create()
    journal.begin(0, range(MAX_WORKS + 5))
    journal.begin(1, [2**64 - 1])
    assert journal.take() == {*range(MAX_WORKS), 2**64 - 1}
    journal.begin(0, [1])
    journal.end(0)
    assert journal.take() == set()


def test_suspects_run_alone_and_are_cleared_by_that() -> None:
    journal, cleared = Journal.create(), []
    works = [work(number) for number in range(5)]
    guard = Guard(journal, [digest(works[1]), digest(works[3])], cleared.append)
    groups = guard.groups(works, lambda item: item)
    assert [[item.request_id for item in group] for group in groups] == [[0, 2, 4], [1], [3]]
    for group in groups:
        with guard.running(0, group):
            assert journal.take() == {digest(item) for item in group}
    assert cleared == [digest(works[1]), digest(works[3])]
    assert [len(group) for group in guard.groups(works, lambda item: item)] == [5]


def test_a_suspect_is_cleared_by_its_last_stage_only_and_a_canary_is_never_noted() -> None:
    journal, cleared = Journal.create(), list[int]()
    searched = Work(1, "questions", 0.0, token_ids=np.array([101, 1, 102]), k=3)
    guard = Guard(journal, [digest(searched)], cleared.append)
    with guard.running(0, [searched]):
        pass
    assert cleared == []
    with guard.running(1, [searched]):
        pass
    assert cleared == [digest(searched)]
    with guard.running(0, [work(5, "canary")]):
        assert journal.take() == set()


def test_a_suspect_that_fails_is_not_cleared() -> None:
    cleared: list[int] = []
    guard = Guard(Journal.create(), [digest(work(1))], cleared.append)
    with pytest.raises(ValueError, match="bad"), guard.running(0, [work(1)]):
        raise ValueError("bad")
    assert cleared == []


def test_who_is_there_at_a_death_and_then_alone_at_another_is_refused_for_a_while() -> None:
    found = Quarantine()
    assert found.died({1, 2}, 0.0) == []
    assert sorted(found.suspects(0.0)) == [1, 2]
    assert found.refused(0.0) == {}
    found.cleared(2)
    assert found.died({1, 3}, 4.0) == [], "it did not run alone"
    assert sorted(found.suspects(4.0)) == [1, 3]
    found.cleared(3)
    assert found.died({1}, 5.0) == [1]
    assert found.suspects(5.0) == []
    refused = found.refused(5.0)
    assert refused == {1: 5.0 + REFUSED_S}
    assert found.refused(5.0 + REFUSED_S) == {}


def test_a_suspect_that_is_never_seen_again_is_forgotten() -> None:
    found = Quarantine()
    found.died({1}, 0.0)
    assert found.suspects(REFUSED_S) == []
    assert found.died({1}, REFUSED_S) == []


def test_works_are_refused_until_their_time_is_over() -> None:
    refused = {digest(work(1)): 10.0}
    assert quarantine.refuses(refused, [work(0), work(1)], 9.0)
    assert not quarantine.refuses(refused, [work(0), work(1)], 10.0)
    assert not quarantine.refuses(refused, [work(0)], 9.0)
    assert not quarantine.refuses({}, [work(1)], 9.0)


def test_a_journal_leaves_no_file() -> None:
    before = set(os.listdir("/dev/shm"))  # noqa: PTH208
    Journal.create().begin(0, [1])
    assert set(os.listdir("/dev/shm")) == before  # noqa: PTH208
