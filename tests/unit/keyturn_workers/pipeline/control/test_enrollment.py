"""Enrollments: keyrings denied, remembered by a mark or adopted (SPEC 5.4, 5.5, 6.5, 8.1, 8.6)."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.crypto import IntakeKey, Secret, kek_info, to_base64
from keyturn.errors import (
    AlreadyEnrolledError,
    MarksUnavailableError,
    StorageUnavailableError,
    UnknownIntakeKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import EnrollRequested, RequestOrigin, RotationRequested, parse_request
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.keyring.marks import (
    KeyringContradictedError,
    KeyringRemovedError,
    KeyringUnknownError,
    Mark,
)
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.control.enrollment import Enroller, find_highest_generation
from keyturn_workers.pipeline.control.rotation import Rotator
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import (
    AT,
    MASTER_KEYS,
    deleted,
    enc,
    generation,
    keyring,
    sealed_object,
)
from tests.unit.keyturn_workers.pipeline.sweep.records import OTHER_ID, SWEEP_ID
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import KEYS, ORIGIN, Sweeping
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness import requests as rq
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.deployment import Deployment
from tools.harness.local_keys import build_keyring, desired_state, operator_keys, parse_keyring
from tools.harness.memory_storage import MemoryStorage
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys

INTAKE = IntakeKey.from_seed(bytes(32))
KEYRING = keyring_s3_key("acme")
_INTAKE = IntakeKey.from_seed(bytes(32))
_ENROLLMENT = "2f6c9a0e-1111-4111-8111-111111111111"
_ROTATION = "2f6c9a0e-2222-4222-8222-222222222222"
_FIRST = RequestOrigin("api", "1" * 64)
_SECOND = RequestOrigin("api", "2" * 64)
_OTHER = RequestOrigin("api", "3" * 64)


class _Bucket:
    """Its listings are true, but it answers 404 to every read of a keyring."""

    lease_s = 15

    def __init__(self, *keys: str) -> None:
        self.keys = keys

    async def list(self, prefix: str, *, limit: int | None = None) -> AsyncIterator[Any]:
        for key in [key for key in self.keys if key.startswith(prefix)][:limit]:
            yield SimpleNamespace(key=key)

    async def read_fresh(self, project: str) -> Any:
        raise UnknownProjectError(project)

    async def read_own(self, project: str, _origin: RequestOrigin) -> Any:
        raise UnknownProjectError(project)

    async def catch_up(self) -> None:
        """Every mark is known."""


async def _enroll(*keys: str) -> int:
    s3 = S3Server("http://127.0.0.1:1", "key", "secret", "us-east-1", "given")
    deployment = Deployment("amqp://127.0.0.1:1", s3, "bucket")
    bucket: Any = _Bucket(*keys)
    masters = {"m1": Secret(deployment.master_key)}
    enroller = Enroller(
        bucket,
        bucket,
        operator_keys(masters),
        "m1",
        {"main": deployment.intake},
        bucket,
        HeldCustomerKeys(),
    )
    body = json.dumps(rq.enroll(deployment, "acme")).encode()
    request = parse_request(body)
    assert isinstance(request, EnrollRequested)
    return await enroller.enroll(request, RequestOrigin.of("api", body))


async def test_a_keyring_that_is_listed_but_not_found_does_not_refuse_an_enrollment() -> None:
    """The read was wrong: retried later, not refused permanently as `already_enrolled`."""
    with pytest.raises(StorageUnavailableError):
        await _enroll("acme/a.bin", KEYRING)


@pytest.mark.parametrize("other", ["acme/b.bin", f"{KEYRING}.old"])
async def test_objects_without_a_keyring_refuse_an_enrollment(other: str) -> None:
    with pytest.raises(AlreadyEnrolledError):
        await _enroll("acme/a.bin", other)


# Marks.


class Marked:
    """A control worker that knows the marks, and the project `bob` without a keyring."""

    def __init__(self) -> None:
        self.witness = FakeWitness()
        self.on = Sweeping(witness=self.witness)
        self.customer_keys = HeldCustomerKeys()
        on, intake, held = self.on, {"main": INTAKE}, self.customer_keys
        self.enroller = Enroller(on.storage, on.keyrings, KEYS, "m1", intake, on.starter, held)

    async def enroll(self, request: EnrollRequested, origin: RequestOrigin = ORIGIN) -> int:
        return await self.enroller.enroll(request, origin)

    async def body(self) -> bytes:
        return (await self.on.storage.read(keyring_s3_key("bob")))[1]

    async def keyring(self) -> Keyring:
        return parse_keyring(await self.body(), "bob", MASTER_KEYS)


def request(request_id: str = SWEEP_ID, **more: Any) -> EnrollRequested:
    sealed = INTAKE.public_key.seal(bytes([7]) * 32, kek_info("enroll", request_id, "bob"))
    return EnrollRequested.model_validate(
        {
            "request_id": request_id,
            "project": "bob",
            "requested_at": AT,
            "sealed_kek": {"intake_key": "main", "ciphertext": to_base64(sealed)},
            **more,
        }
    )


async def test_an_enrollment_is_answered_once_its_keyring_is_marked() -> None:
    on = Marked()
    assert await on.enroll(request()) == 1
    assert (await on.keyring()).serial == 1
    assert on.witness.table.find("bob") == mark_of(await on.body(), "bob")


async def test_a_redelivered_enrollment_marks_the_keyring_that_it_put() -> None:
    """Its worker died between the put and the mark."""
    on = Marked()

    async def lose_broker() -> None:
        raise MarksUnavailableError("the broker is away")

    on.witness.before_publish = lose_broker
    with pytest.raises(MarksUnavailableError):
        await on.enroll(request())
    assert on.witness.table.find("bob") is None
    body = await on.body()
    on.witness.before_publish = None
    assert await on.enroll(request()) == 1
    assert await on.body() == body
    assert on.witness.table.find("bob") == mark_of(body, "bob")


@pytest.mark.parametrize(
    "other",
    [RequestOrigin("api", "1" * 64), RequestOrigin("web", ORIGIN.request)],
    ids=["other-request", "other-publisher"],
)
async def test_another_enrollment_does_not_mark_it(other: RequestOrigin) -> None:
    on = Marked()

    async def lose_broker() -> None:
        raise MarksUnavailableError("the broker is away")

    on.witness.before_publish = lose_broker
    with pytest.raises(MarksUnavailableError):
        await on.enroll(request())
    on.witness.before_publish = None
    with pytest.raises(KeyringUnknownError):
        await on.enroll(request(OTHER_ID), other)
    assert on.witness.published == []


@pytest.mark.parametrize("is_received", [True, False], ids=["received", "still on the stream"])
async def test_a_removed_keyring_refuses_an_enrollment(*, is_received: bool) -> None:
    """Otherwise it would begin at generation 1 again, which a thief may have a keyring of.

    Before a first keyring is put, all marks that are on the stream are read.
    """
    on, mark = Marked(), Mark(7, bytes(32), 3)
    if is_received:
        on.witness.receive("bob", mark)
    else:
        on.witness.stream.append(("bob", mark))
    with pytest.raises(KeyringRemovedError):
        await on.enroll(request())
    assert keyring_s3_key("bob") not in on.on.storage.stored_keys()


async def test_an_enrollment_that_adopts_begins_above_a_removed_keyring() -> None:
    on = Marked()
    on.witness.receive("bob", Mark(7, bytes(32), 3))
    assert await on.enroll(request(adopt=True)) == 4
    ring = await on.keyring()
    assert (ring.serial, ring.current.generation) == (8, 4)
    assert on.witness.table.find("bob") == mark_of(await on.body(), "bob")
    assert await on.enroll(request(adopt=True)) == 4


@pytest.mark.parametrize(
    "mark",
    [Mark(2**63 - 1, bytes(32), 3), Mark(2**47, bytes(32), 3), Mark(7, bytes(32), 2**63)],
)
async def test_an_enrollment_adopts_above_no_mark_that_leaves_no_room(mark: Mark) -> None:
    on = Marked()
    on.witness.receive("bob", mark)
    with pytest.raises(KeyringContradictedError, match="an event key has leaked"):
        await on.enroll(request(adopt=True))
    assert keyring_s3_key("bob") not in on.on.storage.stored_keys()


@pytest.mark.parametrize(("of_mark", "of_objects", "first"), [(3, 5, 6), (5, 3, 6), (5, 5, 6)])
async def test_it_begins_above_objects_and_mark(of_mark: int, of_objects: int, first: int) -> None:
    on = Marked()
    on.witness.receive("bob", Mark(7, bytes(32), of_mark))
    desired = desired_state(replace(keyring("bob"), current=generation(of_objects)), MASTER_KEYS)
    wraps, body = sealed_object(desired, "a")
    on.on.storage.plant("bob/a", body, Headers(enc(wraps)))
    assert await on.enroll(request(adopt=True)) == first


async def test_without_current_marks_no_keyring_is_put() -> None:
    on = Marked()
    on.witness.is_current = False
    with pytest.raises(MarksUnavailableError):
        await on.enroll(request())
    assert keyring_s3_key("bob") not in on.on.storage.stored_keys()


async def test_an_adopting_enrollment_that_loses_a_race_is_refused() -> None:
    on = Marked()
    on.witness.receive("bob", Mark(7, bytes(32), 3))

    async def other_was_faster() -> None:
        ring = replace(keyring("bob"), serial=8, current=generation(4))
        body = build_keyring(ring, MASTER_KEYS)
        on.on.storage.plant(keyring_s3_key("bob"), body, Headers({}))
        on.witness.receive("bob", mark_of(body, "bob"))

    on.on.storage.before_next("put", other_was_faster)
    with pytest.raises(AlreadyEnrolledError):
        await on.enroll(request(adopt=True))


# The highest generation of any object, above which adoption starts.


def _plant(storage: MemoryStorage, key: str, number: int) -> None:
    ring = replace(keyring(), current=generation(number))
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
    storage.plant(object_s3_key("acme", key), body, Headers(enc(wraps)))


async def _highest(storage: MemoryStorage, keys: OperatorKeys = KEYS) -> int | None:
    return await find_highest_generation(storage, keyring(), keys, HeldCustomerKeys())


async def test_an_object_with_an_invalid_key_counts() -> None:
    storage = MemoryStorage()
    _plant(storage, "a", 3)
    _plant(storage, "reports//q3.txt", 7)
    assert await _highest(storage) == 7


async def test_an_object_that_is_listed_but_not_found_is_not_skipped() -> None:
    """It could be the one at the highest generation: a retry lists again."""
    storage = MemoryStorage()
    _plant(storage, "a", 3)
    storage.fail_next("head", MissingError("head: NoSuchKey"))
    with pytest.raises(StorageUnavailableError):
        await _highest(storage)
    assert await _highest(storage) == 3


async def test_an_object_without_a_wrap_that_opens_counts_as_generation_0() -> None:
    storage = MemoryStorage()
    assert await _highest(storage) is None
    _plant(storage, "a", 3)
    only_m2 = operator_keys({"m2": MASTER_KEYS["m2"]})
    assert await _highest(storage, only_m2) == 0
    for key, metadata in {
        "plain": {},
        "deleted": deleted(desired_state(keyring(), MASTER_KEYS), "deleted"),
        "unknown": {"enc-algo": "ROT13"},
    }.items():
        storage = MemoryStorage()
        storage.plant(object_s3_key("acme", key), b"", Headers(metadata))
        assert await _highest(storage) == 0


# Requests that the keyring records: known even after their intake key was retired.


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
    keyrings = KeyringReader(storage, KEYS, lease_s=15, cache_s=2, clock=clock)
    sweeps = cast("Any", _NoSweeps())

    def enroller(keys: dict[str, IntakeKey]) -> Enroller:
        return Enroller(storage, keyrings, KEYS, "m1", keys, sweeps, HeldCustomerKeys())

    def rotator(keys: dict[str, IntakeKey]) -> Rotator:
        return Rotator(storage, keyrings, KEYS, keys, sweeps, HeldCustomerKeys())

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
