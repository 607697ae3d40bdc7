"""A sweep for real needs an ended dry run of the last day; what cannot be undone is typed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keyturn_workers.console.actions import SweepOptions
from keyturn_workers.console.actions.rules import (
    again_query,
    confirmation_phrase,
    dry_run_problem,
    is_confirmed,
    needs_confirmation,
    options_of,
)
from keyturn_workers.console.model.rows import SweepRow

_NOW = datetime(2026, 11, 26, 10, tzinfo=UTC)
_ROW = SweepRow(
    sweep_id="2f6c9a0e-0000-4000-8000-000000000001",
    project="acme",
    status="done",
    clean=True,
    ended_at=_NOW - timedelta(hours=1),
    dry_run=True,
    encrypt_plaintext=False,
    repair=False,
)


def test_an_ended_dry_run_allows_the_sweep() -> None:
    assert dry_run_problem(_ROW, _NOW) is None
    assert dry_run_problem(replace(_ROW, clean=False), _NOW) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dry_run": False}, "not a dry run"),
        ({"dry_run": None}, "not known yet"),
        ({"encrypt_plaintext": None}, "not known yet"),
        ({"repair": None}, "not known yet"),
        ({"kind": "rotation"}, "not a dry run"),
        ({"part_of_all": True}, "not a dry run"),
        ({"status": "requested"}, "not ended"),
        ({"status": "running"}, "not ended"),
        ({"status": "failed"}, "did not end"),
        ({"status": "rejected"}, "did not end"),
        ({"ended_at": None}, "did not end"),
        ({"ended_at": _NOW - timedelta(hours=24, seconds=1)}, "more than 24 hours"),
    ],
)
def test_nothing_else_allows_it(change: dict[str, Any], words: str) -> None:
    problem = dry_run_problem(replace(_ROW, **change), _NOW)
    assert problem is not None
    assert words in problem


@pytest.mark.parametrize(
    ("project", "options", "expected"),
    [
        ("acme", SweepOptions(), False),
        ("*", SweepOptions(), True),
        ("acme", SweepOptions(master_key="m2"), True),
        ("acme", SweepOptions(encrypt_plaintext=True), True),
        ("acme", SweepOptions(repair=True), True),
    ],
)
def test_what_cannot_be_undone_is_typed(
    project: str, options: SweepOptions, *, expected: bool
) -> None:
    assert needs_confirmation(project, options) is expected


def test_a_confirmation_is_exact_but_for_blanks_around_it() -> None:
    assert confirmation_phrase("acme") == "acme"
    assert confirmation_phrase("*") == "all projects"
    assert is_confirmed(" acme ", "acme")
    assert not is_confirmed("Acme", "acme")
    assert not is_confirmed("acme2", "acme")
    assert not is_confirmed("", "")


def test_the_options_come_from_the_record_alone() -> None:
    row = replace(_ROW, master_key="m2", encrypt_plaintext=True)
    assert options_of(row) == SweepOptions("m2", encrypt_plaintext=True)
    assert options_of(replace(row, repair=None)) is None


def test_a_sweep_is_started_again_with_its_options() -> None:
    row = replace(_ROW, master_key="m2", repair=True)
    assert again_query(row) == "project=acme&repair=yes&master_key=m2"
    assert again_query(replace(_ROW, project="*", encrypt_plaintext=None)) == "scope=all"
