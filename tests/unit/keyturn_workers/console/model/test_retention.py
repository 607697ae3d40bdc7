"""So many of each kind are kept, the newest; what is under way is never dropped."""

from __future__ import annotations

import pytest

from keyturn_workers.console.model import retention
from keyturn_workers.console.model.retention import Retention
from keyturn_workers.console.model.rows import SweepRef


class Scene:
    def __init__(self) -> None:
        self.running: set[int] = set()
        self.dropped: list[int] = []
        self.retention = Retention(
            lambda ref: int(ref.sweep_id) not in self.running,
            lambda ref: self.dropped.append(int(ref.sweep_id)),
        )

    def put(self, number: int, kind: retention.Kind = "sweep") -> None:
        self.retention.put(SweepRef("acme", str(number)), kind, number)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(retention, "MOST", {"sweep": 3, "part": 5, "rejected": 2})
    return Scene()


def test_the_oldest_is_dropped_unless_it_is_under_way(scene: Scene) -> None:
    scene.running = {0}
    for number in range(5):
        scene.put(number)
        scene.put(number)
    assert scene.dropped == [1, 2]
    assert scene.retention.is_truncated


def test_each_kind_has_a_bound_of_its_own(scene: Scene) -> None:
    for number in range(3):
        scene.put(number)
    for number in range(10, 20):
        scene.put(number, "rejected")
    assert scene.dropped == [*range(10, 18)]
    assert not scene.retention.is_truncated


def test_a_sweep_whose_kind_changes_counts_as_that(scene: Scene) -> None:
    for number in range(3):
        scene.put(number)
        scene.put(number, "part")
    for number in range(3, 6):
        scene.put(number)
    assert scene.dropped == []


def test_what_was_removed_counts_no_more(scene: Scene) -> None:
    for number in range(3):
        scene.put(number)
    scene.retention.remove(SweepRef("acme", "1"))
    scene.put(3)
    assert scene.dropped == []
    scene.put(4)
    assert scene.dropped == [0]


def test_entries_of_what_is_gone_do_not_pile_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_STALE", 10)
    for number in range(200):
        scene.put(number)
        scene.retention.remove(SweepRef("acme", str(number)))
    assert len(scene.retention._heaps["sweep"]) <= 20


def test_a_flood_of_what_is_under_way_is_bounded_too(scene: Scene) -> None:
    scene.running = {*range(100)}
    for number in range(100):
        scene.put(number)
    assert len(scene.dropped) == 100 - 2 * 3
    assert max(scene.dropped) < 97
    assert scene.retention.is_truncated


def test_what_is_under_way_is_not_looked_at_again_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "MOST", {"sweep": 500, "part": 5, "rejected": 2})
    looks, dropped = [], list[str]()

    def is_droppable(ref: SweepRef) -> bool:
        looks.append(ref)
        return int(ref.sweep_id) >= 400

    kept = Retention(is_droppable, lambda ref: dropped.append(ref.sweep_id))
    for number in range(1500):
        kept.put(SweepRef("acme", str(number)), "sweep", number)
    assert dropped[:3] == ["400", "401", "402"]
    assert len(looks) < 10_000
