"""The record of a source: what is written is read again, within its bounds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from keyturn.crypto import Secret
from keyturn.errors import CorruptObjectError
from keyturn.identifiers import source_s3_key
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.pipeline.ingest.record import (
    DIGEST_BYTES,
    MAX_DIGESTS,
    MAX_REFUSED,
    Refusal,
    SourceRecord,
    SourceRecords,
    StoredRecord,
    from_json,
    to_json,
)
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

AT = datetime(2026, 11, 30, 3, tzinfo=UTC)
RECORD = SourceRecord(
    polled_at=AT,
    finished_at=AT - timedelta(minutes=5),
    objects=7,
    waiting=2,
    digests=frozenset({b"a" * DIGEST_BYTES, b"b" * DIGEST_BYTES}),
    retried_at=AT - timedelta(hours=5),
    refused={"in/ü\t": Refusal("id", "unknown_project", AT)},
)
KEYS = {"old": Secret(bytes(32)), "new": Secret(bytes(31) + b"1")}


def records(storage: MemoryStorage, *names: str) -> SourceRecords:
    return SourceRecords(storage, operator_keys({name: KEYS[name] for name in names}), names[0])


def test_a_record_is_read_as_it_was_written() -> None:
    assert from_json(to_json(RECORD)) == RECORD
    assert from_json(to_json(SourceRecord())) == SourceRecord()


def test_a_record_is_bounded_whatever_a_source_holds() -> None:
    digests = frozenset(n.to_bytes(DIGEST_BYTES, "big") for n in range(MAX_DIGESTS + 5))
    refused = {
        f"{n}\ud800": Refusal("", "malformed_request", AT + timedelta(seconds=n))
        for n in range(MAX_REFUSED + 5)
    }
    kept = from_json(to_json(SourceRecord(digests=digests, refused=refused)))
    assert len(kept.digests) == MAX_DIGESTS
    assert list(kept.refused) == [f"{n}?" for n in range(5, MAX_REFUSED + 5)]


@pytest.mark.parametrize(
    "change",
    [
        {"polled_at": "yesterday"},
        {"objects": None},
        {"digests": "AAAA"},
        {"digests": 5},
        {"refused": []},
        {"refused": {"a": ["id", "code"]}},
    ],
)
def test_another_form_is_not_used(change: dict[str, object]) -> None:
    with pytest.raises(CorruptObjectError):
        from_json(to_json(RECORD) | change)
    with pytest.raises(CorruptObjectError):
        from_json({})


async def test_one_writer_wins() -> None:
    storage = MemoryStorage()
    mine = records(storage, "old")
    empty = await mine.read("drop")
    assert empty == StoredRecord(SourceRecord(), None)
    written = await mine.write("drop", empty, RECORD)
    assert await mine.read("drop") == written
    with pytest.raises(PreconditionError):
        await mine.write("drop", empty, RECORD)
    again = await mine.write("drop", written, SourceRecord())
    with pytest.raises(PreconditionError):
        await mine.write("drop", written, RECORD)
    await storage.delete(source_s3_key("drop"))
    with pytest.raises(PreconditionError):
        await mine.write("drop", again, RECORD)


async def test_a_record_is_bound_to_its_source_and_follows_the_master_key() -> None:
    storage = MemoryStorage()
    old, both, new = (records(storage, *n) for n in (["old"], ["new", "old"], ["new"]))
    await old.write("drop", await old.read("drop"), RECORD)
    assert (await new.read("drop")).record == SourceRecord()
    await both.write("drop", await both.read("drop"), RECORD)
    assert (await new.read("drop")).record == RECORD
    head, body = await storage.read(source_s3_key("drop"))
    assert b"unknown_project" not in body
    storage.plant(source_s3_key("other"), body, head.headers)
    assert (await new.read("other")).record == SourceRecord()
