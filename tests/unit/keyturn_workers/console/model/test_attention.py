"""*Now* as a whole: the most urgent first, from the model's own facts."""

from __future__ import annotations

from keyturn_workers.console.model import QueueDepth, QueueSnapshot
from keyturn_workers.console.model.attention import RULES, find_attention
from keyturn_workers.console.model.attention_facts import Facts
from keyturn_workers.console.model.rows import Feed, ProjectRow
from tests.unit.keyturn_workers.console.model.messages import (
    at,
    make_model,
    project_status,
    projects_report,
    rotation_completed,
)


def test_nothing_is_wrong_with_nothing_known() -> None:
    assert find_attention(Facts()) == ()


def test_the_most_urgent_is_first() -> None:
    facts = Facts(
        now=at(0),
        feeds={"events": Feed("events", is_connected=True, is_caught_up=True)},
        projects=(ProjectRow("old", key_since=at(-400 * 86400)), ProjectRow("bad", code="x")),
        notes=("cut",),
    )
    assert [item.severity for item in find_attention(facts)] == ["act", "info", "info"]


def test_each_rule_is_listed_once() -> None:
    assert len({rule.__name__ for rule in RULES}) == len(RULES)


def test_the_model_gives_the_rules_its_facts() -> None:
    model = make_model()
    model.set_feed(Feed("events", is_connected=True))
    model.apply_report(projects_report(1, project_status("acme", code="corrupt_object")))
    model.apply_event(rotation_completed(2, clean=False), 0)
    model.apply_queues(QueueSnapshot(at(1), (QueueDepth("keyturn.sweep", 3, 0),)))
    model.note_audit_finding(5, ("FORGED: a record",))
    rules = {item.rule for item in model.attention()}
    assert rules >= {"keyrings_broken", "sweeps_not_clean", "queue_unserved", "audit_gap"}


def test_an_item_goes_when_its_cause_does() -> None:
    model = make_model()
    model.set_feed(Feed("events", problem="the broker cannot be reached", since=at(1)))
    assert model.attention()[0].rule == "broker_gone"
    assert model.attention()[0].as_of == at(1)
    model.set_feed(Feed("events", is_connected=True))
    assert "broker_gone" not in {item.rule for item in model.attention()}
