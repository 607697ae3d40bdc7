"""What the facts about one sweep say together."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

from keyturn_workers.console.model.sweep_facts import SweepFacts
from keyturn_workers.console.model.sweep_messages import (
    Progress,
    Requested,
    end_of_event,
    event_counts,
    reported_row,
)
from tests.unit.keyturn_workers.console.model.messages import (
    at,
    progressed,
    rotation_completed,
    rotation_failed,
    sweep_completed,
    sweep_rejected,
    sweep_status,
    uid,
)

if TYPE_CHECKING:
    from keyturn_workers.console.model.rows import SweepRow


def fold(*items: Any) -> SweepFacts:
    facts = SweepFacts("acme", uid(4))
    for item in items:
        if isinstance(item, Requested):
            facts.add_requested(item)
        elif isinstance(item, tuple):
            facts.add_report(reported_row(item[1], at(item[0])))
        elif item.type == "sweep.progressed":
            facts.add_progress(Progress(at(float(item.at[17:-1])), event_counts(item), item.clean))
        else:
            facts.add_end(end_of_event(item))
    return facts


def row(*items: Any) -> SweepRow:
    return fold(*items).row(None)


def test_a_request_is_requested_until_a_worker_begins() -> None:
    assert row(Requested(at(0))).status == "requested"
    assert row(Requested(at(0)), progressed(1, objects=1)).status == "running"


def test_a_refusal_ends_only_what_had_not_begun() -> None:
    assert row(Requested(at(0)), sweep_rejected(1)).status == "rejected"
    assert row(progressed(2, objects=1), sweep_rejected(1)).status == "running"
    assert row(sweep_completed(2), sweep_rejected(3)).status == "done"


def test_a_failed_sweep_that_progresses_again_runs() -> None:
    assert row(rotation_failed(1), progressed(2, objects=1)).status == "running"
    assert row(rotation_failed(3), progressed(2, objects=1)).status == "failed"
    assert row(rotation_completed(3), progressed(4, objects=1)).status == "done"


def test_a_report_just_after_the_end_was_read_before_it() -> None:
    assert row(sweep_completed(1), (5, sweep_status())).status == "done"
    assert row(sweep_completed(1), (30, sweep_status())).status == "running"
    assert row((0, sweep_status(status="done", clean=True, ended_at=None))).clean


def test_an_end_that_is_published_again_keeps_its_time() -> None:
    assert row(rotation_completed(1), rotation_completed(50)).ended_at == at(1)


def test_the_options_are_those_of_the_request_until_a_report_names_them() -> None:
    asked = Requested(at(0), master_key="m2", encrypt_plaintext=True, repair=True)
    assert row(sweep_completed(1)).repair is None
    assert (row(asked).master_key, row(asked).repair) == ("m2", True)
    assert row(asked, (2, sweep_status(repair=False))).repair is False


def test_rate_and_time_left_are_those_of_a_running_sweep() -> None:
    said = sweep_status(expected_objects=100)
    running = row((0, said), progressed(1, objects=10), progressed(11, objects=30))
    assert (running.rate_per_s, running.left_s) == (1.0, 85.0)
    ended = row((0, said), progressed(1, objects=10), sweep_completed(11, objects=30))
    assert (ended.rate_per_s, ended.left_s) == (None, None)


def test_any_order_gives_the_same_row() -> None:
    items = [
        Requested(at(0), "ada", "console"),
        progressed(1, objects=1),
        progressed(3, objects=5),
        rotation_failed(2),
        (4, sweep_status(expected_objects=9)),
        sweep_completed(20, objects=9, evidence="cd" * 32),
    ]
    rows = {row(*order, *order[:2]) for order in permutations(items)}
    assert len(rows) == 1
