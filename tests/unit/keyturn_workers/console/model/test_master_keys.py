"""Which master keys can be dropped, by inventory and census."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyturn_workers.console.model.census import CensusBook
from keyturn_workers.console.model.master_keys import MasterKeyBook
from keyturn_workers.console.model.rows import ProjectRow
from tests.unit.keyturn_workers.console.model.messages import at, keys_report, objects_report

if TYPE_CHECKING:
    from keyturn_workers.console.model.rows import Census, MasterKeyRow

PROJECTS = [ProjectRow("acme", master_key="main"), ProjectRow("beta", master_key="lost")]


def census(*groups: tuple[str, str | None, int]) -> Census | None:
    book = CensusBook()
    book.apply(objects_report(5, *groups))
    return book.complete


def rows(counted: Census | None, *, complete: bool = True) -> dict[str, MasterKeyRow]:
    book = MasterKeyBook()
    book.apply(keys_report(1, "main", "old"))
    found = book.rows(
        PROJECTS,
        counted,
        running_sweeps=0,
        is_inventory_complete=complete,
        inventory_as_of=at(2),
    )
    return {row.master_key: row for row in found}


def test_without_a_census_it_is_not_known() -> None:
    row = rows(None)["old"]
    assert (row.safe_to_drop, row.counts) == (None, None)
    assert "not inspected" in row.reason


def test_a_key_that_nothing_needs_can_be_dropped() -> None:
    found = rows(census(("encrypted", "main", 4), ("keyring", "main", 1)))
    assert found["old"].safe_to_drop is True
    assert found["main"].safe_to_drop is False
    assert found["main"].counts == {"encrypted": 4, "keyring": 1}


def test_a_key_that_is_named_and_not_held_is_shown() -> None:
    row = rows(None)["lost"]
    assert (row.is_held, row.projects, row.safe_to_drop) == (False, 1, False)


def test_what_does_not_open_or_an_incomplete_inventory_forbids_it() -> None:
    assert rows(census(("unreadable", None, 1)))["old"].safe_to_drop is False
    assert rows(census(("encrypted", "main", 1)), complete=False)["old"].safe_to_drop is None


def test_the_active_key_is_first() -> None:
    assert [*rows(None)] == ["main", "old", "lost"]
