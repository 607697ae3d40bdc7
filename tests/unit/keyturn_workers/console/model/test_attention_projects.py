"""Rules about projects, sweeps and keys: each fires when it should, and only then."""

from __future__ import annotations

from typing import Any

import pytest

from keyturn_workers.console.model.attention_facts import Facts, Rule
from keyturn_workers.console.model.attention_projects import (
    earlier_keys_kept,
    keyrings_broken,
    keyrings_contradicted,
    keys_old,
    master_keys_unusable,
    master_keys_unused,
    rotations_and_sweeps_stuck,
    sweeps_not_clean,
)
from keyturn_workers.console.model.rows import (
    MasterKeyRow,
    ProjectRow,
    SweepCounts,
    SweepRef,
    SweepRow,
)
from tests.unit.keyturn_workers.console.model.messages import at, uid

DAY = 86400
LAST = SweepRef("acme", uid(1))


def running(**fields: Any) -> tuple[SweepRow, ...]:
    values: dict[str, Any] = {
        "sweep_id": uid(1),
        "project": "acme",
        "kind": "rotation",
        "started_at": at(-4000),
    }
    return (SweepRow(**(values | fields)),)


def of_all(**fields: Any) -> tuple[SweepRow, ...]:
    values: dict[str, Any] = {
        "sweep_id": uid(2),
        "project": "*",
        "status": "failed",
        "clean": False,
        "ended_at": at(-5),
    }
    return (SweepRow(**(values | fields)),)


def project(**fields: Any) -> dict[str, Any]:
    return {"projects": (ProjectRow("acme", as_of=at(-1), **fields),)}


def master_key(**fields: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"master_key": "old", "is_held": True}
    return {"master_keys": (MasterKeyRow(**(values | fields)),)}


CASES: list[tuple[Rule, dict[str, Any], dict[str, Any]]] = [
    (keyrings_broken, project(code="keyring_rolled_back"), project()),
    (keyrings_broken, project(code="not_found"), project()),
    (keyrings_contradicted, project(mark="rolled_back"), project(mark="current")),
    (keyrings_contradicted, project(mark="removed"), project()),
    (keyrings_contradicted, project(mark="unknown"), project(mark="unmarked")),
    (
        sweeps_not_clean,
        project(last_end=LAST, is_last_end_clean=False),
        project(last_end=LAST, is_last_end_clean=True),
    ),
    (sweeps_not_clean, {"ended_of_all": of_all()}, {"ended_of_all": of_all(clean=True)}),
    (
        sweeps_not_clean,
        {"ended_of_all": of_all(status="done", counts=SweepCounts())},
        # Its parts have items of their own.
        {"ended_of_all": of_all(status="done", counts=SweepCounts(failed=1))},
    ),
    (
        rotations_and_sweeps_stuck,
        {"running": running(), "moved_at": lambda _: at(-5)},
        {"running": running(started_at=at(-3000)), "moved_at": lambda _: at(-5)},
    ),
    (
        rotations_and_sweeps_stuck,
        {"running": running(kind="sweep"), "moved_at": lambda _: at(-1000)},
        {"running": running(kind="sweep"), "moved_at": lambda _: at(-5)},
    ),
    (
        rotations_and_sweeps_stuck,
        {"running": running(waits_for_round=True)},  # its earlier key still opens objects
        {"running": running(kind="sweep", waits_for_round=True)},
    ),
    (
        rotations_and_sweeps_stuck,
        {"running": running()},
        {"running": running(status="requested")},
    ),
    (
        earlier_keys_kept,
        project(earlier_keks=1, rotated_at=at(-2 * DAY)),
        project(earlier_keks=1, rotated_at=at(-2 * DAY), running_sweeps=(LAST,)),
    ),
    (
        earlier_keys_kept,
        project(earlier_keks=1, rotated_at=at(-2 * DAY)),
        project(earlier_keks=1, rotated_at=at(-3600)),
    ),
    (keys_old, project(key_since=at(-366 * DAY)), project(key_since=at(-364 * DAY))),
    (master_keys_unusable, master_key(code="kms_unavailable"), master_key()),
    (master_keys_unusable, master_key(is_held=False, reason="missing"), master_key()),
    (master_keys_unused, master_key(safe_to_drop=True), master_key(safe_to_drop=None)),
]


@pytest.mark.parametrize(("rule", "fires", "quiet"), CASES)
def test_a_rule_fires_when_it_should_and_only_then(
    rule: Rule, fires: dict[str, Any], quiet: dict[str, Any]
) -> None:
    items = list(rule(Facts(now=at(0), **fires)))
    assert len(items) == 1
    assert items[0].title
    assert items[0].remedy
    assert items[0].link.startswith("/")
    assert list(rule(Facts(now=at(0), **quiet))) == []


def test_a_rotation_that_is_slow_is_less_urgent_than_one_that_is_stuck() -> None:
    slow = Facts(now=at(0), running=running(), moved_at=lambda _: at(-5))
    stuck = Facts(now=at(0), running=running(), moved_at=lambda _: at(-1000))
    assert [item.severity for item in rotations_and_sweeps_stuck(slow)] == ["soon"]
    assert [item.severity for item in rotations_and_sweeps_stuck(stuck)] == ["act"]


def test_many_projects_are_one_item_and_a_few_have_their_own() -> None:
    many = [
        ProjectRow(f"p{n}", last_end=SweepRef(f"p{n}", uid(n)), is_last_end_clean=False)
        for n in range(9)
    ]
    (item,) = sweeps_not_clean(Facts(projects=many))
    assert item.link == "/projects?state=attention"
    assert "p4 and 4 more" in item.detail
    few = list(sweeps_not_clean(Facts(projects=many[:2])))
    assert [item.link for item in few] == [f"/sweeps/p0/{uid(0)}", f"/sweeps/p1/{uid(1)}"]


def test_keyrings_are_items_by_code() -> None:
    projects = [ProjectRow("a", code="x"), ProjectRow("b", code="x"), ProjectRow("c", code="y")]
    links = [item.link for item in keyrings_broken(Facts(projects=projects))]
    assert links == ["/projects?state=attention", "/projects/c"]


@pytest.mark.parametrize(
    ("mark", "way_out"),
    [
        ("rolled_back", "keyturn recover acme --accept-restored REASON"),
        ("removed", "keyturn enroll acme --adopt"),
        ("unknown", "keyturn recover acme --accept-restored REASON"),
    ],
)
def test_a_keyring_that_its_mark_contradicts_comes_with_the_way_out(
    mark: str, way_out: str
) -> None:
    (item,) = keyrings_contradicted(Facts(**project(mark=mark)))
    assert (item.severity, item.link) == ("act", "/projects/acme")
    assert item.command == way_out
    assert item.detail.startswith("acme: the keyring is ")
