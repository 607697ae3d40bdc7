"""Rows hold what a keyring and a sweep are, filtered, in order and in pages (SPEC 8.6, 16.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from keyturn.counts import Counts
from keyturn.crypto import customer_secret_id, new_customer_secret, to_base64
from keyturn.errors import CorruptObjectError, StorageUnavailableError
from keyturn.identifiers import format_time
from keyturn.messages import (
    AuditStatus,
    CustomerKeyStatus,
    FailureStatus,
    Progress,
    ProjectStatus,
    StatusFilter,
    SweepStatus,
)
from keyturn_workers.core.erasure import Erasure, KeyState
from keyturn_workers.core.keyring_erasure import begin_erasure, erase
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import KeyWait, OpenPage
from keyturn_workers.reports.status.query import (
    filter_audit,
    filter_failures,
    filter_projects,
    filter_sweeps,
    order_parts,
    order_projects,
    order_sweeps,
    select,
)
from keyturn_workers.reports.status.rows import (
    Sweep,
    find_sweep,
    origin_status,
    project_status,
    short_detail,
    unreadable_project,
    unreadable_sweep,
)
from tests.unit.keyturn_workers.factories import keyring, rotated, turned_to
from tests.unit.keyturn_workers.reports.status.bucket import (
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

_OLD, _NEW = "2025-01-01T00:00:00.000000Z", "2026-11-01T00:00:00.000000Z"


def test_a_keyring_is_a_row_without_its_keks() -> None:
    ring = rotated(rotated(keyring()))
    row = project_status(ring)
    assert (row.generation, row.earlier_keks, row.master_key) == (3, 2, "m1")
    assert (row.plaintext, row.kek_id) == (False, ring.current.kek_id)
    shown = row.model_dump_json()
    keks = [entry.kek for entry in (*ring.history, ring.current)]
    for kek in keks:
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
        origin(3, options=SweepOptions(repair=True), written_before=Counts(rewrapped=4)),
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


def _project(name: str, **fields: Any) -> ProjectStatus:
    return ProjectStatus(project=name, **fields)


_PROJECTS = [
    _project("acme", generation=3, master_key="m1", key_since=_OLD, last_proof_at=_NEW),
    _project("acme-2", generation=1, master_key="m2", key_since=_NEW, last_end_clean=False),
    _project("bob", code="corrupt_object"),
    _project("carol", generation=9, mark="rolled_back", earlier_keks=2, last_proof_at=_OLD),
    _project("dave", generation=1, plaintext=True, running_sweeps=(sweep_id(1),)),
    _project("eve", generation=2, plaintext=True, mark="removed"),
]
_KEY = CustomerKeyStatus(store="kms", key="k")
_OF_CUSTOMERS = [
    _project("fay", customer_key=_KEY, last_proof_at=_NEW),
    _project("gil", customer_key=_KEY.model_copy(update={"code": "customer_key_refused"})),
    # What of it would be a problem elsewhere: nobody can do anything about it.
    _project("hal", customer_key=_KEY, key_since=_OLD, last_end_clean=False, erased_at=_NEW),
]


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, "acme acme-2 bob carol dave eve"),
        ({"text": "ACME 2"}, "acme-2"),
        ({"master_key": "m1"}, "acme"),
        ({"state": "ok"}, "acme acme-2 dave"),
        ({"state": "attention"}, "acme-2 bob carol eve"),
        ({"state": "sweeping"}, "dave"),
        ({"state": "never_proven"}, "acme-2 bob dave eve"),
        ({"state": "earlier_keks"}, "carol"),
        ({"state": "old_key"}, "acme"),
        ({"state": "plaintext"}, "dave eve"),
        ({"state": "plaintext", "text": "dav"}, "dave"),
    ],
)
def test_projects_are_filtered(wanted: dict[str, Any], names: str) -> None:
    found = filter_projects(_PROJECTS, StatusFilter(**wanted), BEGIN)
    assert [row.project for row in found] == names.split()


@pytest.mark.parametrize(
    ("state", "names"),
    [
        ("customer_key", "fay gil hal"),
        ("waits_for_key", "gil"),
        ("erased", "hal"),
        ("attention", "gil"),
        ("never_proven", "gil"),
        ("old_key", ""),
    ],
)
def test_projects_with_customer_keys_are_filtered_and_erased_ones_need_nothing(
    state: str, names: str
) -> None:
    found = filter_projects(_OF_CUSTOMERS, StatusFilter(state=state), BEGIN)
    assert [row.project for row in found] == names.split()


def test_an_erased_keyring_is_a_row_with_the_time_of_the_last_answer() -> None:
    secret = new_customer_secret()
    ring = turned_to(keyring(), secret)
    erasure = Erasure(sweep_id(1), "api", "0" * 64, _OLD, _OLD, "", None)
    assert project_status(begin_erasure(ring, erasure)).erased_at is None
    gone = {customer_secret_id(secret): KeyState.DISABLED}
    row = project_status(erase(ring, erasure.with_answers(gone, BEGIN)))
    assert row.erased_at == format_time(BEGIN)
    assert (row.customer_key, row.earlier_keks) == (CustomerKeyStatus(store="kms", key="acme"), 0)


def test_an_erasure_is_no_sweep_and_waits_for_no_secret() -> None:
    erasure = origin(1, kind="erase")
    wait = KeyWait("customer_key_refused", "disabled", BEGIN)
    row = Sweep(record(erasure, key_wait=wait), erasure).row()
    assert row.kind == "erasure"
    assert row.progress == Progress(phase="waiting")


@pytest.mark.parametrize(
    ("order", "names"),
    [
        (None, "acme acme-2 bob carol dave eve"),
        ("-project", "eve dave carol bob acme-2 acme"),
        ("generation", "bob acme-2 dave eve acme carol"),
        ("-generation", "carol acme eve acme-2 dave bob"),
        ("-master_key", "acme-2 acme bob carol dave eve"),
        ("last_proof_at", "acme-2 bob dave eve carol acme"),
    ],
)
def test_projects_are_ordered_and_ties_by_name(order: str | None, names: str) -> None:
    assert [row.project for row in order_projects(_PROJECTS, order)] == names.split()


def _sweep(number: int, project: str = "acme", **fields: Any) -> SweepStatus:
    at = f"2026-11-24T10:{number:02}:00.000000Z"
    defaults: dict[str, Any] = {"kind": "sweep", "status": "done", "clean": True, "started_at": at}
    return SweepStatus(sweep_id=sweep_id(number), project=project, **defaults | fields)


_SWEEPS = [
    _sweep(1, status="running", clean=None),
    _sweep(2, kind="rotation", actor="Kim Doe"),
    _sweep(3, status="failed", clean=False, code="unknown_project"),
    _sweep(4, clean=False, publisher="console"),
    _sweep(5, part_of_all=True),
    _sweep(6, "*", master_key="m2"),
]


def _numbers(rows: list[SweepStatus]) -> list[int]:
    return [int(row.sweep_id[-2:]) for row in rows]


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({}, [1, 6, 4, 3, 2]),
        ({"parts": True}, [1, 6, 5, 4, 3, 2]),
        ({"state": "running"}, [1]),
        ({"state": "done"}, [6, 4, 2]),
        ({"state": "failed"}, [3]),
        ({"state": "not_clean"}, [4, 3]),
        ({"kind": "rotation"}, [2]),
        ({"text": "kim doe"}, [2]),
        ({"text": "unknown_project"}, [3]),
        ({"text": sweep_id(6)}, [6]),
        ({"text": "m2 console"}, []),
    ],
)
def test_sweeps_under_way_come_first_then_the_newest(
    wanted: dict[str, Any], numbers: list[int]
) -> None:
    found = filter_sweeps(order_sweeps(_SWEEPS), StatusFilter(**wanted), with_parts=False)
    assert _numbers(found) == numbers


def test_parts_that_need_attention_come_first() -> None:
    parts = [
        _sweep(1, "clean"),
        _sweep(2, "live", status="running", clean=None),
        _sweep(3, "dirty", clean=False),
        _sweep(4, "lost", status="failed", clean=False),
        _sweep(5, "forged", status=None, clean=None, code="corrupt_object"),
    ]
    assert [row.project for row in order_parts(parts)] == [
        "forged",
        "lost",
        "dirty",
        "live",
        "clean",
    ]


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [({}, "a b/2"), ({"code": "gone"}, "b/2"), ({"text": "ACME b/"}, "b/2"), ({"text": "z"}, "")],
)
def test_failures_are_filtered(wanted: dict[str, Any], keys: str) -> None:
    rows = [
        FailureStatus(project="acme", key="a", code="corrupt_object"),
        FailureStatus(project="acme", key="b/2", code="gone"),
    ]
    found = filter_failures(rows, StatusFilter(**wanted))
    assert [row.key for row in found] == keys.split()


def _record(counter: int, **fields: Any) -> AuditStatus:
    defaults: dict[str, Any] = {
        "audit_id": sweep_id(counter),
        "at": f"2026-11-24T10:{counter:02}:00.000000Z",
        "process": sweep_id(99),
        "counter": counter,
        "role": "worker control",
        "host": "worker-1",
        "action": "request.served",
        "actor": "Kim Doe",
        "publisher": "console",
        "outcome": "done",
        "offset": counter,
    }
    return AuditStatus(**defaults | fields)


_RECORDS = [
    _record(1, request_type="status.requested", actor="console"),
    _record(2, request_type="status.requested"),
    _record(3, action="request.refused", outcome="not_permitted", project="acme"),
    _record(4, action="download", role="download", outcome="started", object_key="q3.pdf"),
    _record(5, request_id=sweep_id(7), project="acme"),
    _record(
        6,
        action="dead_letter.discarded",
        outcome="started",
        request_type="status.requested",
        actor="console",
    ),
]


@pytest.mark.parametrize(
    ("wanted", "counters"),
    [
        ({}, [2, 3, 4, 5, 6]),
        ({"reports": True}, [1, 2, 3, 4, 5, 6]),
        ({"outcome": "not_ok"}, [3]),
        ({"outcome": "ok"}, [2, 4, 5, 6]),
        ({"action": "download"}, [4]),
        ({"project": "acme"}, [3, 5]),
        ({"actor": "kim"}, [2, 3, 4, 5]),
        ({"request_id": sweep_id(7)}, [5]),
        ({"text": "Q3.pdf"}, [4]),
        ({"since": "2026-11-24T10:03:00.000000Z", "until": "2026-11-24T10:05:00.000000Z"}, [3, 4]),
    ],
)
def test_audit_records_are_filtered(wanted: dict[str, Any], counters: list[int]) -> None:
    found = filter_audit(_RECORDS, StatusFilter(**wanted))
    assert [row.counter for row in found] == counters


@pytest.mark.parametrize(
    ("page", "limit", "names"),
    [(1, 2, "acme acme-2"), (2, 4, "dave eve"), (3, 2, "dave eve"), (4, 2, ""), (1, 9, None)],
)
def test_a_page_behind_the_last_one_is_empty(page: int, limit: int, names: str | None) -> None:
    found = select(_PROJECTS, page, limit, of_all=9)
    expected = [row.project for row in _PROJECTS] if names is None else names.split()
    assert [row.project for row in found.rows] == expected
    assert (found.total, found.of_all, found.is_complete) == (6, 9, True)


def test_a_page_that_grows_too_large_ends_earlier_and_says_so() -> None:
    found = select(_PROJECTS, 1, 6, of_all=6, max_bytes=200)
    assert 0 < len(found.rows) < 6
    assert (found.total, found.is_complete) == (6, False)
