"""Reports read every page and every object, and the use of keys is recorded (SPEC 8.1, 16.1)."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import to_base64
from keyturn.errors import StorageUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import ObjectGroupStatus
from keyturn_workers.cli import keys, reports
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.keys import open_report_keys
from keyturn_workers.cli.output import to_seconds
from keyturn_workers.cli.recover import read_contradicted
from keyturn_workers.cli.reports import (
    OBJECTS_AT_ONCE,
    Groups,
    StatusReports,
    object_rows,
    take_census,
)
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.keyring.marks import MarkState, MarkTable
from keyturn_workers.keys.keyring.store import create_keyring
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.process.settings import OperatorSettings
from tests.unit.keyturn_workers.cli.fakes import Terminal
from tests.unit.keyturn_workers.cli.status_bucket import Bench
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.keys.master_keys.fakes import FakeProvider
from tests.unit.keyturn_workers.reports.status.bucket import done, record, sweep_id
from tests.unit.keyturn_workers.witness import mark_of
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.crypto import Secret
    from keyturn.messages import StatusView
    from keyturn_workers.core.storage_values import ObjectHead

_KEYS = operator_keys(MASTER_KEYS)
_AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
_FIRST = keyring()
_OTHER = keyring("other", master_key="m2")
LOCAL = f'{{"m1": "{to_base64(MASTER_KEYS["m1"].reveal())}"}}'
HELD = '{"m1": "vault:https://vault.example.com/transit/m1?version=1"}'


class _Bucket:
    def __init__(self) -> None:
        self.storage, self.table = MemoryStorage(), MarkTable()

    @property
    def reports(self) -> StatusReports:
        witness: Any = SimpleNamespace(
            table=self.table, is_current=True, check_current=lambda _project: None
        )
        return StatusReports(self.storage, _KEYS, witness=witness)

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


async def _census(
    storage: MemoryStorage, *, project: str | None = None, keys: OperatorKeys | None = None
) -> Groups:
    reports = StatusReports(storage, keys or _KEYS)
    return await take_census(reports, storage, project)


def _group(
    project: str,
    kind: Any,
    generation: int | None = None,
    master_key: str | None = None,
    code: str | None = None,
) -> ObjectGroupStatus:
    return ObjectGroupStatus(
        kind=kind,
        count=0,
        generation=generation,
        master_key=master_key,
        code=code,
        project=project or None,
    )


class _Concurrent(MemoryStorage):
    """Records how many heads are read at once."""

    active = 0
    highest = 0

    async def head(self, key: str) -> ObjectHead:
        self.active += 1
        self.highest = max(self.highest, self.active)
        await asyncio.sleep(0)
        try:
            return await super().head(key)
        finally:
            self.active -= 1


async def test_the_census_reads_no_more_objects_at_once_than_allowed() -> None:
    storage = _Concurrent()
    Bench(storage).put(_FIRST, *(f"k{n}" for n in range(3 * OBJECTS_AT_ONCE + 1)))
    census = await _census(storage)
    assert sum(census.values()) == 3 * OBJECTS_AT_ONCE + 1
    assert storage.highest == OBJECTS_AT_ONCE


async def test_an_object_deleted_after_the_listing_is_not_counted() -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a", "b")

    async def remove() -> None:
        await storage.delete("acme/a")

    storage.before_next("head", remove)
    census = await _census(storage)
    assert sum(census.values()) == 1


async def test_the_census_shows_a_progress_bar_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, *(f"k{n}" for n in range(OBJECTS_AT_ONCE + 2)))
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    census = await _census(storage)
    assert census == Counter({next(iter(census)): OBJECTS_AT_ONCE + 2})
    assert "objects of acme" in terminal.getvalue()
    assert "66/66" in terminal.getvalue()


async def test_objects_are_grouped_by_what_opens_them_and_not_by_their_labels() -> None:
    storage = MemoryStorage()
    held = Bench(storage)
    for ring in (_FIRST, _OTHER):
        assert await create_keyring(storage, ring, _KEYS, lease_s=15)
    held.put(_FIRST, "a", "b")
    held.put(_FIRST, "c", generation=7, master_key="m2")
    held.put(_OTHER, "a")
    held.delete(_OTHER, "gone")
    held.plant("acme/plain", {})
    held.plant("acme/broken", {"enc-algo": "ROT13"})
    held.plant("acme//odd", {})
    held.plant("No Project/a", {})
    held.plant(".keyturn/keyrings/forged.json", {})
    census = await _census(storage)
    assert census == {
        _group("acme", "encrypted", 1, "m1"): 3,
        _group("other", "encrypted", 1, "m2"): 1,
        _group("other", "tombstone", None, "m2"): 1,
        _group("acme", "plaintext"): 1,
        _group("acme", "unreadable", code="unknown_algorithm"): 1,
        _group("acme", "foreign"): 1,
        _group("", "foreign"): 1,
    }


async def test_one_project_is_counted_alone() -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a")
    Bench(storage).put(_OTHER, "a")
    census = await _census(storage, project="other")
    assert {group.project for group in census} == {"other"}


async def test_older_versions_are_counted_apart_and_delete_markers_are_not() -> None:
    storage = MemoryStorage(versioned=True)
    held = Bench(storage)
    held.put(_FIRST, "a")
    held.put(_FIRST, "a")
    held.put(_FIRST, "b")
    await storage.delete("acme/b")
    census = await _census(storage)
    assert census == {
        _group("acme", "encrypted", 1, "m1"): 1,
        _group("acme", "noncurrent", 1, "m1"): 2,
    }


async def test_an_outage_of_the_storage_fails_the_census() -> None:
    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a", "b")
    storage.fail_next("head", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await _census(storage)


def test_rows_are_sorted_by_project_and_kind_the_newest_generation_first() -> None:
    census = Counter(
        {
            _group("b", "encrypted", 1, "m1"): 1,
            _group("a", "plaintext"): 2,
            _group("a", "encrypted", 1, "m1"): 3,
            _group("a", "encrypted", 12, "m1"): 4,
            _group("a", "encrypted", 2, "m2"): 5,
            _group("", "foreign"): 6,
        }
    )
    rows = [
        (row["project"], row["kind"], row["generation"], row["objects"])
        for row in object_rows(census)
    ]
    assert rows == [
        (None, "foreign", None, 6),
        ("a", "encrypted", 12, 4),
        ("a", "encrypted", 2, 5),
        ("a", "encrypted", 1, 3),
        ("a", "plaintext", None, 2),
        ("b", "encrypted", 1, 1),
    ]


async def test_another_key_under_an_id_keeps_nothing_else_from_being_counted() -> None:
    async def check(name: str, _kek: Secret) -> bool:
        if name == "m2":
            raise UnknownMasterKeyError(name)
        return True

    storage = MemoryStorage()
    Bench(storage).put(_FIRST, "a")
    Bench(storage).put(_OTHER, "a")
    held = {name: LocalMasterKey(secret) for name, secret in MASTER_KEYS.items()}
    keys = OperatorKeys(held, check=check)
    assert await _census(storage, keys=keys) == {
        _group("acme", "encrypted", 1, "m1"): 1,
        _group("other", "unreadable", code="unknown_master_key"): 1,
    }


class _Audit:
    """Notes what is recorded; refuses to open if it has a failure."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.roles: list[str] = []
        self.derived: list[Any] = []

    @asynccontextmanager
    async def open(self, _settings: object, role: str) -> AsyncIterator[_Audit]:
        if self.failure is not None:
            raise self.failure
        self.roles.append(role)
        yield self

    async def kek_derived(self, derived: object) -> None:
        self.derived.append(derived)


