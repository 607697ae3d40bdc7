"""A master key is in the report with whether it can be used now (SPEC 2.2, 16.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from keyturn.errors import KmsUnavailableError, StorageUnavailableError, UnknownMasterKeyError
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.reader import read_master_keys
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.status.bucket import Bucket

if TYPE_CHECKING:
    from keyturn.crypto import Secret


async def test_the_master_keys_of_the_process_are_rows_in_its_order() -> None:
    bucket = Bucket(known=("m2", "m1"))
    report = await bucket.report("master_keys")
    rows = [(row.master_key, row.provider, row.active) for row in report.master_keys or ()]
    assert rows == [("m2", "local", False), ("m1", "local", True)]
    assert report.next is None


async def test_one_that_cannot_be_used_now_has_a_code() -> None:
    failures: dict[str, Exception] = {
        "another": UnknownMasterKeyError("another"),
        "away": KmsUnavailableError("no answer"),
        "odd": RuntimeError("a bug"),
        "unread": StorageUnavailableError("no answer"),
    }

    async def check(name: str, kek: Secret) -> bool:
        del kek
        if name in failures:
            raise failures[name]
        return True

    held = {name: LocalMasterKey(MASTER_KEYS["m1"]) for name in (*failures, "fine")}
    rows = await read_master_keys(OperatorKeys(held, check=check), None)
    assert {row.master_key: row.code for row in rows} == {
        "another": "unknown_master_key",
        "away": "kms_unavailable",
        "odd": "storage_unavailable",
        "unread": "storage_unavailable",
        "fine": None,
    }
    assert not any(row.active for row in rows)
