"""Every record is opened, and one that does not open is a row with its code (SPEC 5, 8.5)."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.cli import records
from keyturn_workers.cli.records import RecordIndex, read_records, to_seconds
from keyturn_workers.errors import ArchivedError
from keyturn_workers.status import records as opened_records
from tests.unit.keyturn_workers.cli.status_bucket import (
    Bench,
    all_record,
    done,
    origin,
    part,
    record,
    round_id,
    sweep_id,
)
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

_FIRST = keyring()
_OTHER = keyring("other", master_key="m2")


@pytest.fixture
def held() -> Bench:
    return Bench(MemoryStorage())


def _read(held: Bench, *, project: str | None = None, known: str = "m1 m2") -> RecordIndex:
    master_keys = {name: MASTER_KEYS[name] for name in known.split()}
    return asyncio.run(read_records(held.storage, operator_keys(master_keys), project=project))


def test_keyrings_and_sweeps_are_counted_by_the_master_key_that_opens_them(held: Bench) -> None:
    held.enroll(rotated(_FIRST))
    held.enroll(_OTHER)
    held.add(record(done(1), done(2)))
    held.add(record(done(3), project="other"), master_key="m2")
    held.plant(f".keyturn/sweeps/acme/{round_id(1)}/tags/x.json", {}, b"")
    index = _read(held)
    assert [row["master_key"] for row in index.keyrings] == ["m1", "m2"]
    assert index.sweep_records_under == {"m1": 1, "m2": 1}
    assert index.generations == {"acme": (2, 1), "other": (1,)}
    assert index.unreadable == 1


def test_running_sweeps_come_first_and_then_the_latest(held: Bench) -> None:
    held.add(
        record(done(1), origin(2), done(3)), record(origin(4), done(5, clean=False), project="b")
    )
    index = _read(held)
    assert [row["sweep_id"] for row in index.sweeps] == [sweep_id(n) for n in (4, 2, 5, 3, 1)]
    assert [row["clean"] for row in index.sweeps] == [None, None, False, True, True]


def test_the_parts_of_a_sweep_of_all_are_rows_of_their_own_project_alone(held: Bench) -> None:
    held.add(all_record(origin(1)), record(part(1), done(2)))
    shown = [(row["project"], row["sweep_id"]) for row in _read(held).sweeps]
    assert shown == [("*", sweep_id(1)), ("acme", sweep_id(2))]
    shown = [(row["project"], row["sweep_id"]) for row in _read(held, project="acme").sweeps]
    assert shown == [("acme", sweep_id(1)), ("acme", sweep_id(2))]


def test_the_records_of_one_project_are_read_alone(held: Bench) -> None:
    held.enroll(_FIRST)
    held.enroll(keyring("acme-2"))
    held.add(record(done(1)), record(done(2), project="acme-2"))
    index = _read(held, project="acme")
    assert [row["project"] for row in index.keyrings + index.sweeps] == ["acme", "acme"]


def test_a_record_of_a_master_key_that_is_not_there_is_named_by_it(held: Bench) -> None:
    held.enroll(_FIRST)
    held.enroll(_OTHER)
    held.add(record(done(1), project="other"), master_key="m2")
    index = _read(held, known="m1")
    assert index.missing_master_keys == {"m2": 2}
    assert index.unreadable == 2
    assert [row["code"] for row in index.keyrings] == [None, "unknown_master_key"]
    assert index.failing == [
        {"record": ".keyturn/sweeps/other.json", "code": "unknown_master_key", "detail": "m2"}
    ]
    assert "other" not in index.generations


def test_a_relabeled_record_does_not_count_for_the_key_that_it_names(held: Bench) -> None:
    held.enroll(_FIRST)
    _, body = asyncio.run(held.storage.read(".keyturn/keyrings/acme.json"))
    forged = json.loads(body) | {"master_key": "m2"}
    held.plant(".keyturn/keyrings/acme.json", {}, json.dumps(forged).encode())
    index = _read(held)
    assert index.keyrings[0]["code"] == "corrupt_object"
    assert index.keyrings[0]["master_key"] is None


def test_a_planted_record_is_a_row_or_counted_and_a_huge_one_is_not_read(
    held: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MAX_FAILING", 2)
    monkeypatch.setattr(opened_records, "MAX_BYTES", 100)
    held.plant(".keyturn/keyrings/acme.json", {}, bytes(101))
    for number in range(3):
        held.plant(f".keyturn/sweeps/acme/{round_id(1)}/failures/{number}.json", {}, bytes(101))
    index = _read(held)
    assert held.storage.calls["read"] == 0
    assert index.unreadable == 4
    assert index.keyrings[0]["detail"] == "too large for a record"
    assert [row["code"] for row in index.failing] == ["corrupt_object"] * 2


def test_a_key_without_a_records_name_is_ignored(held: Bench) -> None:
    for name in ("keyrings/No Project.json", "keyrings/acme", "sweeps/acme/x/failures/0.json"):
        held.plant(f".keyturn/{name}", {}, b"nothing")
    assert _read(held) == RecordIndex()


def test_an_outage_of_the_storage_fails_the_index(held: Bench) -> None:
    held.enroll(_FIRST)
    held.storage.fail_next("read", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        _read(held)


def test_a_record_that_is_gone_since_it_was_listed_is_no_row(held: Bench) -> None:
    held.enroll(_FIRST)

    async def remove() -> None:
        await held.storage.delete(".keyturn/keyrings/acme.json")

    held.storage.before_next("read", remove)
    assert _read(held) == RecordIndex()


def test_a_time_is_shown_in_utc_to_the_second() -> None:
    instant = datetime(2026, 11, 24, 11, 0, 0, 999, tzinfo=timezone(timedelta(hours=1)))
    assert to_seconds(instant) == "2026-11-24T10:00:00Z"
    assert to_seconds(datetime(999, 1, 1, tzinfo=UTC)) == "0999-01-01T00:00:00Z"
    assert to_seconds(None) is None


def test_an_archived_record_is_a_row_and_hides_no_other(held: Bench) -> None:
    held.enroll(_FIRST)
    held.enroll(_OTHER)
    held.storage.fail_next("read", ArchivedError("InvalidObjectState"))
    assert [row["code"] for row in _read(held).keyrings] == ["archived_object", None]
