"""Rows hold what a keyring and a sweep are, and no key of theirs (SPEC 8.6, 16.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from keyturn.crypto import to_base64
from keyturn.errors import CorruptObjectError, StorageUnavailableError
from keyturn.messages import RequestOrigin
from keyturn_workers.status.rows import (
    project_status,
    short_detail,
    sweep_status,
    unreadable_project,
    unreadable_sweep,
)
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.plan import OpenPage
from tests.unit.keyturn_workers.cli.status_bucket import BEGIN, all_plan, done, plan, sweep_id
from tests.unit.keyturn_workers.factories import V0_USER_KEK, keyring, rotated


def test_a_keyring_is_a_row_without_its_keks() -> None:
    ring = replace(rotated(rotated(keyring())), v0_kek=V0_USER_KEK, v0_allowed=True)
    row = project_status(ring)
    assert (row.generation, row.earlier_keks, row.master_key) == (3, 2, "m1")
    assert (row.plaintext, row.v0, row.kek_id) == (False, True, ring.current.kek_id)
    shown = row.model_dump_json()
    keks = [entry.kek for entry in (*ring.history, ring.current)]
    for kek in [*keks, V0_USER_KEK]:
        assert kek is not None
        assert to_base64(kek.reveal()) not in shown
        assert kek.reveal().hex() not in shown


def test_a_keyring_that_was_never_rotated_has_no_such_time() -> None:
    assert project_status(keyring()).rotated_at is None
    assert project_status(rotated(keyring())).rotated_at is not None


def test_what_does_not_open_is_a_row_with_its_code() -> None:
    error = CorruptObjectError("x" * 9000)
    row = unreadable_project("acme", error)
    assert (row.project, row.code, len(row.detail or "")) == ("acme", "corrupt_object", 500)
    sweep = unreadable_sweep(sweep_id(1), "*", error)
    assert (sweep.project, sweep.code, sweep.status) == ("*", "corrupt_object", None)
    assert short_detail(StorageUnavailableError()) is None


def test_a_running_sweep_has_a_rate_and_the_time_until_its_proof() -> None:
    began = BEGIN + timedelta(minutes=1)
    running = plan(
        1,
        stepped_at=began + timedelta(seconds=10),
        next_page=3,
        live=(OpenPage(2, "a", "c", not_before=began + timedelta(seconds=45)),),
        proven=Counts(objects=40, current=40),
        origins=(None, RequestOrigin("ops", "0" * 64, "ada"), RequestOrigin("api", "1" * 64)),
    )
    row = sweep_status(running, expected=60)
    assert (row.status, row.clean, row.ended_at) == ("running", None, None)
    assert (row.publisher, row.actor) == ("ops", "ada")
    assert (row.pages, row.pages_open, row.expected_objects) == (3, 1, 60)
    assert (row.rate_per_s, row.left_s) == (4.0, 35.0)
    assert sweep_status(running).left_s is None
    assert sweep_status(plan(1)).rate_per_s is None


def test_an_ended_sweep_has_its_end_and_what_it_proves() -> None:
    row = sweep_status(done(1, clean=False, successor=sweep_id(2)))
    assert (row.status, row.clean, row.taken_over_by) == ("done", False, sweep_id(2))
    assert (row.generation, row.proves_master_key) == (3, "m1")
    assert row.counts is not None
    assert (row.counts.objects, row.counts.failed) == (5, 2)
    failed = sweep_status(plan(1, status="failed", code="unknown_project", detail="acme"))
    assert (failed.code, failed.detail) == ("unknown_project", "acme")


def test_a_sweep_of_all_counts_the_parts_that_ended() -> None:
    row = sweep_status(all_plan(1, projects=7, sums=Counts(objects=3)))
    assert (row.project, row.parts_ended, row.pages) == ("*", 7, None)
    assert row.counts is not None
    assert row.counts.objects == 3
