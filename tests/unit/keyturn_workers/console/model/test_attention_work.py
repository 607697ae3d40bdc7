"""Rules about queues, workers and dead letters: each fires when it should, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from keyturn_workers.amqp import failures as retry
from keyturn_workers.console.model.attention_facts import Facts, Rule
from keyturn_workers.console.model.attention_work import (
    CODES_WITHOUT_BODY,
    backlog_grows,
    clock_unknown,
    dead_letters,
    queue_unserved,
    workers_differ,
    workers_missing,
)
from keyturn_workers.console.model.rows import DeadCount, DeadSummary, Feed, QueueRow, WorkerRow
from keyturn_workers.console.model.workers import WorkerBook
from tests.unit.keyturn_workers.console.model.messages import Clock, at, worker

UP = {"events": Feed("events", is_connected=True)}


def rows(*reports: Any, now: float = 0) -> tuple[WorkerRow, ...]:
    book = WorkerBook(Clock(now))
    for report in reports:
        book.apply(report)
    return book.rows()


def queue(**fields: Any) -> tuple[QueueRow, ...]:
    values: dict[str, Any] = {"queue": "keyturn.upload", "depth": 9, "consumers": 1}
    return (QueueRow(**(values | fields)),)


def dead(*counts: DeadCount) -> DeadSummary:
    return DeadSummary(counts, sum(each.count for each in counts), at(0), is_complete=True)


GROWING = ((at(-300), 3), (at(-150), 5), (at(0), 9))
SHRINKING = ((at(-300), 20), (at(-150), 12), (at(0), 9))
CLOCKLESS = [worker(seconds, is_clock_known=False) for seconds in (-400, -15)]


@pytest.mark.parametrize(
    ("rule", "fires", "quiet"),
    [
        (queue_unserved, {"queues": queue(consumers=0)}, {"queues": queue()}),
        (queue_unserved, {"queues": queue(consumers=0)}, {"queues": queue(depth=0, consumers=0)}),
        (
            backlog_grows,
            {"queues": queue(oldest_s=400.0), "depths": lambda _: GROWING},
            {"queues": queue(oldest_s=400.0), "depths": lambda _: SHRINKING},
        ),
        (
            backlog_grows,
            {"queues": queue(oldest_s=400.0), "depths": lambda _: GROWING},
            {"queues": queue(oldest_s=10.0), "depths": lambda _: GROWING},
        ),
        (
            workers_missing,
            {"workers": rows(worker(-60)), "feeds": UP},
            {"workers": rows(worker(-30)), "feeds": UP},
        ),
        (
            workers_missing,
            {"workers": rows(worker(-60)), "feeds": UP},
            {"workers": rows(worker(-60))},  # without a broker none can report
        ),
        (
            workers_differ,
            {"workers": rows(worker(0), worker(0, 2, version="0.8.0"))},
            {"workers": rows(worker(0), worker(0, 2))},
        ),
        (
            workers_differ,
            {"workers": rows(worker(0), worker(0, 2, lease_s=30))},
            {"workers": rows(worker(0), worker(0, 2, lease_s=30, is_stopping=True))},
        ),
        (
            workers_differ,
            {"workers": rows(worker(0), worker(0, 2, event_keys=("e2", "e1")))},
            {"workers": rows(worker(0))},
        ),
        (
            workers_differ,
            {"workers": rows(worker(0), worker(0, 2, active_master_key="other"))},
            {},
        ),
        (
            workers_differ,
            {"workers": rows(worker(0), worker(0, 2, master_keys=("main", "old")))},
            {},
        ),
        (
            clock_unknown,
            {"workers": rows(*CLOCKLESS)},
            {"workers": rows(*CLOCKLESS[1:])},
        ),
        (
            dead_letters,
            {"dead": dead(DeadCount("keyturn.upload.dead", "already_exists", 2))},
            {"dead": dead(DeadCount("keyturn.unsigned.dead", "bad_signature", 2))},
        ),
    ],
)
def test_a_rule_fires_when_it_should_and_only_then(
    rule: Rule, fires: dict[str, Any], quiet: dict[str, Any]
) -> None:
    items = list(rule(Facts(now=at(0), **fires)))
    assert len(items) == 1
    assert items[0].title
    assert items[0].remedy
    assert items[0].link.startswith("/")
    assert list(rule(Facts(now=at(0), **quiet))) == []


def test_without_any_worker_of_a_role_it_is_urgent() -> None:
    alone = Facts(now=at(0), feeds=UP, workers=rows(worker(-60)))
    with_another = Facts(now=at(0), feeds=UP, workers=rows(worker(-60), worker(0, 2)))
    assert [item.severity for item in workers_missing(alone)] == ["act"]
    assert [item.severity for item in workers_missing(with_another)] == ["soon"]


def test_a_missing_worker_is_named_by_its_start_too() -> None:
    missing = worker(-60)
    (item,) = workers_missing(Facts(now=at(0), feeds=UP, workers=rows(missing)))
    assert f"started {at(-60):%Y-%m-%d}" in item.detail


def test_a_rollout_is_no_problem_for_a_while() -> None:
    new = worker(0, 2, version="0.9.1")
    fresh = new.model_copy(update={"started_at": worker(-60).at})
    old = new.model_copy(update={"started_at": worker(-3600).at})
    long_ago = worker(0).model_copy(update={"started_at": worker(-7200).at})
    for report, severity in ((fresh, "info"), (old, "soon")):
        facts = Facts(now=at(0), workers=rows(long_ago, report))
        assert [item.severity for item in workers_differ(facts)] == [severity]


def test_dead_letters_are_items_by_code_with_a_filtered_page() -> None:
    counts = (
        DeadCount("keyturn.upload.dead", "already_exists", 2),
        DeadCount("keyturn.upload.dead", "unknown_project", 5),
        DeadCount("keyturn.sweep.dead", "unknown_project", 1),
    )
    items = list(dead_letters(Facts(dead=dead(*counts))))
    assert [item.link for item in items] == [
        "/dead?code=unknown_project",
        "/dead?code=already_exists&queue=keyturn.upload.dead",
    ]
    assert items[0].remedy == "Enroll it: keyturn enroll PROJECT. Then replay or discard them."


def test_codes_that_were_invented_are_one_item() -> None:
    counts = [DeadCount("keyturn.upload.dead", f"invented {number}", 1) for number in range(50)]
    (item,) = dead_letters(Facts(dead=dead(*counts)))
    assert item.title == "50 dead letters: other codes"
    assert item.link == "/dead?queue=keyturn.upload.dead"


def test_letters_without_a_body_are_not_to_be_replayed() -> None:
    assert CODES_WITHOUT_BODY == retry.CODES_WITHOUT_BODY
    counts = (
        DeadCount("keyturn.upload.dead", "already_exists", 1),
        DeadCount("keyturn.upload.dead", "bad_seal", 1),
    )
    kept, replayable = sorted(dead_letters(Facts(dead=dead(*counts))), key=lambda item: item.title)
    assert kept.remedy.endswith("Then discard them.")
    assert replayable.remedy.endswith("Then replay or discard them.")
