"""Rotations and enrollments with a customer key, and what is left of a lost keyring (SPEC 2.6)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import IntakeKey, Secret, kek_id, kek_info, to_base64
from keyturn.errors import (
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    GenerationMismatchError,
    KekReusedError,
    NotPermittedError,
    PermanentError,
    StorageUnavailableError,
    TransientError,
)
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import EnrollRequested, RequestOrigin, RotationRequested
from keyturn_workers.core.customer_keys import CustomerSecrets, KeyName
from keyturn_workers.core.keyring import rotations_to_prove
from keyturn_workers.core.keyring_requests import find_generation_number
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.wraps import wrap
from keyturn_workers.keys.keyring.marks import KeyringRemovedError
from keyturn_workers.keys.keyring.store import replace_keyring
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.control.rotation import Rotator
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, enc, keyring
from tests.unit.keyturn_workers.pipeline.sweep.records import OTHER_ID, SWEEP_ID
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import KEYS, ORIGIN, Sweeping
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import build_keyring, desired_state, parse_keyring

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.core.keyring import Keyring

INTAKE: Final = IntakeKey.from_seed(bytes(32))
KEK: Final = bytes([7]) * 32
A: Final = {"store": "kms-eu", "key": "a"}
B: Final = {"store": "kms-eu", "key": "b"}
LATER: Final = "2026-11-24T11:00:00.000000Z"
OTHER: Final = RequestOrigin("api", "9" * 64)


def _sealed(purpose: Any, request_id: str, kek: bytes) -> dict[str, str]:
    ciphertext = INTAKE.public_key.seal(kek, kek_info(purpose, request_id, "acme"))
    return {"intake_key": "main", "ciphertext": to_base64(ciphertext)}


def rotation(
    customer_key: dict[str, str] | None = None,
    kek: bytes | None = None,
    *,
    rotation_id: str = SWEEP_ID,
    **more: Any,
) -> RotationRequested:
    fields: dict[str, Any] = {"rotation_id": rotation_id, "project": "acme", "requested_at": AT}
    if customer_key is not None:
        fields["customer_key"] = customer_key
    if kek is not None:
        fields["sealed_kek"] = _sealed("rotation", rotation_id, kek)
    return RotationRequested.model_validate(fields | more)


def enrollment(customer_key: dict[str, str] | None = None, **more: Any) -> EnrollRequested:
    fields: dict[str, Any] = {
        "request_id": OTHER_ID,
        "project": "acme",
        "requested_at": AT,
        "sealed_kek": _sealed("enroll", OTHER_ID, KEK),
        **more,
    }
    return EnrollRequested.model_validate(
        fields if customer_key is None else fields | {"customer_key": customer_key}
    )


class Control:
    """A control worker; `acme` is at generation 2, without a customer key."""

    def __init__(self, *, plaintext: bool = False) -> None:
        self.witness, self.customer_keys = FakeWitness(), HeldCustomerKeys()
        self.on = on = Sweeping(ring=keyring(plaintext=plaintext), witness=self.witness, keys=())
        self.storage = on.storage
        common: Any = ({"main": INTAKE}, on.starter, self.customer_keys)
        self.rotator = Rotator(on.storage, on.keyrings, KEYS, *common)
        self.enroller = Enroller(on.storage, on.keyrings, KEYS, "m1", *common)

    async def rotate(self, request: RotationRequested, origin: RequestOrigin = ORIGIN) -> Keyring:
        await self.rotator.rotate(request, origin)
        return await self.keyring()

    async def enroll(self, request: EnrollRequested, origin: RequestOrigin = ORIGIN) -> Keyring:
        """The keyring, whose generation was the answer."""
        generation = await self.enroller.enroll(request, origin)
        ring = await self.keyring()
        assert generation == ring.current.generation
        return ring

    async def body(self) -> bytes:
        return (await self.storage.read(keyring_s3_key("acme")))[1]

    async def keyring(self) -> Keyring:
        return parse_keyring(await self.body(), "acme", MASTER_KEYS)

    async def lose(self) -> None:
        """The keyring and the record of sweeps are gone; the mark is not."""
        for key in list(self.storage.stored_keys()):
            if key.startswith(".keyturn/"):
                await self.storage.delete(key)

    def plant(self, ring: Keyring, key: str) -> None:
        """An object in the state of this keyring."""
        secrets = CustomerSecrets(ring.customer_keys, self.customer_keys.secrets)
        wraps = wrap(desired_state(ring, MASTER_KEYS), key, bytes(32), secrets)
        self.storage.plant(f"acme/{key}", b"", Headers(enc(wraps)))


# Rotations.


@pytest.mark.parametrize("kek", [None, KEK], ids=["alone", "with a KEK"])
async def test_a_rotation_gives_the_project_a_customer_key(kek: bytes | None) -> None:
    on = Control()
    before = await on.keyring()
    ring = await on.rotate(rotation(A, kek))
    assert ring.current.generation == before.current.generation + 1
    expected = before.current.kek_id if kek is None else kek_id(Secret(kek))
    assert ring.current.kek_id == expected
    key = ring.current.customer_key
    assert key is not None
    assert (key.name, key.is_cleared) == (KeyName(**A), False)
    assert key.is_secret(on.customer_keys.secrets[key.secret_id])
    assert on.witness.published[-1][1].customer_keys == {ring.current.generation: key}


async def test_a_generation_keeps_the_customer_key_that_a_rotation_does_not_name() -> None:
    on = Control()
    first = await on.rotate(rotation(A))
    kept = await on.rotate(rotation(None, KEK, rotation_id=OTHER_ID))
    assert kept.current.customer_key == first.current.customer_key
    mark = on.witness.table.find("acme")
    assert mark is not None
    assert mark.customer_keys == kept.customer_keys
    assert set(mark.customer_keys) == {3, 4}


async def test_each_rotation_makes_a_new_secret_also_under_the_same_key() -> None:
    on = Control()
    first = await on.rotate(rotation(A))
    second = await on.rotate(rotation(A, rotation_id=OTHER_ID))
    assert first.current.secret_id != second.current.secret_id


@pytest.mark.parametrize(
    ("again", "is_same"),
    [
        pytest.param(rotation(A, requested_at=LATER), True, id="the-same"),
        pytest.param(rotation(A, KEK), False, id="with-a-kek"),
        pytest.param(rotation(B), False, id="another-key"),
        pytest.param(rotation({**A, "store": "bao"}), False, id="another-store"),
        pytest.param(rotation(None, KEK), False, id="a-kek-instead"),
    ],
)
async def test_a_known_id_is_the_same_request_only_with_the_same_keys(
    again: RotationRequested, *, is_same: bool
) -> None:
    on = Control()
    ring = await on.rotate(rotation(A))
    asked = len(on.customer_keys.asked)
    if is_same:
        assert await on.rotate(again, OTHER) == ring
    else:
        with pytest.raises(GenerationMismatchError):
            await on.rotate(again, OTHER)
    assert await on.keyring() == ring
    assert len(on.customer_keys.asked) == asked


@pytest.mark.parametrize(
    ("request_of", "error"),
    [
        pytest.param(
            lambda: rotation(A, requested_at="2026-11-24T09:00:00Z"),
            GenerationMismatchError,
            id="overtaken",
        ),
        pytest.param(
            lambda: rotation(A, expected_generation=7), GenerationMismatchError, id="generation"
        ),
        pytest.param(lambda: rotation(A, bytes([9]) * 32), KekReusedError, id="kek-reused"),
    ],
)
async def test_no_store_is_asked_for_a_request_that_is_refused(
    request_of: Callable[[], RotationRequested], error: type[PermanentError]
) -> None:
    on = Control()
    await on.rotate(rotation(None, bytes([9]) * 32, rotation_id=OTHER_ID))
    ring = await on.keyring()
    with pytest.raises(error):
        await on.rotate(request_of())
    assert on.customer_keys.asked == []
    assert on.customer_keys.secrets == {}
    assert await on.keyring() == ring


async def test_a_project_that_allows_plaintext_gets_no_customer_key() -> None:
    on = Control(plaintext=True)
    with pytest.raises(GenerationMismatchError, match="encrypt_plaintext"):
        await on.rotate(rotation(A))
    assert on.customer_keys.secrets == {}


async def test_a_key_that_the_settings_do_not_give_is_not_permitted() -> None:
    on = Control()
    on.customer_keys.forbidden.add("kms-eu/a")
    before = await on.body()
    with pytest.raises(NotPermittedError):
        await on.rotate(rotation(A))
    assert await on.body() == before


@pytest.mark.parametrize("error", [CustomerKeyRefusedError, CustomerKeyUnavailableError])
async def test_a_request_whose_store_gives_no_secret_is_served_later(
    error: type[TransientError],
) -> None:
    on = Control()
    stopped = on.customer_keys.refused
    if error is CustomerKeyUnavailableError:
        stopped = on.customer_keys.away
    stopped.add("kms-eu/a")
    body = await on.body()
    with pytest.raises(error):
        await on.rotate(rotation(A))
    assert await on.body() == body
    stopped.clear()
    ring = await on.rotate(rotation(A))
    assert ring.current.customer_key is not None


async def test_a_put_that_loses_a_race_is_made_again_with_the_same_secret() -> None:
    """And in another generation: two secrets for one request would be one call too many."""
    on = Control()

    async def other_was_faster() -> None:
        read, _ = await on.storage.read(keyring_s3_key("acme"))
        ring = await on.keyring()
        await replace_keyring(on.storage, ring, read.etag, KEYS, lease_s=15)

    on.storage.before_next("put", other_was_faster)
    ring = await on.rotate(rotation(A))
    assert list(on.customer_keys.secrets) == [ring.current.secret_id]
    assert len(ring.history) == 2


# Enrollments.


async def test_a_project_is_enrolled_with_a_customer_key() -> None:
    on = Control()
    await on.lose()
    on.witness.table._marks.clear()
    ring = await on.enroll(enrollment(A))
    assert ring.current.customer_key is not None
    assert ring.current.customer_key.name == KeyName(**A)
    assert await on.enroll(enrollment(A, requested_at=LATER), OTHER) == ring
    for other in (enrollment(B), enrollment()):
        with pytest.raises(PermanentError) as refused:
            await on.enroll(other, OTHER)
        assert refused.value.code == "already_enrolled"
    assert len(on.customer_keys.secrets) == 1


@pytest.mark.parametrize("error", [CustomerKeyRefusedError, NotPermittedError])
async def test_an_enrollment_without_its_secret_puts_nothing(error: type[Exception]) -> None:
    on = Control()
    await on.lose()
    on.witness.table._marks.clear()
    held = on.customer_keys
    (held.refused if error is CustomerKeyRefusedError else held.forbidden).add("kms-eu/a")
    with pytest.raises(error):
        await on.enroll(enrollment(A))
    assert keyring_s3_key("acme") not in on.storage.stored_keys()


# Adoption: the keyring is lost, its mark is not.


class Lost(Control):
    """`acme` had the customer keys a and then b; its objects are of both generations."""

    async def begin(self) -> None:
        self.first = await self.rotate(rotation(A))
        self.plant(self.first, "old")
        self.second = await self.rotate(rotation(B, rotation_id=OTHER_ID.replace("2", "3")))
        self.plant(self.second, "new")
        await self.lose()


async def _lost() -> Lost:
    on = Lost()
    await on.begin()
    return on


async def test_an_adoption_takes_over_the_customer_keys_of_the_mark() -> None:
    on = await _lost()
    with pytest.raises(KeyringRemovedError):
        await on.enroll(enrollment())
    ring = await on.enroll(enrollment(adopt=True))
    assert ring.current.generation == on.second.current.generation + 1
    assert ring.current.customer_key == on.second.current.customer_key
    lost = {entry.generation: entry.customer_key for entry in ring.history}
    assert lost == on.second.customer_keys
    assert ring.current.kek_id == kek_id(Secret(KEK))
    assert ring.enrollment == ring.current
    assert rotations_to_prove(ring) == ()
    assert find_generation_number(ring, OTHER_ID) == ring.current.generation
    mark = on.witness.table.find("acme")
    assert mark is not None
    assert mark.customer_keys == ring.customer_keys


async def test_an_adoption_is_answered_again_and_can_be_rotated() -> None:
    on = await _lost()
    ring = await on.enroll(enrollment(adopt=True))
    again = enrollment(adopt=True, requested_at=LATER)
    assert await on.enroll(again, OTHER) == ring
    await on.rotate(rotation(None, bytes([8]) * 32))
    assert await on.enroller.find_enrolled(again, OTHER) == ring.current.generation
    assert find_generation_number(await on.keyring(), OTHER_ID) == ring.current.generation


async def test_an_adoption_with_a_customer_key_of_its_own_has_a_new_secret() -> None:
    on = await _lost()
    ring = await on.enroll(enrollment(A, adopt=True))
    assert ring.current.customer_key is not None
    assert ring.current.customer_key.name == KeyName(**A)
    assert ring.current.secret_id not in {on.first.current.secret_id, on.second.current.secret_id}
    assert await on.enroll(enrollment(A, adopt=True, requested_at=LATER), OTHER) == ring


@pytest.mark.parametrize("key", ["kms-eu/a", "kms-eu/b"])
@pytest.mark.parametrize("error", [CustomerKeyRefusedError, CustomerKeyUnavailableError])
async def test_an_object_that_a_customer_key_hides_makes_an_adoption_wait(
    key: str, error: type[TransientError]
) -> None:
    """Counted as one that opens nowhere, it could be at a generation that is then used again."""
    on = await _lost()
    held = on.customer_keys
    stopped = held.refused if error is CustomerKeyRefusedError else held.away
    stopped.add(key)
    with pytest.raises(error):
        await on.enroll(enrollment(adopt=True))
    assert keyring_s3_key("acme") not in on.storage.stored_keys()
    stopped.clear()
    assert (await on.enroll(enrollment(adopt=True))).current.customer_key is not None


async def test_an_adoption_asks_for_no_secret_that_no_object_needs() -> None:
    on = await _lost()
    await on.storage.delete("acme/old")
    on.customer_keys.refused.add("kms-eu/a")
    assert (await on.enroll(enrollment(adopt=True))).current.customer_key is not None


async def test_a_lost_first_generation_is_not_taken_for_the_new_one() -> None:
    """The new keyring's own secret would be asked for first."""
    on = Control()
    await on.lose()
    on.witness.table._marks.clear()
    await on.enroll(enrollment(A))
    second = await on.rotate(rotation(B))
    on.plant(second, "new")
    await on.lose()
    on.customer_keys.refused.add("kms-eu/a")
    on.customer_keys.asked.clear()
    assert (await on.enroll(enrollment(adopt=True))).current.generation == 3
    assert on.customer_keys.asked == [second.current.secret_id]


async def test_an_adoption_with_plaintext_is_refused() -> None:
    on = await _lost()
    with pytest.raises(GenerationMismatchError):
        await on.enroll(enrollment(adopt=True, plaintext="allowed"))


async def test_an_object_whose_secret_no_mark_has_makes_an_adoption_wait() -> None:
    """A backup of the keyring may have it: a new keyring would use its generations again."""
    on = await _lost()
    on.witness.table._marks.clear()
    with pytest.raises(CustomerKeyUnavailableError, match=r"'new' needs .* restore the newest"):
        await on.enroll(enrollment(adopt=True))


async def test_a_mark_that_changes_during_an_adoption_begins_it_again() -> None:
    on = await _lost()
    newer = replace(on.second, serial=on.second.serial + 9)

    async def other_was_faster() -> None:
        on.witness.receive("acme", mark_of(build_keyring(newer, MASTER_KEYS)))

    on.storage.before_next("head", other_was_faster)
    with pytest.raises(StorageUnavailableError):
        await on.enroll(enrollment(adopt=True))
    assert (await on.enroll(enrollment(adopt=True))).serial > newer.serial
