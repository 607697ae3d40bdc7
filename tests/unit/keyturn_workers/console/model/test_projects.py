"""Projects by reports and events: which of them is newer, and what a page shows."""

from __future__ import annotations

from itertools import permutations
from typing import Any

from keyturn_workers.console.model import projects
from keyturn_workers.console.model.projects import NOT_FOUND, ProjectBook
from keyturn_workers.console.model.rows import ProjectQuery, ProjectRow, SweepRow
from tests.unit.keyturn_workers.console.model.messages import (
    Clock,
    accepted,
    at,
    enrolled,
    project_status,
    projects_report,
    report,
    text,
    uid,
)


class Scene:
    def __init__(self) -> None:
        self.clock = Clock(100)
        self.sweeps: dict[str, list[SweepRow]] = {}
        self.book = ProjectBook(self.clock, lambda name: self.sweeps.get(name, []))

    def add(self, *messages: Any) -> Scene:
        for message in messages:
            if message.type == "status.reported":
                self.book.apply_report(message)
            else:
                self.book.apply_event(message)
        return self

    def row(self, name: str = "acme") -> ProjectRow:
        row = self.book.row(name)
        assert row is not None
        return row


def test_an_event_counts_until_the_keyring_is_read_again() -> None:
    scene = Scene().add(projects_report(1, project_status("acme")), accepted(2))
    assert (scene.row().generation, scene.row().key_since) == (2, at(2))
    scene.add(projects_report(50, project_status("acme", 2, rotated_at=text(2.5))))
    assert (scene.row().generation, scene.row().key_since) == (2, at(2.5))


def test_a_report_that_was_read_just_before_the_event_does_not_undo_it() -> None:
    scene = Scene().add(accepted(2), projects_report(3, project_status("acme")))
    assert scene.row().generation == 2
    scene.add(projects_report(30, project_status("acme")))
    assert scene.row().generation == 1  # rolled back: this is what the bucket says


def test_an_acceptance_that_is_told_again_is_no_new_key() -> None:
    scene = Scene().add(accepted(2), accepted(80), enrolled(0), enrolled(70))
    assert scene.row().key_since == at(2)
    assert scene.row().enrolled_at == at(0)


def test_any_order_gives_the_same_row() -> None:
    messages = [
        enrolled(0),
        accepted(2),
        accepted(40, generation=3, rotation=5),
        projects_report(3, project_status("acme")),
        projects_report(60, project_status("acme", 3, rotated_at=text(40)), digest="1" * 64),
        report(70, "projects", digest="1" * 64, unchanged=True),
    ]
    rows = {Scene().add(*order, order[0]).row() for order in permutations(messages)}
    assert len(rows) == 1
    assert rows.pop().as_of == at(70)


def test_an_inventory_that_no_longer_lists_a_project_says_so() -> None:
    scene = Scene().add(projects_report(1, project_status("acme"), project_status("beta")))
    scene.add(projects_report(60, project_status("beta"), digest="2" * 64))
    assert scene.row("acme").code == NOT_FOUND
    assert scene.row("beta").code is None


def test_the_last_proof_is_the_newest_clean_end() -> None:
    def ended(number: int, seconds: float, **fields: Any) -> SweepRow:
        values: dict[str, Any] = {
            "status": "done",
            "clean": True,
            "ended_at": at(seconds),
        }
        return SweepRow(sweep_id=uid(number), project="acme", **(values | fields))

    scene = Scene().add(projects_report(1, project_status("acme")))
    scene.sweeps["acme"] = [
        ended(1, 10),
        ended(2, 20, evidence="e" * 64),
        ended(3, 30, status="running", ended_at=None),
        ended(4, 40, clean=False),
    ]
    scene.book.touch("acme")
    row = scene.row()
    assert (row.last_proof_sweep, row.last_proof_evidence) == (uid(2), "e" * 64)
    assert row.is_last_end_clean is False
    scene.book.remember_proof(ended(6, 25))
    assert scene.row().last_proof_sweep == uid(6)


def names(scene: Scene, **query: Any) -> list[str]:
    return [row.project for row in scene.book.query(ProjectQuery(**query)).rows]


def test_filter_sort_and_page() -> None:
    rows = [
        project_status("acme", 3, rotated_at=text(-400 * 86400)),
        project_status("beta", 2, code="corrupt_object", detail="does not open"),
        project_status("zeta", 1, plaintext=True, earlier_keks=1),
    ]
    scene = Scene().add(projects_report(1, *rows))
    assert names(scene) == ["acme", "beta", "zeta"]
    assert names(scene, descending=True, size=2) == ["zeta", "beta"]
    assert names(scene, sort="generation") == ["zeta", "beta", "acme"]
    assert names(scene, state="attention") == ["beta"]
    assert names(scene, state="old_key") == ["acme"]
    assert names(scene, state="plaintext") == ["zeta"]
    assert names(scene, state="earlier_keks") == ["zeta"]
    assert names(scene, state="never_proven", text="ETA") == ["beta", "zeta"]
    assert names(scene, master_key="other") == []
    assert scene.book.query(ProjectQuery()).is_complete


def test_the_number_is_bounded(monkeypatch: Any) -> None:
    monkeypatch.setattr(projects, "MAX_PROJECTS", 2)
    scene = Scene().add(enrolled(1, "a"), enrolled(1, "b"), enrolled(1, "c"))
    assert names(scene) == ["a", "b"]
    assert scene.book.is_truncated
