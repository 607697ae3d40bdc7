"""The page of a sweep asks for what it lacks, and for nothing that it has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyturn.messages import Counts
from tests.unit.keyturn_workers.console.sweeps.scene import OTHER_ID, SWEEP_ID

if TYPE_CHECKING:
    from tests.unit.keyturn_workers.console.sweeps.scene import Scene

_PAGE = f"/sweeps/acme/{SWEEP_ID}"


def test_the_failures_of_a_sweep_are_asked_for_once(console: Scene) -> None:
    console.add_sweep()
    for _ in range(3):
        console.get(_PAGE)
    assert console.feeds.asked == [("failures", "acme", SWEEP_ID)]


def test_what_is_there_is_not_asked_for(console: Scene) -> None:
    console.add_sweep()
    console.add_failures(("a", "corrupt_object"))
    console.get(_PAGE)
    assert console.feeds.asked == []


def test_failures_that_were_read_before_the_sweep_ended_are_read_again(console: Scene) -> None:
    console.add_failures(("a", "corrupt_object"))
    console.add_sweep(age_h=-1)
    console.get(_PAGE)
    assert console.feeds.asked == [("failures", "acme", SWEEP_ID)]


def test_an_empty_list_of_failures_is_not_believed_where_some_were_counted(
    console: Scene,
) -> None:
    console.add_failures()
    console.add_sweep()
    console.get(_PAGE)
    assert console.feeds.asked == [("failures", "acme", SWEEP_ID)]


def test_the_evidence_of_a_clean_end_is_asked_for(console: Scene) -> None:
    counts = Counts(objects=1, current=1)
    console.add_sweep(clean=True, evidence="a" * 64, counts=counts)
    console.get(_PAGE)
    assert console.feeds.asked == [("evidence", "acme")]


def test_the_record_of_a_sweep_that_is_not_known_is_asked_for(console: Scene) -> None:
    console.get(f"/sweeps/acme/{OTHER_ID}", 404)
    assert console.feeds.asked == [("sweep", "acme", OTHER_ID)]
