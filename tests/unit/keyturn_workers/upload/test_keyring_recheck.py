"""When an upload needs no second read of the keyring (SPEC 7.3)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.upload import UploadResult
from keyturn_workers.upload.put import PutResponse, exists_within_lease
from tests.unit.keyturn_workers.factories import keyring, snapshot
from tests.unit.keyturn_workers.upload.bench import DATA, WAYS, Bench, bench, request

LEASE_S: Final = 15
READ_AT: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
SENT_S: Final = 1000.0
RING: Final = replace(keyring(), lease_s=LEASE_S)
OBSERVED: Final = snapshot(RING, read_at=READ_AT, sent_s=SENT_S, lease_s=LEASE_S)
PUT: Final = PutResponse(
    READ_AT + timedelta(seconds=14), agrees=True, received_s=SENT_S + 14.9, by_one_put=True
)


def test_an_encrypted_put_within_the_lease_needs_no_second_read() -> None:
    assert exists_within_lease(OBSERVED, PUT, is_encrypted=True)


@pytest.mark.parametrize(
    ("snapshot", "put", "is_encrypted"),
    [
        ({}, {}, False),
        ({}, {"by_one_put": False}, True),
        # By the storage's clock: a whole lease after the keyring's read is too late.
        ({}, {"date": READ_AT + timedelta(seconds=15)}, True),
        ({}, {"date": READ_AT + timedelta(days=1)}, True),
        ({}, {"date": None}, True),
        # By the process's own: a front end 16 s slow, or one that dates before the commit.
        ({}, {"date": READ_AT, "received_s": SENT_S + 15}, True),
        ({}, {"date": READ_AT - timedelta(seconds=1), "received_s": SENT_S + 16}, True),
        # A listing sent before a rotation and answered 20 s after it.
        ({"sent_s": SENT_S - 20}, {}, True),
        # The storage's clock contradicts itself: of the put, or of the keyring's read.
        ({}, {"agrees": False}, True),
        ({"leased": False}, {}, True),
        # A worker with a longer lease than the record names.
        ({"keyring": replace(RING, lease_s=14)}, {}, True),
    ],
)
def test_any_other_put_needs_a_second_read(
    snapshot: dict[str, Any], put: dict[str, Any], *, is_encrypted: bool
) -> None:
    assert not exists_within_lease(
        replace(OBSERVED, **snapshot), replace(PUT, **put), is_encrypted=is_encrypted
    )


def test_a_shorter_lease_than_the_records_is_enough() -> None:
    snapshot = replace(OBSERVED, keyring=replace(RING, lease_s=60))
    assert exists_within_lease(snapshot, PUT, is_encrypted=True)
    late = replace(PUT, date=READ_AT + timedelta(seconds=20))
    assert not exists_within_lease(snapshot, late, is_encrypted=True)


def leased_bench(way: str = "put", **more: Any) -> Bench:
    return bench(way, **{"ring": RING, **more})


@pytest.mark.parametrize(
    ("way", "reads"), [("put", 1), ("put_stream", 1), ("complete_multipart", 3)]
)
async def test_reads_of_the_keyring(way: str, reads: int) -> None:
    """One read for one put; an upload in parts reads before and after."""
    on = leased_bench(way)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert on.storage.calls["read"] == reads
    assert await on.plaintext() == DATA


@pytest.mark.parametrize("way", WAYS)
async def test_plaintext_always_needs_a_second_read(way: str) -> None:
    """The keyring forbade plaintext during the put: no sweep would encrypt it."""
    ring = replace(keyring(plaintext=True), lease_s=LEASE_S)
    on = leased_bench(way, ring=ring, encryption_enabled=False)

    async def forbid() -> None:
        on.write_keyring(replace(on.ring, plaintext_allowed=False))

    on.storage.before_next(way, forbid)
    assert await on.serve(request(on, way)) == UploadResult(len(DATA), 1)
    assert await on.plaintext() == DATA


async def test_a_rotation_during_the_put_is_left_to_its_sweep() -> None:
    """The object exists within a lease of the rotation: every proof of its sweep comes later."""
    on = leased_bench()
    on.storage.before_next("put", on.rotate)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
    assert on.storage.calls["copy_onto_itself"] == 0


async def test_a_put_that_outlasts_its_lease_reads_the_keyring_again() -> None:
    on = leased_bench("put_stream")
    original = on.storage.put_stream

    async def slow(*args: Any, **kwargs: Any) -> Any:
        written = await original(*args, **kwargs)
        await on.rotate()
        on.storage.advance(LEASE_S)
        # Dated before the commit.
        return replace(written, date=on.storage.now - timedelta(seconds=LEASE_S + 1))

    on.storage.put_stream = slow  # type: ignore[method-assign]
    assert await on.serve(request(on, "put_stream")) == UploadResult(len(DATA), 2)
    assert await on.plaintext() == DATA


async def test_a_keyring_read_of_more_than_a_sixth_of_a_lease_gives_no_lease() -> None:
    on = leased_bench()
    original, slow_reads = on.storage.read, [2.6, 2.6, 2.4]

    async def slow(*args: Any, **kwargs: Any) -> Any:
        answer = await original(*args, **kwargs)
        on.storage.advance(slow_reads.pop(0))
        return answer

    on.storage.read = slow  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailableError, match="no lease"):
        await on.serve(request(on))
    assert on.storage.calls["put"] == 0
    on.storage.advance(10)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 1)