def _settings(monkeypatch: pytest.MonkeyPatch, master_keys: str, audit: _Audit) -> OperatorSettings:
    settings = {
        "MASTER_KEYS": master_keys,
        "S3_BUCKET": "memory",
        "AMQP_URL": "amqp://127.0.0.1:1/",
        "EVENT_KEY": to_base64(bytes(32)),
        "VAULT_TOKEN": "t",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"KEYTURN_{name}", value)
    monkeypatch.setattr(keys, "command_audit", audit.open)
    monkeypatch.setattr(
        "keyturn_workers.keys.master_keys.providers.open_master_key", lambda *_: FakeProvider()
    )
    return OperatorSettings.read()


async def test_keks_that_a_provider_derives_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = _Audit()
    settings = _settings(monkeypatch, HELD, audit)
    async with open_report_keys(settings, MemoryStorage(), "status") as keys:
        await keys.admin_kek("m1", "acme")
    assert audit.roles == ["status"]
    # That of the known text, and the project's.
    assert [each.kind for each in audit.derived] == ["record", "admin"]


@pytest.mark.parametrize("missing", ["broker", "KEYTURN_EVENT_KEY"])
async def test_without_the_trail_it_runs_and_says_so(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = _Audit(CommandError("the broker is away") if missing == "broker" else None)
    settings = _settings(monkeypatch, HELD, audit)
    if missing != "broker":
        monkeypatch.delenv(missing)
    async with open_report_keys(settings, MemoryStorage(), "status") as keys:
        assert await keys.admin_kek("m1", "acme")
    shown = capsys.readouterr().err
    assert "not recorded in the audit trail" in shown
    assert ("the broker is away" if missing == "broker" else missing) in shown


async def test_local_keys_need_no_trail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = _Audit(CommandError("the broker is away"))
    settings = _settings(monkeypatch, LOCAL, audit)
    async with open_report_keys(settings, MemoryStorage(), "status"):
        pass
    assert capsys.readouterr().err == ""
