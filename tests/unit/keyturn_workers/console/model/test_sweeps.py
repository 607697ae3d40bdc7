"""All sweeps: parts, filters, bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn_workers.console.model import retention, sweeps
from keyturn_workers.console.model.rows import SweepQuery, SweepRef
from keyturn_workers.console.model.sweeps import SweepBook
from tests.unit.keyturn_workers.console.model.messages import (
    Clock,
    accepted,
    progressed,
    rotation_completed,
    sweep_completed,
    sweep_rejected,
    sweep_status,
    sweeps_report,
    uid,
)

if TYPE_CHECKING:
    from keyturn_workers.console.model.rows import SweepRow


class Scene:
    def __init__(self) -> None:
        self.clock = Clock(0)
        self.changed: list[str] = []
        self.dropped: list[SweepRow] = []
        self.book = SweepBook(self.clock, self.changed.append, self.dropped.append)

    def events(self, *events: Any) -> None:
        for event in events:
            self.book.apply_event(event)

    def row(self, project: str, sweep: int) -> SweepRow:
        row = self.book.row(SweepRef(project, uid(sweep)))
        assert row is not None
        return row


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_a_rotation_begins_with_its_acceptance_and_ends_with_its_proof(scene: Scene) -> None:
    scene.events(accepted(1))
    assert (scene.row("acme", 3).kind, scene.row("acme", 3).status) == ("rotation", "running")
    scene.events(rotation_completed(2))
    assert (scene.row("acme", 3).status, scene.row("acme", 3).clean) == ("done", True)
    assert scene.row("acme", 3).generation == 2


def test_what_is_under_way_comes_before_what_is_newer(scene: Scene) -> None:
    scene.events(progressed(1, "acme", 5), sweep_completed(3, "beta", 6))
    assert [row.project for row in scene.book.query(SweepQuery()).rows] == ["acme", "beta"]


def test_a_page_is_as_new_as_its_newest_row(scene: Scene) -> None:
    scene.book.apply_report(sweeps_report(1, sweep_status("acme", 5)))
    assert scene.book.query(SweepQuery()).as_of == scene.row("acme", 5).as_of
    scene.events(progressed(9, "acme", 5))
    as_of = scene.book.query(SweepQuery()).as_of
    assert as_of == scene.row("acme", 5).as_of
    assert as_of != scene.book.inventory.chain().as_of


def test_parts_belong_to_the_sweep_of_all(scene: Scene) -> None:
    scene.book.apply_report(sweeps_report(1, sweep_status("*", 5, repair=True)))
    scene.events(progressed(2, "acme", 5, objects=1), progressed(3, "beta", 5, clean=True))
    assert scene.row("acme", 5).part_of_all
    assert (scene.row("acme", 5).status, scene.row("beta", 5).status) == ("running", "done")
    assert scene.row("beta", 5).repair is True
    scene.events(sweep_completed(20, "*", 5, clean=False, late_writes_refused=None))
    assert (scene.row("acme", 5).status, scene.row("acme", 5).clean) == ("done", False)


def test_the_table_leaves_parts_out(scene: Scene) -> None:
    scene.book.apply_report(sweeps_report(1, sweep_status("*", 5)))
    scene.events(progressed(2, "acme", 5), progressed(3, "beta", 6))
    assert {row.project for row in scene.book.query(SweepQuery()).rows} == {"*", "beta"}
    assert scene.book.query(SweepQuery(parts=True)).total == 3


def test_filters(scene: Scene) -> None:
    scene.events(accepted(1), progressed(2, "beta", 6), sweep_completed(9, "beta", 7, clean=False))
    query = scene.book.query
    assert [row.project for row in query(SweepQuery(kind="rotation")).rows] == ["acme"]
    assert [row.sweep_id for row in query(SweepQuery(state="not_clean")).rows] == [uid(7)]
    assert query(SweepQuery(state="running", project="beta")).matching == 1
    assert query(SweepQuery(text=uid(7))).matching == 1
    assert query(SweepQuery(text="nothing")).matching == 0


def test_what_is_under_way_is_the_newest_first_and_counted_among_all(scene: Scene) -> None:
    scene.events(progressed(4, "acme", 5), sweep_completed(5, "beta", 7), progressed(2, "beta", 6))
    scene.book.apply_report(sweeps_report(3, sweep_status("*", 8)))
    scene.events(progressed(6, "gamma", 8))
    page = scene.book.query(SweepQuery(state="running"))
    assert [row.project for row in page.rows] == ["acme", "beta", "*"]
    assert (page.matching, page.total) == (3, 4)
    assert scene.book.query(SweepQuery(state="running", parts=True)).matching == 4
    assert scene.book.query(SweepQuery(state="requested")).matching == 0


def test_a_refusal_without_a_project_is_not_a_sweep(scene: Scene) -> None:
    scene.events(sweep_rejected(1, None), sweep_rejected(1, "../x"))
    assert len(scene.book) == 0


def test_old_sweeps_are_dropped_and_handed_over(scene: Scene) -> None:
    scene.events(rotation_completed(0), progressed(0, "beta", 6))
    scene.clock.set(15 * 86400)
    assert scene.book.expire()
    assert [row.project for row in scene.dropped] == ["acme"]
    assert scene.row("beta", 6).status == "running"


def test_the_number_is_bounded_and_refusals_push_out_no_sweep(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(retention.MOST, "sweep", 10)
    monkeypatch.setitem(retention.MOST, "rejected", 5)
    scene.events(progressed(0, "run", 99))
    for number in range(100, 115):
        scene.events(sweep_completed(number, "done", number))
    for number in range(200, 215):
        scene.events(sweep_rejected(number, "no", number))
    assert scene.book.is_truncated
    assert scene.row("run", 99).is_running
    assert scene.book.query(SweepQuery(project="done")).matching == 9
    assert scene.book.query(SweepQuery(project="no")).matching == 5
    assert len(scene.book) == 15
    assert {row.sweep_id for row in scene.dropped} == {
        uid(number) for number in (*range(100, 106), *range(200, 210))
    }


def test_the_number_of_samples_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "MAX_SAMPLES_OF_ALL", 300)
    for number in range(10):
        for second in range(50):
            scene.events(progressed(second, "acme", number, objects=second))
        scene.events(sweep_completed(59, "acme", number, objects=50))
    assert sum(map(len, scene.book.all_samples())) <= 400


def test_a_view_has_samples_and_parts(scene: Scene) -> None:
    scene.book.apply_report(sweeps_report(1, sweep_status("*", 5)))
    scene.events(progressed(2, "acme", 5, objects=4), progressed(3, "acme", 5, objects=6))
    view = scene.book.view(SweepRef("*", uid(5)))
    assert view is not None
    assert [part.project for part in view.parts] == ["acme"]
    part = scene.book.view(SweepRef("acme", uid(5)))
    assert part is not None
    assert [sample.objects_done for sample in part.samples] == [2.0, 3.0]


def test_the_sweeps_of_one_project_are_no_inventory(scene: Scene) -> None:
    scene.book.apply_report(sweeps_report(1, sweep_status(), next="more"))
    scene.book.apply_report(sweeps_report(2, sweep_status(status="done"), project="acme"))
    assert scene.row("acme", 4).status == "done"
    assert not scene.book.query(SweepQuery()).is_complete


def test_what_left_no_record_is_not_under_way_for_ever(scene: Scene) -> None:
    """An event of a sweep of last month was published again."""
    scene.events(progressed(0, "acme", 4), progressed(0, "old", 5), progressed(7000, "new", 6))
    scene.clock.set(7200)
    assert not scene.book.expire()
    scene.book.apply_report(sweeps_report(7200, sweep_status("acme", 4)))
    assert scene.book.expire()
    assert {row.project for row in scene.book.running()} == {"acme", "new"}
