"""Filter, order and page the rows of a view (SPEC 16.1). Pure."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

import orjson
from pydantic import BaseModel

from keyturn.identifiers import parse_time
from keyturn.messages.status import (
    AuditStatus,
    FailureStatus,
    ProjectStatus,
    StatusFilter,
    SweepStatus,
)
from keyturn_workers.reports.status.records import MAX_PAGE_BYTES

OLD_KEY: Final = timedelta(days=365)
NO_FILTER: Final = StatusFilter()
_CONTRADICTED: Final = ("rolled_back", "removed", "unknown")

RowT = TypeVar("RowT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Selection(Generic[RowT]):
    """One page of rows.

    `total` is how many match the filter, of `of_all` rows. If `is_complete`, the page has all of
    its rows: it ends after `MAX_PAGE_BYTES`.
    """

    rows: tuple[RowT, ...]
    total: int
    of_all: int
    is_complete: bool = True


def select(
    matching: Sequence[RowT], page: int, limit: int, *, of_all: int, max_bytes: int = MAX_PAGE_BYTES
) -> Selection[RowT]:
    """Return one page of the matching rows; none if the page lies behind the last one."""
    begin = (page - 1) * limit
    rows: list[RowT] = []
    size_bytes = 0
    for row in matching[begin : begin + limit]:
        size_bytes += len(orjson.dumps(row.model_dump(mode="json", exclude_none=True)))
        if rows and size_bytes > max_bytes:
            return Selection(tuple(rows), len(matching), of_all, is_complete=False)
        rows.append(row)
    return Selection(tuple(rows), len(matching), of_all)


def contains_words(text: str | None, values: Iterable[str | None]) -> bool:
    """Check if each word of the text occurs in one of the values, in upper or lower case."""
    words = (text or "").casefold().split()
    if not words:
        return True
    line = "\n".join(value for value in values if value).casefold()
    return all(word in line for word in words)


# Projects.


def filter_projects(
    rows: Iterable[ProjectStatus], wanted: StatusFilter, now: datetime
) -> list[ProjectStatus]:
    """Return the matching projects, in their order."""
    found = [row for row in rows if contains_words(wanted.text, (row.project,))]
    if wanted.master_key is not None:
        found = [row for row in found if row.master_key == wanted.master_key]
    if wanted.state is not None:
        matches = _PROJECT_STATES[wanted.state]
        found = [row for row in found if matches(row, now)]
    return found


def order_projects(rows: list[ProjectStatus], order: str | None) -> list[ProjectStatus]:
    """Order projects, which come by name, by a column; unknown values are the lowest."""
    column = (order or "project").removeprefix("-")
    is_descending = bool(order) and str(order).startswith("-")
    if column == "project":
        return rows[::-1] if is_descending else rows
    return sorted(rows, key=lambda row: _sort_key(getattr(row, column)), reverse=is_descending)


def _sort_key(value: Any) -> tuple[bool, Any]:
    return (value is not None, value)


def is_contradicted(row: ProjectStatus) -> bool:
    """Check if no worker uses the keyring, because of its mark."""
    return row.mark in _CONTRADICTED


def needs_sweep(row: ProjectStatus) -> bool:
    """Check if the newest sweep is not clean; one of an erased project never will be."""
    return row.last_end_clean is False and row.erased_at is None


def waits_for_key(row: ProjectStatus) -> bool:
    """Check if a sweep or rotation waits for the customer key."""
    return row.customer_key is not None and row.customer_key.code is not None


def is_key_old(row: ProjectStatus, now: datetime) -> bool:
    """Check if the API key was not rotated for a year; that of an erased project opens nothing."""
    since = row.key_since
    return since is not None and row.erased_at is None and now - parse_time(since) > OLD_KEY


def _needs_attention(row: ProjectStatus) -> bool:
    return row.code is not None or is_contradicted(row) or needs_sweep(row) or waits_for_key(row)


_PROJECT_STATES: Final[dict[str, Callable[[ProjectStatus, datetime], bool]]] = {
    "ok": lambda row, _: row.code is None and not is_contradicted(row),
    "attention": lambda row, _: _needs_attention(row),
    "sweeping": lambda row, _: bool(row.running_sweeps),
    "never_proven": lambda row, _: row.last_proof_at is None and row.erased_at is None,
    "earlier_keks": lambda row, _: bool(row.earlier_keks),
    "old_key": is_key_old,
    "plaintext": lambda row, _: bool(row.plaintext),
    "customer_key": lambda row, _: row.customer_key is not None,
    "waits_for_key": lambda row, _: waits_for_key(row),
    "erased": lambda row, _: row.erased_at is not None,
}


# Sweeps, and their failures.


def order_sweeps(rows: Iterable[SweepStatus]) -> list[SweepStatus]:
    """Return the running sweeps first, then the newest."""
    newest = sorted(rows, key=lambda row: (row.started_at or "", row.sweep_id), reverse=True)
    return sorted(newest, key=lambda row: row.status != "running")


def filter_sweeps(
    rows: Iterable[SweepStatus], wanted: StatusFilter, *, with_parts: bool
) -> list[SweepStatus]:
    """Return the matching sweeps; parts of sweeps of all only if `with_parts`."""
    with_parts = with_parts or bool(wanted.parts)
    return [
        row
        for row in rows
        if (with_parts or not row.part_of_all)
        and wanted.kind in (None, row.kind)
        and _is_in_state(row, wanted.state)
        and contains_words(wanted.text, _sweep_texts(row))
    ]


def _is_in_state(row: SweepStatus, state: str | None) -> bool:
    if state == "not_clean":
        return row.status == "failed" or (row.status == "done" and not row.clean)
    return state in (None, row.status)


def _sweep_texts(row: SweepStatus) -> tuple[str | None, ...]:
    return row.sweep_id, row.project, row.code, row.publisher, row.actor, row.master_key


def order_parts(rows: Iterable[SweepStatus]) -> list[SweepStatus]:
    """Return the parts of a sweep of all, those that need attention first."""
    return sorted(rows, key=lambda row: (_urgency(row), row.project))


def _urgency(row: SweepStatus) -> int:
    if row.status == "failed" or row.status is None:
        return 0
    if row.status == "running":
        return 2
    return 3 if row.clean else 1


def filter_failures(rows: Iterable[FailureStatus], wanted: StatusFilter) -> list[FailureStatus]:
    """Return the matching failures, in their order."""
    return [
        row
        for row in rows
        if wanted.code in (None, row.code)
        and contains_words(wanted.text, (row.project, row.key, row.code))
    ]


# The audit trail.


def filter_audit(rows: Iterable[AuditStatus], wanted: StatusFilter) -> list[AuditStatus]:
    """Return the matching records, in their order."""
    return [row for row in rows if _is_wanted(row, wanted)]


def _is_wanted(row: AuditStatus, wanted: StatusFilter) -> bool:
    is_ok = row.outcome in ("done", "started")
    # A console asks for reports by itself, and these are most of all records.
    is_own_report = (
        row.action == "request.served"
        and row.request_type == "status.requested"
        and row.actor == row.publisher
    )
    return (
        (bool(wanted.reports) or not is_own_report)
        and (wanted.since is None or row.at >= wanted.since)
        and (wanted.until is None or row.at < wanted.until)
        and wanted.action in (None, "", row.action)
        and wanted.project in (None, row.project)
        and wanted.request_id in (None, row.request_id)
        and (wanted.outcome is None or is_ok == (wanted.outcome == "ok"))
        and contains_words(wanted.actor, (row.actor,))
        and contains_words(wanted.text, _audit_texts(row))
    )


def _audit_texts(row: AuditStatus) -> tuple[str | None, ...]:
    return (
        *(row.actor, row.publisher, row.action, row.project, row.object_key, row.queue, row.host),
        *(row.request_type, row.request_id, row.request, row.master_key, row.outcome, row.reason),
    )
