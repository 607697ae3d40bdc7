"""Objects that are stored without encryption (SPEC 4.5, 9.3)."""

from __future__ import annotations

import os

import pytest

from keyturn.errors import (
    CorruptObjectError,
    StorageUnavailableError,
)
from keyturn_workers.gateway.objects import PlaintextReader
from keyturn_workers.gateway.request import Span
from tests.unit.keyturn_workers.gateway.bench import (
    TARGET,
    Bench,
)

PLAINTEXT = os.urandom(100_000)


async def test_plaintext_is_read_only_where_it_is_allowed() -> None:
    bench = Bench()
    bench.plant({}, PLAINTEXT)
    await bench.open_fails(CorruptObjectError)
    bench = Bench()
    bench.allow(plaintext=True)
    bench.plant({"enc-upload": "x"}, PLAINTEXT)
    async with bench.opened(56) as reader:
        assert isinstance(reader, PlaintextReader)
        await reader.verify()
        etag = (await bench.storage.head(TARGET)).etag
        assert (reader.etag, reader.size_bytes) == (f'"{etag}"', len(PLAINTEXT))
    assert await bench.read() == PLAINTEXT
    assert await bench.read(Span(5, 70_001)) == PLAINTEXT[5:70_001]
    assert bench.storage.streamed[-1] == (5, 69_996, etag)
    bench.plant({"enc-dek-user": "eA=="}, PLAINTEXT)
    await bench.open_fails(CorruptObjectError)


async def test_empty_plaintext() -> None:
    bench = Bench()
    bench.allow(plaintext=True)
    bench.plant({}, b"")
    assert await bench.read() == b""


async def test_plaintext_replaced_or_deleted_during_a_read_is_never_mixed() -> None:
    for removed in (True, False):
        bench = Bench()
        bench.allow(plaintext=True)
        bench.plant({}, PLAINTEXT)
        async with bench.opened(56) as reader:
            if removed:
                await bench.storage.delete(TARGET)
            else:
                bench.plant({}, os.urandom(len(PLAINTEXT)))
            with pytest.raises(StorageUnavailableError):
                await anext(reader.read_range(Span(0, 10)))
