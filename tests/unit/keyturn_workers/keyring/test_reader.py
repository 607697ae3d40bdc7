"""Shared reads of keyrings: what matters is when a read began (SPEC 7.3)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from keyturn.errors import StorageUnavailableError, UnknownProjectError
from keyturn_workers.errors import MissingError
from keyturn_workers.keyring import Keyring, KeyringReader
from keyturn_workers.keyring.model import build_keyring
from keyturn_workers.storage import Capabilities, Headers, ObjectHead
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated


class _Bucket:
    """Answers reads on request only, with what was stored when each read began."""

    capabilities = Capabilities()

    def __init__(self, ring: Keyring | None) -> None:
        self.ring = ring
        self.began = 0
        self.failing: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()

    async def read(self, key: str, *, max_bytes: int) -> tuple[ObjectHead, bytes]:
        assert max_bytes == 2 * 1024**2  # a keyring that somebody made huge is not read whole
        assert key == ".keyturn/keyrings/acme.json"
        self.began += 1
        seen, failing = self.ring, self.failing
        self.started.set()
        await self.gate.wait()
        if failing is not None:
            raise failing
        if seen is None:
            raise MissingError
        body = build_keyring(seen, MASTER_KEYS)
        now = datetime.now(UTC)
        return ObjectHead(len(body), "etag", now, now, Headers({})), body


def _reader(bucket: _Bucket, cache_s: float = 60) -> KeyringReader:
    return KeyringReader(bucket, MASTER_KEYS, lease_s=15, cache_s=cache_s)  # type: ignore[arg-type]


async def test_recent_reads_are_cached() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    first = await reader.read_recent("acme")
    assert await reader.read_recent("acme") is first
    assert bucket.began == 1


async def test_without_a_cache_each_call_reads() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket, cache_s=0)
    await reader.read_recent("acme")
    await reader.read_recent("acme")
    assert bucket.began == 2


async def test_a_fresh_read_begins_after_the_call() -> None:
    """A read that is under way must not answer a later call."""
    bucket = _Bucket(keyring())
    assert bucket.ring is not None
    reader = _reader(bucket)
    bucket.gate.clear()
    early = asyncio.create_task(reader.read_fresh("acme"))
    await bucket.started.wait()
    bucket.ring = rotated(bucket.ring)
    late = asyncio.create_task(reader.read_fresh("acme"))
    await asyncio.sleep(0)
    bucket.gate.set()
    assert (await early).desired.generation == 1
    assert (await late).desired.generation == 2
    assert bucket.began == 2


async def test_many_calls_share_one_read() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    bucket.gate.clear()
    first = asyncio.create_task(reader.read_fresh("acme"))
    await bucket.started.wait()
    many = [asyncio.create_task(reader.read_fresh("acme")) for _ in range(50)]
    await asyncio.sleep(0)
    bucket.gate.set()
    await asyncio.gather(first, *many)
    assert bucket.began == 2


async def test_a_canceled_caller_does_not_cancel_the_others() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    bucket.gate.clear()
    leaving = asyncio.create_task(reader.read_fresh("acme"))
    await bucket.started.wait()
    staying = asyncio.create_task(reader.read_fresh("acme"))
    await asyncio.sleep(0)
    leaving.cancel()
    bucket.gate.set()
    assert (await staying).desired.generation == 1
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_no_keyring_is_an_unknown_project_and_is_not_cached() -> None:
    bucket = _Bucket(None)
    reader = _reader(bucket)
    with pytest.raises(UnknownProjectError):
        await reader.read_recent("acme")
    bucket.ring = keyring()
    assert (await reader.read_recent("acme")).desired.generation == 1


async def test_a_failed_read_fails_its_callers_and_the_next_one_reads_again() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    bucket.failing = StorageUnavailableError("down")
    with pytest.raises(StorageUnavailableError):
        await reader.read_fresh("acme")
    bucket.failing = None
    assert (await reader.read_fresh("acme")).desired.generation == 1
