"""A plan names each letter; a job counts what became of it."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.console.dead.jobs import (
    FAILURES_MAX,
    TYPED_ABOVE,
    Failure,
    Job,
    Plan,
    make_plan,
)
from tests.unit.keyturn_workers.console.dead.letters import CONTROL, UPLOADS, indexed

if TYPE_CHECKING:
    from keyturn_workers.console.dead.jobs import JobState, Move
    from keyturn_workers.console.dead.letters import IndexedLetter

_NOW = datetime(2026, 11, 26, tzinfo=UTC)


def _plan(move: Move, *letters: IndexedLetter) -> Plan:
    return make_plan(
        "id", "ada", move, letters, selection="selected", made_at=_NOW, as_of=_NOW, back="/dead"
    )


def job(wanted: int = 10, state: JobState = "running") -> Job:
    return Job("id", "ada", "replay", "selected", None, wanted, (UPLOADS,), _NOW, state)


def test_a_replay_leaves_out_what_cannot_be_replayed_and_says_why() -> None:
    letters = (
        indexed(1),
        indexed(1),
        indexed(2, queue=CONTROL, work_queue="keyturn.control"),
        indexed(3, obstacle="body"),
        indexed(4, obstacle="expired"),
    )
    plan = _plan("replay", *letters)
    assert plan.letters == {UPLOADS: Counter({1: 2}), CONTROL: Counter({2: 1})}
    assert (plan.count, plan.excluded) == (3, {"body": 1, "expired": 1})
    assert plan.targets == {"keyturn.upload": 2, "keyturn.control": 1}
    assert plan.examples == letters[:3]
    assert _plan("discard", *letters).count == 5


def test_a_discard_and_a_large_replay_need_the_number() -> None:
    many = [indexed(number) for number in range(TYPED_ABOVE + 1)]
    assert _plan("discard", indexed(1)).needs_number
    assert not _plan("replay", *many[:-1]).needs_number
    assert _plan("replay", *many).needs_number


def test_what_is_left_is_what_was_not_looked_at() -> None:
    running = job(10)
    running.done, running.gone = 4, 1
    running.fail(Failure(UPLOADS, 1, "id", "malformed_request", "why"))
    assert (running.left, running.kept) == (4, 1)
    assert running.failures[0].digest_text == "h-0000000000000001"


def test_of_very_many_failures_the_first_are_listed() -> None:
    running = job(5000)
    for number in range(FAILURES_MAX + 10):
        running.fail(Failure(UPLOADS, number, "", "", "why"))
    assert (len(running.failures), running.kept) == (FAILURES_MAX, FAILURES_MAX + 10)


@pytest.mark.parametrize(
    ("state", "stopped"),
    [("waiting", "stopped"), ("running", "stopping"), ("done", "done"), ("failed", "failed")],
)
def test_a_job_stops_after_what_is_under_way(state: JobState, stopped: JobState) -> None:
    running = job(state=state)
    running.stop()
    assert running.state == stopped
    assert running.is_stopping
