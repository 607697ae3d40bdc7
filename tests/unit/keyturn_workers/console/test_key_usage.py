"""A count of the bucket, what follows for each master key, and where a rotation is (SPEC 8.1)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.errors import MalformedRequestError, WaitTimeoutError
from keyturn.identifiers import format_time
from keyturn.messages import (
    MasterKeyStatus,
    ObjectGroupStatus,
    StatusRejected,
    StatusReported,
    SweepStatus,
    WorkerStatus,
)
from keyturn_workers.console.key_usage import Census, CensusTaker, KeyRow, key_rows
from keyturn_workers.console.pages.keys import key_rotation
from keyturn_workers.core.master_key_usage import KeyGroup

if TYPE_CHECKING:
    from keyturn_workers.console.ask import Asker, Query

_AT = datetime(2026, 11, 26, 10, tzinfo=UTC)
_TIME = format_time(_AT)
_ID = "2f6c9a0e-0000-4000-8000-000000000001"


def _page(next_: str | None, *groups: ObjectGroupStatus, **more: Any) -> StatusReported:
    fields: dict[str, Any] = {"objects": groups, "next": next_} | more
    return StatusReported(at=_TIME, request_id=_ID, project="*", view="objects", **fields)


def _group(kind: Any, count: int, key: str | None = "m1", **more: Any) -> ObjectGroupStatus:
    return ObjectGroupStatus(kind=kind, count=count, master_key=key, **more)


class _Pages:
    """Answers with the next of these."""

    def __init__(self, *answers: StatusReported | StatusRejected | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str | None, str | None]] = []

    async def read(self, query: Query, *, actor: str | None) -> StatusReported | StatusRejected:
        self.asked.append((query.after, actor))
        if not self.answers:
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def _taken(pages: _Pages, now: datetime = _AT) -> CensusTaker:
    taker = CensusTaker(cast("Asker", pages), pause_s=0.0, clock=lambda: now)
    await _count(taker, pages)
    return taker


async def _count(taker: CensusTaker, pages: _Pages) -> None:
    """Start, until it has ended or waits for a page that does not come."""
    taker.start("kim")
    for _ in range(50):
        await asyncio.sleep(0)
    assert not pages.answers


async def test_pages_are_summed_until_the_last_one() -> None:
    pages = _Pages(
        _page("a", _group("encrypted", 5), _group("keyring", 1, "m2")),
        _page(None, _group("encrypted", 2), _group("unreadable", 3, None, code="bad_seal")),
    )
    taker = await _taken(pages)
    assert pages.asked == [(None, "kim"), ("a", "kim")]
    assert taker.complete == taker.newest
    assert taker.newest.counts == {
        KeyGroup("encrypted", "m1"): 7,
        KeyGroup("keyring", "m2"): 1,
        KeyGroup("unreadable", code="bad_seal"): 3,
    }
    assert (taker.newest.inspected, taker.newest.ended_at) == (11, _AT)


async def test_one_that_was_stopped_goes_on_where_it_stopped_within_a_day() -> None:
    first = _Pages(_page("a", _group("encrypted", 5)))
    taker = await _taken(first)
    taker.start("lee")  # nothing: one is under way
    taker.cancel()
    await taker.close()
    assert (taker.newest.inspected, taker.complete) == (5, None)
    first.answers.append(_page(None, _group("encrypted", 2)))
    await _count(taker, first)
    assert first.asked[-1] == ("a", "kim")
    assert taker.newest.inspected == 7
    assert not Census(as_of=_AT, next="a").is_resumable(_AT + timedelta(days=2))


async def test_what_passes_by_itself_is_waited_for() -> None:
    unreadable = _page(None, objects=None, code="storage_unavailable")
    pages = _Pages(WaitTimeoutError("none"), unreadable, _page(None, _group("encrypted", 1)))
    taker = await _taken(pages)
    assert taker.newest.inspected == 1
    assert taker.newest.problem == ""


@pytest.mark.parametrize(
    "answer",
    [
        MalformedRequestError("no"),
        StatusRejected(at=_TIME, request_id=_ID, project="*", code="malformed_request", detail=""),
    ],
)
async def test_a_refusal_ends_it(answer: Any) -> None:
    taker = await _taken(_Pages(answer))
    assert (taker.is_running, taker.newest.problem) == (False, "malformed_request")
    assert taker.complete is None


_KEYS = (
    MasterKeyStatus(master_key="m1", provider="local", active=False, projects=2),
    MasterKeyStatus(master_key="m2", provider="pkcs11", active=True, projects=3),
)


def _census(**counts: int) -> Census:
    """`m1_encrypted=5`, or `_unreadable=1` of no key."""
    groups = {}
    for name, count in counts.items():
        key, _, kind = name.partition("_")
        groups[KeyGroup(kind, key, "" if key else "bad_seal")] = count
    return Census(started_at=_AT, as_of=_AT, ended_at=_AT, counts=groups)


def _rows(census: Census | None, keys: Any = _KEYS, **more: Any) -> dict[str, KeyRow]:
    given = {"running_sweeps": 0, "is_complete": True} | more
    return {row.master_key: row for row in key_rows(keys, census, **given)}


def test_without_a_count_no_key_is_called_safe_to_drop() -> None:
    rows = _rows(None)
    assert list(rows) == ["m2", "m1"]
    assert {row.safe_to_drop for row in rows.values()} == {None}
    assert (rows["m1"].objects, rows["m1"].projects) == (None, 2)


def test_what_depends_on_a_key_is_summed_by_kind() -> None:
    counts = {"m1_encrypted": 5, "m1_tombstone": 1, "m1_noncurrent": 2, "m1_keyring": 3}
    row = _rows(_census(**counts, m1_sweep_record=4))["m1"]
    assert (row.objects, row.noncurrent, row.records, row.safe_to_drop) == (6, 2, 7, False)


_UNUSED = tuple(
    key.model_copy(update={"projects": 0 if key.master_key == "m1" else 3}) for key in _KEYS
)


@pytest.mark.parametrize(
    ("census", "more", "safe"),
    [
        ({}, {}, True),
        ({}, {"is_complete": False}, None),
        ({}, {"running_sweeps": None}, None),
        ({}, {"running_sweeps": 1}, False),
        ({"_unreadable": 1}, {}, False),
        ({"m1_noncurrent": 1}, {}, False),
    ],
)
def test_a_key_is_safe_to_drop_only_by_the_word_of_the_whole_bucket(
    census: dict[str, int], more: dict[str, Any], safe: bool | None
) -> None:
    rows = _rows(_census(m2_encrypted=9, **census), _UNUSED, **more)
    assert rows["m1"].safe_to_drop is safe
    assert rows["m2"].safe_to_drop is not True


def test_a_key_that_only_records_name_is_missing() -> None:
    row = _rows(_census(m0_keyring=2, m0_encrypted=7))["m0"]
    assert (row.status, row.objects, row.records, row.safe_to_drop) == (None, 7, 2, False)
    assert "missing from KEYTURN_MASTER_KEYS" in row.reason


def _key(name: str, *, active: bool = False, projects: int = 0) -> KeyRow:
    status = MasterKeyStatus(master_key=name, provider="local", active=active)
    return KeyRow(name, status, projects, None, None, None, safe_to_drop=None, reason="")


_OLD = _key("m1", projects=2)
_NEW = _key("m2", active=True)
_SWEPT = SweepStatus(
    sweep_id=_ID, project="*", status="done", clean=True, master_key="m2", ended_at=_TIME
)
_COUNTED = Census(started_at=_AT, ended_at=_AT)


def _worker(active: str = "m2", keys: tuple[str, ...] = ("m1", "m2")) -> WorkerStatus:
    return WorkerStatus(
        worker_id="2f6c9a0e-0000-4000-8000-000000000009",
        roles=("control",),
        host=f"host-{active}",
        version="0.9.0",
        started_at=_TIME,
        interval_s=15.0,
        is_stopping=False,
        lease_s=15,
        is_clock_known=True,
        active_master_key=active,
        master_keys=keys,
        event_keys=(),
        intake_keys=(),
        queues=(),
        as_of=_TIME,
    )


def _states(*args: object) -> list[str]:
    keys, workers, sweeps, census = args
    return [step.state for step in key_rotation(keys, workers, sweeps, census).steps]  # type: ignore[arg-type]


def test_with_one_key_the_first_step_is_next() -> None:
    only = _key("m1", active=True, projects=2)
    assert _states([only], [_worker("m1", ("m1",))], [], None) == ["next", *["later"] * 4]
    assert not key_rotation([only], [], [], None).is_under_way


def test_the_steps_are_done_one_after_the_other() -> None:
    workers = [_worker()]
    not_yet = [_OLD, _key("m2")]
    assert _states(not_yet, workers, [], None)[:2] == ["done", "next"]
    assert _states([_OLD, _NEW], workers, [], None)[:3] == ["done", "done", "next"]
    moved = replace(_OLD, projects=0)
    assert _states([moved, _NEW], workers, [_SWEPT], None)[2:] == ["done", "next", "later"]
    unused = replace(moved, safe_to_drop=True)
    assert _states([unused, _NEW], workers, [_SWEPT], _COUNTED)[3:] == ["done", "next"]


def test_a_second_key_that_nothing_is_under_yet_is_to_be_made_active() -> None:
    active, spare = _key("m1", active=True, projects=2), _key("m2")
    rotation = key_rotation([active, spare], [_worker("m1")], [], _COUNTED)
    assert [step.state for step in rotation.steps][:2] == ["done", "next"]
    assert "no project under it: m2" in rotation.steps[1].detail
    assert not rotation.is_under_way


def test_workers_that_disagree_about_the_active_key_are_named() -> None:
    rotation = key_rotation([_OLD, _NEW], [_worker(), _worker("m1", ("m1",))], [], None)
    assert rotation.steps[1].state == "next"
    assert "m1, m2" in rotation.steps[1].detail
    assert "host-m1" in rotation.steps[0].detail


def test_a_sweep_that_is_not_clean_or_to_another_key_moves_nothing() -> None:
    moved = replace(_OLD, projects=0, objects=5)
    for sweep in (
        _SWEPT.model_copy(update={"clean": False}),
        _SWEPT.model_copy(update={"master_key": "m1"}),
        _SWEPT.model_copy(update={"master_key": None}),
    ):
        assert _states([moved, _NEW], [_worker()], [sweep], None)[2] == "next"


def test_a_project_under_the_old_key_keeps_the_sweep_open() -> None:
    assert _states([_OLD, _NEW], [_worker()], [_SWEPT], None)[2] == "next"


def test_the_count_names_the_keys_that_are_still_in_use() -> None:
    moved = replace(_OLD, projects=0, safe_to_drop=False)
    step = key_rotation([moved, _NEW], [_worker()], [_SWEPT], _COUNTED).steps[3]
    assert step.state == "next"
    assert step.detail.endswith("not certain: m1.")
