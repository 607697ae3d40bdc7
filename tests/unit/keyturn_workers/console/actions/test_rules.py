"""What cannot be undone is typed, and a sweep is started again with its options."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn_workers.console.actions import SweepOptions
from keyturn_workers.console.actions.rules import (
    again_query,
    confirmation_phrase,
    is_confirmed,
    needs_confirmation,
    options_of,
)
from keyturn_workers.console.model.rows import SweepRow

_ROW = SweepRow(
    sweep_id="2f6c9a0e-0000-4000-8000-000000000001",
    project="acme",
    status="done",
    clean=True,
    encrypt_plaintext=False,
    repair=False,
)


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
