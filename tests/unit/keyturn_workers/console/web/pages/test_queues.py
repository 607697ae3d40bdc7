"""*Queues and workers* (SPEC 16.2)."""

from __future__ import annotations

from dataclasses import replace

from keyturn_workers.console.web.pages.queues import differences
from tests.unit.keyturn_workers.console.web.shown import lived, shown
from tools.harness.console_data import HOSTILE_KEY, empty_model


def test_queues_workers_and_sources_are_shown() -> None:
    page = shown(lived(), "/queues")
    for words in ("keyturn.upload 40", "Reports", "Missing", "Unknown", "3 messages ignored"):
        assert words in page.text
    assert '<svg class="spark' in page.html
    assert HOSTILE_KEY not in page.html


def test_what_differs_between_workers_is_said_in_words() -> None:
    workers = [row for row in lived().workers() if row.is_present][:2]
    one, other = (replace(row, host=f"host-{number}") for number, row in enumerate(workers))
    assert differences([one, replace(other, version=one.version, lease_s=one.lease_s)]) == []
    found = differences(
        [replace(one, version="1"), replace(other, version="2", lease_s=one.lease_s)]
    )
    roles = ["+".join(row.roles) for row in (one, other)]
    assert found == [f"The version differs: 1 ({roles[0]} on host-0); 2 ({roles[1]} on host-1)."]


def test_many_workers_are_not_all_named() -> None:
    row = lived().workers()[0]
    rows = [replace(row, host=f"host-{number}", version="1") for number in range(9)]
    (found,) = differences([*rows, replace(row, version="2")])
    assert "and 6 more" in found


def test_without_workers_it_says_how_to_start_one() -> None:
    page = shown(empty_model(), "/queues")
    assert "keyturn worker" in page.text
    assert "Disconnected" in page.text
