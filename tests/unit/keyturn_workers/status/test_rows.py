"""Rows hold what a keyring and a sweep are, and no key of theirs (SPEC 8.6, 16.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from keyturn.counts import Counts
from keyturn.crypto import to_base64
from keyturn.errors import CorruptObjectError, StorageUnavailableError
from keyturn_workers.status.rows import (
    Sweep,
    find_sweep,
    origin_status,
    project_status,
    short_detail,
    unreadable_project,
    unreadable_sweep,
)
from keyturn_workers.sweep import Options
from keyturn_workers.sweep.record import OpenPage
from tests.unit.keyturn_workers.factories import V0_USER_KEK, keyring, rotated
from tests.unit.keyturn_workers.status.bucket import (
    BEGIN,
    ROUND_ID,
    STATE,
    all_record,
    done,
    failed,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)


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
    page = OpenPage(2, "a", "c", not_before=began + timedelta(seconds=45))
    running = origin(1, publisher="ops", actor="ada")
    of = record(
        running,
        stepped_at=began + timedelta(seconds=10),
        round_fields={
            "next_page": 3,
            "open_pages": (page,),
            "proven": Counts(objects=40, current=40),
        },
    )
    row = Sweep(of, running).row(expected=60)
    assert (row.status, row.clean, row.ended_at) == ("running", None, None)
    assert (row.publisher, row.actor) == ("ops", "ada")
    assert (row.generation, row.proves_master_key) == (3, "m1")
    assert (row.pages, row.pages_open, row.expected_objects) == (3, 1, 60)
    assert (row.rate_per_s, row.left_s) == (4.0, 35.0)
    assert Sweep(of, running).row().left_s is None
    assert Sweep(replace(of, stepped_at=None), running).row().rate_per_s is None


def test_the_rate_is_that_of_the_round_and_not_of_the_ones_before() -> None:
    earlier, running = done(1), origin(0)
    of = record(
        earlier,
        running,
        stepped_at=BEGIN + timedelta(minutes=1, seconds=40),
        round_fields={"proven": Counts(objects=50, current=50)},
    )
    assert Sweep(of, running).row().rate_per_s == 5.0  # in the ten seconds since the earlier end


def test_of_several_requests_each_is_a_row_and_one_that_waits_has_only_its_writes() -> None:
    """A round answers the requests with its options; the others wait for the next one."""
    first, same, waiting = (
        origin(1),
        origin(2, kind="rotation", publisher="ops"),
        origin(3, options=Options(repair=True), written_before=Counts(rewrapped=4)),
    )
    of = record(
        first,
        same,
        waiting,
        stepped_at=BEGIN + timedelta(minutes=5),
        written=Counts(rewrapped=10),
        round_fields={"proven": Counts(objects=8, current=8), "next_page": 1},
    )
    assert of.round is not None
    of = replace(of, round=replace(of.round, origins=(first.name,)))
    rows = [Sweep(of, each).row() for each in of.origins]
    assert [(row.kind, row.pages) for row in rows] == [
        ("sweep", 1),
        ("rotation", 1),  # added later, and answered all the same
        ("sweep", None),
    ]
    assert [Sweep(of, each).round_id for each in of.origins] == [ROUND_ID, ROUND_ID, None]
    counts = [row.counts for row in rows if row.counts is not None]
    assert [(each.objects, each.rewrapped) for each in counts] == [(8, 10), (8, 10), (0, 6)]
    assert (rows[2].repair, rows[2].rate_per_s, rows[2].generation) == (True, None, None)
    assert [row.waits_for_round for row in rows] == [False, False, True]
    about_to_begin = replace(of, round=None)
    assert not Sweep(about_to_begin, waiting).row().waits_for_round


def test_an_ended_sweep_has_its_end_and_what_it_proved_then() -> None:
    ended = done(1, clean=False)
    of = record(ended, origin(2))
    of = replace(of, state=replace(STATE, generation=4, master_key="m2"))
    row = Sweep(of, ended).row()
    assert (row.status, row.clean, row.code, row.pages) == ("done", False, None, None)
    assert (row.generation, row.proves_master_key) == (3, "m1")
    assert not row.waits_for_round
    assert row.counts is not None
    assert (row.counts.objects, row.counts.failed) == (5, 2)
    assert Sweep(of, ended).round_id == round_id(1)
    given_up = failed(1, "unknown_project", "acme")
    row = Sweep(record(given_up), given_up).row()
    assert (row.status, row.code, row.detail) == ("failed", "unknown_project", "acme")


def test_a_sweep_of_all_counts_the_parts_that_ended() -> None:
    running = origin(1)
    row = Sweep(all_record(running, projects=7, sums=Counts(objects=3)), running).row()
    assert (row.project, row.parts_ended, row.pages) == ("*", 7, None)
    assert row.counts is not None
    assert row.counts.objects == 3
    ended = done(1)
    assert ended.end is not None
    ended = replace(ended, end=replace(ended.end, state=None, parts=9))
    assert Sweep(all_record(ended), ended).row().parts_ended == 9


def test_a_part_is_a_row_by_its_own_record_and_without_one() -> None:
    running = part(1)
    assert Sweep(record(running), running).row().part_of_all
    begun = origin_status("acme", running)
    assert (begun.status, begun.counts, begun.part_of_all) == ("running", None, True)
    row = origin_status("acme", failed(1, "corrupt_object", "forged", kind="part"))
    assert (row.status, row.clean, row.code, row.detail) == (
        "failed",
        False,
        "corrupt_object",
        "forged",
    )


def test_of_several_sweeps_with_one_id_it_is_the_one_that_runs_or_the_youngest() -> None:
    one, other = done(1), replace(done(2, publisher="ops"), id=sweep_id(1))
    running = replace(origin(0, publisher="web"), id=sweep_id(1))
    for origins, found in (((one, other), other), ((running, one, other), running)):
        sweep = find_sweep(record(*origins), sweep_id(1))
        assert sweep is not None
        assert sweep.origin == found
    assert find_sweep(record(one), sweep_id(2)) is None
    assert find_sweep(None, sweep_id(1)) is None
