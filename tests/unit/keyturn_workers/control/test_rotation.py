"""Requests that the keyring records: known even after their intake key was retired (SPEC 8.1)."""

from __future__ import annotations

from typing import Any, cast

import pytest

from keyturn.crypto import IntakeKey, kek_info, to_base64
from keyturn.errors import UnknownIntakeKeyError
from keyturn.messages import EnrollRequested, RequestOrigin, RotationRequested
from keyturn_workers.control import Enroller, Rotator
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.storage import StorageClock
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, OPERATOR_KEYS
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

_INTAKE = IntakeKey.from_seed(bytes(32))
_ENROLLMENT = "2f6c9a0e-1111-4111-8111-111111111111"
_ROTATION = "2f6c9a0e-2222-4222-8222-222222222222"
_FIRST = RequestOrigin("api", "1" * 64)
_SECOND = RequestOrigin("api", "2" * 64)
_OTHER = RequestOrigin("api", "3" * 64)


class _NoSweeps:
    """Starts no sweep."""

    async def find(self, *_: Any) -> None:
        return None

    async def start(self, *_: Any, **__: Any) -> None:
        return None


def _sealed(kind: Any, request_id: str, kek: bytes) -> dict[str, str]:
    ciphertext = _INTAKE.public_key.seal(kek, kek_info(kind, request_id, "acme"))
    return {"intake_key": "main", "ciphertext": to_base64(ciphertext)}


async def test_a_recorded_request_is_recognized_after_its_intake_key_was_retired() -> None:
    storage = MemoryStorage()
    clock = StorageClock(15, storage.elapsed_s)
    keyrings = KeyringReader(
        storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=2, clock=clock
    )
    sweeps = cast("Any", _NoSweeps())

    def enroller(keys: dict[str, IntakeKey]) -> Enroller:
        return Enroller(storage, keyrings, OPERATOR_KEYS, "m1", keys, sweeps)

    def rotator(keys: dict[str, IntakeKey]) -> Rotator:
        return Rotator(storage, keyrings, operator_keys(MASTER_KEYS), keys, sweeps)

    enrollment = EnrollRequested.model_validate(
        {
            "request_id": _ENROLLMENT,
            "project": "acme",
            "requested_at": AT,
            "sealed_kek": _sealed("enroll", _ENROLLMENT, bytes([7]) * 32),
        }
    )
    rotation = RotationRequested.model_validate(
        {
            "rotation_id": _ROTATION,
            "project": "acme",
            "requested_at": AT,
            "sealed_kek": _sealed("rotation", _ROTATION, bytes([8]) * 32),
        }
    )
    assert await enroller({"main": _INTAKE}).enroll(enrollment, _FIRST) == 1
    assert await enroller({}).enroll(enrollment, _FIRST) == 1
    assert await enroller({}).find_enrolled(enrollment, _FIRST) == 1
    with pytest.raises(UnknownIntakeKeyError):
        await enroller({}).enroll(enrollment, _OTHER)

    assert (await rotator({"main": _INTAKE}).rotate(rotation, _SECOND)).generation == 2
    assert (await rotator({}).rotate(rotation, _SECOND)).generation == 2
    found = await rotator({}).find_rotated(rotation, _SECOND)
    assert found is not None
    assert found.generation == 2
    with pytest.raises(UnknownIntakeKeyError):
        await rotator({}).rotate(rotation, _OTHER)
