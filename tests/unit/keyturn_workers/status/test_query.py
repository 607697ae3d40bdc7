"""Rows are filtered, ordered and cut into pages as the request asks (SPEC 16.1)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from keyturn.messages import (
    AuditStatus,
    FailureStatus,
    ProjectStatus,
    StatusFilter,
    SweepStatus,
)
from keyturn_workers.status.query import (
    filter_audit,
    filter_failures,
    filter_projects,
    filter_sweeps,
    order_parts,
    order_projects,
    order_sweeps,
    select,
)

_NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
_OLD, _NEW = "2025-01-01T00:00:00.000000Z", "2026-11-01T00:00:00.000000Z"
_ID = "00000000-0000-4000-8000-{:012}"


def _project(name: str, **fields: Any) -> ProjectStatus:
    return ProjectStatus(project=name, **fields)


_PROJECTS = [
    _project("acme", generation=3, master_key="m1", key_since=_OLD, last_proof_at=_NEW),
    _project("acme-2", generation=1, master_key="m2", key_since=_NEW, last_end_clean=False),
    _project("bob", code="corrupt_object"),
    _project("carol", generation=9, mark="rolled_back", earlier_keks=2, last_proof_at=_OLD),
    _project("dave", generation=1, plaintext=True, running_sweeps=(_ID.format(1),)),
    _project("eve", generation=2, v0=True, mark="removed"),
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
    found = filter_projects(_PROJECTS, StatusFilter(**wanted), _NOW)
    assert [row.project for row in found] == names.split()


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
    return SweepStatus(sweep_id=_ID.format(number), project=project, **defaults | fields)


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
        ({"text": _ID.format(6)}, [6]),
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
        "audit_id": _ID.format(counter),
        "at": f"2026-11-24T10:{counter:02}:00.000000Z",
        "process": _ID.format(99),
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
    _record(5, request_id=_ID.format(7), project="acme"),
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
        ({"request_id": _ID.format(7)}, [5]),
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
