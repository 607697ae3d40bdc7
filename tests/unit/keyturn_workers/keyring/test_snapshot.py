"""A keyring as one read showed it, and the lease that the read gives (SPEC 8.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage import Lease
from tests.unit.keyturn_workers.factories import DATE, MASTER_KEYS, keyring, snapshot

RING: Final = keyring()


def test_the_lease_is_counted_from_the_date_of_the_read() -> None:
    assert snapshot(RING).lease == Lease(DATE, 15)


@pytest.mark.parametrize(("named_s", "lease_s"), [(60, 15), (15, 15), (5, 5)])
def test_no_write_has_a_longer_lease_than_the_keyring_names(named_s: int, lease_s: int) -> None:
    """Proofs and deletes wait for no longer one."""
    assert snapshot(replace(RING, lease_s=named_s)).lease == Lease(DATE, lease_s)


def test_a_read_that_gives_no_lease_fences_no_write() -> None:
    unleased = snapshot(RING, leased=False)
    with pytest.raises(StorageUnavailableError, match="no lease"):
        _ = unleased.lease


def test_a_snapshot_prints_no_key() -> None:
    assert RING.current.kek is not None
    read = snapshot(RING)
    for secret in (RING.current.kek, *MASTER_KEYS.values(), read.desired.admin_kek):
        assert secret.reveal().hex() not in repr(read)
        assert repr(secret.reveal()) not in repr(read)
