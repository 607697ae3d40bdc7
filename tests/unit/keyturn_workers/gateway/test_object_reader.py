"""What all readers of objects have in common (SPEC 3.1, 4.3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from keyturn.crypto import SealError
from keyturn.errors import CorruptObjectError
from keyturn_workers.gateway.objects import content_modified_at, seal_errors_as_corrupt
from keyturn_workers.storage import Headers
from tools.harness.memory_storage import MemoryStorage


async def test_the_modification_time_is_when_the_content_was_stored() -> None:
    storage = MemoryStorage()
    await storage.put("acme/k", b"", Headers({}))
    stored = (await storage.head("acme/k")).last_modified
    assert content_modified_at(await storage.head("acme/k")) == stored
    earlier = (stored - timedelta(days=1)).astimezone(UTC).replace(microsecond=0)
    moved = Headers({"enc-stored-at": f"{earlier:%Y-%m-%dT%H:%M:%SZ}"})
    await storage.put("acme/rewrapped", b"", moved)
    assert content_modified_at(await storage.head("acme/rewrapped")) == earlier
    assert isinstance(earlier, datetime)


def test_what_does_not_authenticate_is_corrupt() -> None:
    with pytest.raises(CorruptObjectError), seal_errors_as_corrupt():
        raise SealError("chunk 3")
    with pytest.raises(KeyError), seal_errors_as_corrupt():
        raise KeyError
