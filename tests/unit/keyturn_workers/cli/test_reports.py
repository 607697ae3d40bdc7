"""Commands ask for every page of a report, of everything (SPEC 16.1)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.cli import reports
from keyturn_workers.cli.output import to_seconds
from keyturn_workers.cli.recover import read_contradicted
from keyturn_workers.cli.reports import Reports
from keyturn_workers.keyring import MarkState, MarkTable
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.cli.status_bucket import Bench, done, record, sweep_id
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.witness import mark_of
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.messages import StatusView

_KEYS = operator_keys(MASTER_KEYS)
_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)


class _Bucket:
    def __init__(self) -> None:
        self.storage, self.table = MemoryStorage(), MarkTable()

    @property
    def reports(self) -> Reports:
        witness: Any = SimpleNamespace(
            table=self.table, is_current=True, check_current=lambda _project: None
        )
        return Reports(self.storage, _KEYS, witness=witness)

    def put(self, project: str, serial: int) -> bytes:
        body = build_keyring(replace(keyring(project), serial=serial), MASTER_KEYS)
        self.storage.plant(keyring_s3_key(project), body, Headers({}))
        return body

    def mark(self, body: bytes, project: str) -> None:
        self.table.receive(project, mark_of(body, project), at=_AT)

    async def states(self, project: str | None = None) -> dict[str, str | None]:
        return {row.project: row.code or row.mark for row in await self.reports.keyrings(project)}


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_every_page_of_a_view_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(reports, "STATUS_MAX_LIMIT", limit)
    bench, asked = Bench(), _Bucket()
    bench.storage = asked.storage
    projects = [f"p{number}" for number in range(5)]
    for project in projects:
        asked.put(project, 1)
        bench.put(keyring(project), "a")
    await bench.store.create(record(done(1), done(2), done(3)), "m1")
    views: list[StatusView] = ["projects", "sweeps", "objects"]
    projects_, sweeps, objects = [await asked.reports.rows(view) for view in views]
    assert [row.project for row in projects_] == projects
    assert [row.sweep_id for row in sweeps] == [sweep_id(number) for number in (3, 2, 1)]
    assert sum(row.count for row in objects) == 2 * len(projects) + 1


async def test_every_keyring_is_compared_with_its_mark() -> None:
    on = _Bucket()
    on.mark(on.put("current", 3), "current")
    on.mark(on.put("older", 3), "older")
    on.put("older", 2)
    on.mark(on.put("another", 3), "another")
    on.put("another", 3)
    on.mark(on.put("newer", 3), "newer")
    on.put("newer", 4)
    on.put("never-marked", 0)
    on.put("unknown", 2)
    on.mark(on.put("removed", 3), "removed")
    await on.storage.delete(keyring_s3_key("removed"))
    on.storage.plant(keyring_s3_key("forged"), b"{}", Headers({}))
    expected = {
        "another": MarkState.ROLLED_BACK,
        "current": MarkState.CURRENT,
        "forged": "corrupt_object",
        "never-marked": MarkState.UNMARKED,
        "newer": MarkState.UNMARKED,
        "older": MarkState.ROLLED_BACK,
        "removed": MarkState.REMOVED,
        "unknown": MarkState.UNKNOWN,
    }
    assert await on.states() == expected
    for project, state in expected.items():
        assert await on.states(project) == {project: state}
    older = await read_contradicted(on.storage, _KEYS, on.table, "older")
    assert older is not None
    assert older.mark is not None
    assert (older.found.serial, older.mark.serial, older.marked_at) == (2, 3, _AT)
    assert await read_contradicted(on.storage, _KEYS, on.table, "current") is None


@pytest.mark.parametrize("is_for_recover", [False, True])
async def test_a_keyring_that_changes_while_it_is_read_was_not_rolled_back(
    *, is_for_recover: bool
) -> None:
    on = _Bucket()
    on.mark(on.put("acme", 1), "acme")
    old = (await on.storage.read(keyring_s3_key("acme")))[1]

    async def change() -> None:
        """The keyring changes, and a read under way still shows the state before."""
        on.mark(on.put("acme", 2), "acme")
        on.storage.plant(keyring_s3_key("acme"), old, Headers({}))
        on.storage.before_next("read" if is_for_recover else "list", restore)

    newest = build_keyring(replace(keyring("acme"), serial=3), MASTER_KEYS)

    async def restore() -> None:
        on.storage.plant(keyring_s3_key("acme"), newest, Headers({}))
        on.mark(newest, "acme")

    on.storage.before_next("read", change)
    if is_for_recover:
        assert await read_contradicted(on.storage, _KEYS, on.table, "acme") is None
    else:
        assert await on.states() == {"acme": MarkState.CURRENT}


async def test_what_a_replaced_stream_had_still_counts() -> None:
    on = _Bucket()
    bodies = [on.put("acme", serial) for serial in (1, 2)]
    on.mark(bodies[1], "acme")
    on.table.begin_again()
    assert await on.states() == {"acme": MarkState.UNKNOWN}
    on.storage.plant(keyring_s3_key("acme"), bodies[0], Headers({}))
    assert await on.states() == {"acme": MarkState.ROLLED_BACK}
    await on.storage.delete(keyring_s3_key("acme"))
    assert await on.states() == {"acme": MarkState.REMOVED}


def test_a_time_is_shown_in_utc_to_the_second() -> None:
    instant = datetime(2026, 11, 24, 11, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))
    assert to_seconds(instant) == "2026-11-24T10:00:00Z"
    assert to_seconds(datetime(999, 1, 1, tzinfo=UTC)) == "0999-01-01T00:00:00Z"
    assert to_seconds(None) is None
