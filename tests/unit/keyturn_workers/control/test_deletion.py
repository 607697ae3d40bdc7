"""A delete waits for two of the longest lease that the keyring names (SPEC 8.4, 8.7)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.identifiers import keyring_s3_key
from keyturn.messages import DeleteRequested
from keyturn_workers.amqp import DeferError
from keyturn_workers.control import Deleter
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.keyring.model import build_keyring
from keyturn_workers.objects.operator_keys import OperatorKeys
from keyturn_workers.storage import Headers, StorageClock
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, keyring

_LEASE_S = 15
_REQUEST = DeleteRequested.model_validate(
    {
        "request_id": "2f6c9a0e-1111-4111-8111-111111111111",
        "project": "acme",
        "key": "k",
        "requested_at": AT,
    }
)


@pytest.mark.parametrize(("named_s", "counts_s"), [(None, 15), (5, 15), (60, 60)])
async def test_a_delete_waits_two_of_the_longest_lease_that_the_keyring_names(
    named_s: int | None, counts_s: int
) -> None:
    """A worker with that lease may still have a copy under way."""
    storage = MemoryStorage()
    ring = build_keyring(replace(keyring(), lease_s=named_s), MASTER_KEYS)
    storage.plant(keyring_s3_key("acme"), ring, Headers({}))
    keyrings = KeyringReader(
        storage,
        MASTER_KEYS,
        lease_s=_LEASE_S,
        cache_s=2,
        clock=StorageClock(_LEASE_S, storage.elapsed_s),
    )
    deleter = Deleter(storage, keyrings, OperatorKeys(MASTER_KEYS), _LEASE_S)
    with pytest.raises(DeferError):
        await deleter.delete(_REQUEST)
    storage.advance(2 * counts_s - 1)
    for ask in (deleter.delete, deleter.find_deleted):
        with pytest.raises(DeferError):
            await ask(_REQUEST)
    storage.advance(2)
    await deleter.delete(_REQUEST)
    assert await deleter.find_deleted(_REQUEST)
