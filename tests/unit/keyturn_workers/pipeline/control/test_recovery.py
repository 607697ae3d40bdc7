"""An operator accepts a keyring that was restored, once and as it was found (SPEC 5.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from keyturn.crypto import (
    BODY_CONTEXT,
    Secret,
    customer_secret_id,
    new_customer_secret,
    new_dek,
    seal,
)
from keyturn.errors import (
    CorruptObjectError,
    GenerationMismatchError,
    MarksUnavailableError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.messages import RecoverRequested
from keyturn_workers.core.customer_keys import CustomerKey, CustomerSecrets, KeyName
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.keyring import rotations_to_prove
from keyturn_workers.core.keyring_requests import find_generation_number
from keyturn_workers.core.plan_action import NoOp, Rewrap, plan_action
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.wraps import wrap
from keyturn_workers.keys.keyring.marks import KeyringContradictedError, KeyringRemovedError, Mark
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import replace_keyring
from keyturn_workers.pipeline.control.recovery import Recoverer
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import (
    ADMIN_KEKS,
    AT,
    MASTER_KEYS,
    enc,
    keyring,
    object_view,
    rotated,
    turned_to,
)
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import build_keyring, desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring

_KEYS = operator_keys(MASTER_KEYS)
_FIRST_ID = "2f6c9a0e-1111-4111-8111-111111111111"
_OTHER_ID = "2f6c9a0e-2222-4222-8222-222222222222"
_S3_KEY = keyring_s3_key("acme")


class _Project:
    """A project whose keyring has had a few states, each of which was marked."""

    def __init__(self) -> None:
        self.storage, self.witness = MemoryStorage(), FakeWitness()
        self.recoverer = Recoverer(self.storage, _KEYS, self.witness, lease_s=15)
        self.bodies: list[bytes] = []
        ring = replace(keyring(), serial=1)
        for serial in (1, 2, 3):
            self.bodies.append(build_keyring(ring, MASTER_KEYS))
            self.witness.receive("acme", mark_of(self.bodies[-1]))
            ring = replace(rotated(ring), serial=serial + 1)
        self.put(self.bodies[-1])

    def put(self, body: bytes) -> None:
        self.storage.plant(_S3_KEY, body, Headers({}))

    async def body(self) -> bytes:
        return (await self.storage.read(_S3_KEY))[1]

    def request(self, body: bytes, highest: Mark | None = None, **more: object) -> RecoverRequested:
        """A request that names this record and this mark, by default the highest one."""
        mark = highest or self.witness.table.find("acme")
        named = {} if mark is None else {"serial": mark.serial, "mark": mark.digest.hex()}
        return RecoverRequested.model_validate(
            {
                "request_id": _FIRST_ID,
                "project": "acme",
                "requested_at": AT,
                "reason": "restored from a backup",
                "digest": mark_of(body).digest.hex(),
                **named,
                **more,
            }
        )

    async def read(self, witness: FakeWitness | None = None) -> Keyring:
        """The keyring as a worker reads it."""
        reader = KeyringReader(
            self.storage,
            _KEYS,
            lease_s=15,
            cache_s=0,
            clock=StorageClock(15, self.storage.elapsed_s),
            witness=witness or self.witness,
        )
        return (await reader.read_fresh("acme")).keyring


async def test_a_restored_keyring_is_in_use_again_above_its_mark() -> None:
    on = _Project()
    on.put(on.bodies[0])
    with pytest.raises(KeyringContradictedError):
        await on.read()
    recovered = await on.recoverer.recover(on.request(on.bodies[0]))
    # Above the lost generations, under the same API key.
    assert (recovered.serial, recovered.current.generation) == (4, 4)
    assert recovered.current.kek == recovered.history[0].kek
    assert await on.read() == recovered
    assert on.witness.published == [("acme", mark_of(await on.body()))]


async def test_a_keyring_without_a_mark_is_recovered_after_the_loss_of_the_broker() -> None:
    on = _Project()
    on.witness = FakeWitness()
    on.recoverer = Recoverer(on.storage, _KEYS, on.witness, lease_s=15)
    with pytest.raises(KeyringContradictedError):
        await on.read()
    recovered = await on.recoverer.recover(on.request(on.bodies[-1]))
    assert (recovered.serial, recovered.current.generation) == (4, 3)
    assert await on.read() == recovered


@pytest.mark.parametrize(
    "mark",
    [
        Mark(2**63 - 1, bytes(32), 1),
        Mark(2**48 - 1, bytes(32), 1),
        Mark(3 + 2**40 + 1, bytes(32), 1),
        Mark(9, bytes(32), 3 + 2**40 + 1),
    ],
)
async def test_no_keyring_is_put_above_a_mark_that_leaves_no_room(mark: Mark) -> None:
    """The holder of a leaked event key signed it; the record of a healthy keyring stays."""
    on = _Project()
    on.witness.receive("acme", mark)
    with pytest.raises(KeyringContradictedError, match="an event key has leaked"):
        await on.recoverer.recover(on.request(on.bodies[-1]))
    assert await on.body() == on.bodies[-1]
    on.witness = FakeWitness()  # as after the stream was deleted, and all workers restarted
    on.recoverer = Recoverer(on.storage, _KEYS, on.witness, lease_s=15)
    assert (await on.recoverer.recover(on.request(on.bodies[-1]))).serial == 4


@pytest.mark.parametrize("serial", [3, 2**47])
async def test_a_keyring_that_was_recovered_above_a_thiefs_mark_can_be_recovered_again(
    serial: int,
) -> None:
    """However high its serial is by now, a mark that is a little higher is a worker's."""
    on = _Project()
    ring = replace(await on.read(), serial=serial)
    on.put(build_keyring(ring, MASTER_KEYS))
    for mark in (Mark(serial + 2**40, bytes(32), 3), Mark(serial + 2**40 + 9, bytes(32), 4)):
        on.witness.receive("acme", mark)
        request = on.request(await on.body(), request_id=str(uuid4()))
        recovered = await on.recoverer.recover(request)
        assert recovered.serial == mark.serial + 1
    read, _ = await on.storage.read(_S3_KEY)
    await replace_keyring(on.storage, rotated(await on.read()), read.etag, _KEYS, lease_s=15)
    assert (await on.read()).serial == recovered.serial + 1


async def test_an_old_request_that_is_sent_again_does_nothing() -> None:
    """Neither at once, nor after the keyring was rolled back to what that request accepted."""
    on = _Project()
    on.put(on.bodies[0])
    request = on.request(on.bodies[0])
    await on.recoverer.recover(request)
    body = await on.body()
    assert (await on.recoverer.recover(request)).serial == 4
    assert await on.body() == body
    read, _ = await on.storage.read(_S3_KEY)
    await replace_keyring(on.storage, rotated(await on.read()), read.etag, _KEYS, lease_s=15)
    assert (await on.read()).recovery is None  # which marks it
    for older in (on.bodies[0], body):
        on.put(older)
        with pytest.raises(GenerationMismatchError):
            await on.recoverer.recover(request)
        assert await on.body() == older


@pytest.mark.parametrize(("age", "is_done"), [(timedelta(), True), (timedelta(hours=2), False)])
async def test_after_the_loss_of_a_broker_an_old_request_brings_nothing_back(
    age: timedelta, *, is_done: bool
) -> None:
    """Only a worker that died just now left a keyring that its request has still to mark."""
    on = _Project()
    on.put(on.bodies[0])
    request = on.request(on.bodies[0], requested_at=format_time(datetime.now(UTC) - age))
    await on.recoverer.recover(request)
    recoverer = Recoverer(on.storage, _KEYS, witness := FakeWitness(), lease_s=15)
    if is_done:
        assert (await recoverer.recover(request)).serial == 4
    else:
        with pytest.raises(GenerationMismatchError):
            await recoverer.recover(request)
    assert len(witness.published) == is_done


@pytest.mark.parametrize("named", ["record", "mark", "no mark"])
async def test_nothing_is_done_if_the_record_or_its_mark_is_another_one(named: str) -> None:
    on = _Project()
    on.put(on.bodies[0])
    requests = {
        "record": on.request(on.bodies[1]),
        "mark": on.request(on.bodies[0], mark_of(on.bodies[1])),
        "no mark": on.request(on.bodies[0], serial=None, mark=None),
    }
    with pytest.raises(GenerationMismatchError, match="not the one that the request names"):
        await on.recoverer.recover(requests[named])
    assert await on.body() == on.bodies[0]


async def test_a_keyring_that_was_not_rolled_back_needs_no_recovery() -> None:
    on = _Project()
    with pytest.raises(GenerationMismatchError, match="nothing to recover"):
        await on.recoverer.recover(on.request(on.bodies[-1]))


async def test_a_removed_keyring_is_not_recovered_but_restored_or_adopted() -> None:
    on = _Project()
    request = on.request(on.bodies[-1])
    await on.storage.delete(_S3_KEY)
    with pytest.raises(KeyringRemovedError):
        await on.read()
    with pytest.raises(GenerationMismatchError, match="enroll --adopt"):
        await on.recoverer.recover(request)


async def test_a_keyring_that_no_worker_wrote_is_never_recovered() -> None:
    on = _Project()
    foreign = build_keyring(keyring("bob"), MASTER_KEYS)
    on.put(foreign)
    with pytest.raises(CorruptObjectError):
        await on.recoverer.recover(on.request(on.bodies[0]))


async def test_a_worker_that_dies_before_the_mark_leaves_the_rest_to_the_redelivery() -> None:
    on = _Project()
    on.put(on.bodies[0])
    request = on.request(on.bodies[0])

    async def die() -> None:
        raise MarksUnavailableError("the broker is away")

    on.witness.before_publish = die
    with pytest.raises(MarksUnavailableError):
        await on.recoverer.recover(request)
    body = await on.body()
    assert body != on.bodies[0]
    assert on.witness.published == []
    on.witness.before_publish = None
    assert (await on.recoverer.recover(request)).serial == 4
    assert await on.body() == body
    assert on.witness.published == [("acme", mark_of(body))]
    found = await on.recoverer.find_recovered(request)
    assert found is not None
    assert found.serial == 4


async def test_of_two_requests_at_once_the_second_is_refused() -> None:
    on = _Project()
    on.put(on.bodies[0])
    requests = [on.request(on.bodies[0], request_id=each) for each in (_FIRST_ID, _OTHER_ID)]
    await on.recoverer.recover(requests[0])
    with pytest.raises(GenerationMismatchError):
        await on.recoverer.recover(requests[1])
    assert await on.recoverer.find_recovered(requests[1]) is None


async def test_what_a_replaced_stream_had_still_counts() -> None:
    """The operator's command, which reads only the new stream, names no mark."""
    on = _Project()
    on.witness.table.begin_again()
    with pytest.raises(MarksUnavailableError):
        await on.read()
    on.put(on.bodies[0])
    unmarked = on.request(on.bodies[0], serial=None, mark=None)
    with pytest.raises(GenerationMismatchError, match="restart all workers"):
        await on.recoverer.recover(unmarked)
    on.put(on.bodies[-1])
    recovered = await on.recoverer.recover(on.request(on.bodies[-1], serial=None, mark=None))
    assert recovered.serial == 4
    assert await on.read() == recovered


async def test_a_listed_keyring_that_is_not_found_is_transient() -> None:
    on = _Project()
    on.put(on.bodies[0])
    request = on.request(on.bodies[0])
    on.storage.fail_next("read", MissingError(_S3_KEY))
    with pytest.raises(StorageUnavailableError):
        await on.recoverer.recover(request)


# Customer keys: `wrapped` is in the keyring and in its mark alone.


class _WithCustomerKeys(_Project):
    """Generations 1 and 2 had no customer key; 3 had one, and 4 and 5 another."""

    def __init__(self, *, plaintext: bool = False) -> None:
        super().__init__()
        self.secrets: dict[str, Secret] = {}
        self.rings = [replace(keyring(plaintext=plaintext), serial=1)]
        for serial, name in enumerate((None, "a", "b", None), 2):
            ring = replace(rotated(self.rings[-1]), serial=serial)
            key = ring.history[-1].customer_key if name is None else self._customer_key(name)
            ring = replace(ring, current=replace(ring.current, customer_key=key))
            self.rings.append(ring if key is None else replace(ring, plaintext_allowed=False))
        self.bodies = [build_keyring(ring, MASTER_KEYS) for ring in self.rings]
        self.witness = FakeWitness()
        self.recoverer = Recoverer(self.storage, _KEYS, self.witness, lease_s=15)
        for body in self.bodies:
            self.witness.receive("acme", mark_of(body))

    def _customer_key(self, name: str) -> CustomerKey:
        secret = new_customer_secret()
        self.secrets[customer_secret_id(secret)] = secret
        return CustomerKey.of(KeyName("kms-eu", name), secret, "YQ==")

    async def recover(self, body: bytes) -> Keyring:
        self.put(body)
        await self.recoverer.recover(self.request(body))
        return await self.read()

    def plan(self, ring: Keyring, of: Keyring) -> object:
        """The plan for an object of one keyring, by the other."""
        held = self.secrets
        desired = desired_state(of, MASTER_KEYS)
        wraps = wrap(desired, "a", dek := new_dek(), CustomerSecrets(of.customer_keys, held))
        view = object_view(enc(wraps), seal(dek, BODY_CONTEXT, b""))
        keks = ADMIN_KEKS.with_secrets(CustomerSecrets(ring.customer_keys, held))
        wanted = desired_state(ring, MASTER_KEYS)
        return plan_action(view, "a", ring, wanted, keks, SweepOptions())


@pytest.mark.parametrize(
    ("restored", "generation"),
    [(0, 6), (1, 6), (2, 6), (3, 6), (4, 5)],
    ids=["1", "2", "3", "4", "the newest"],
)
@pytest.mark.parametrize("plaintext", [False, True], ids=["forbidden", "allowed before"])
async def test_a_recovered_keyring_loses_no_customer_key(
    restored: int, generation: int, *, plaintext: bool
) -> None:
    """Of no object that any state of the keyring has wrapped is the DEK lost."""
    on = _WithCustomerKeys(plaintext=plaintext)
    before, newest = on.rings[restored], on.rings[-1]
    on.witness.receive("acme", Mark(9, bytes(32), 5, newest.customer_keys))
    ring = await on.recover(on.bodies[restored])
    assert (ring.serial, ring.current.generation) == (10, generation)
    assert ring.current.kek == before.current.kek
    assert ring.current.customer_key == newest.current.customer_key
    assert newest.customer_keys.items() <= ring.customer_keys.items()
    assert not ring.plaintext_allowed
    assert ring.user_keks.items() >= before.user_keks.items()
    for entry in before.history:
        assert entry in ring.history
    for each in on.rings:
        assert isinstance(on.plan(ring, each), Rewrap | NoOp)
    # No generation's number is given to other keys by the next rotation.
    assert rotated(ring).current.generation > newest.current.generation


async def test_what_a_recovery_took_over_is_no_rotation() -> None:
    """Nothing waits for the end of these generations, and no event may name one."""
    on = _WithCustomerKeys()
    ring = await on.recover(on.bodies[1])
    proven = [entry for entry in rotations_to_prove(ring) if ring.origin_of(entry) is not None]
    assert [entry.generation for entry in proven] == [2]
    assert find_generation_number(ring, on.rings[1].current.rotation_id) == 2
    assert ring.enrollment.generation == 1


async def test_a_recovery_that_is_sent_again_takes_nothing_over_again() -> None:
    on = _WithCustomerKeys()
    on.put(on.bodies[1])
    request = on.request(on.bodies[1])
    first = await on.recoverer.recover(request)
    assert await on.recoverer.recover(request) == first
    mark = on.witness.table.find("acme")
    assert mark is not None
    assert mark.customer_keys == first.customer_keys


@pytest.mark.parametrize("plaintext", [False, True], ids=["forbidden", "allowed"])
async def test_no_lost_generation_without_a_customer_key_gets_one(*, plaintext: bool) -> None:
    """The wraps there are plain, and no composite KEK would open one."""
    on = _WithCustomerKeys(plaintext=plaintext)
    on.witness.receive("acme", Mark(9, bytes(32), 2))
    ring = await on.recover(on.bodies[0])
    assert ring.plaintext_allowed == plaintext
    secret = new_customer_secret()
    on.secrets[customer_secret_id(secret)] = secret
    for each in (ring, turned_to(replace(ring, plaintext_allowed=False), secret)):
        assert isinstance(on.plan(each, on.rings[1]), Rewrap)


@pytest.mark.parametrize("has_one", [True, False], ids=["another", "none"])
async def test_a_record_with_another_customer_key_than_its_mark_is_not_recovered(
    *, has_one: bool
) -> None:
    """One generation has one secret: to choose would lose the objects of the other."""
    on = _WithCustomerKeys()
    current = replace(on.rings[2].current, customer_key=on._customer_key("c"))
    body = build_keyring(replace(on.rings[2], current=current), MASTER_KEYS)
    if not has_one:
        on.witness.receive("acme", Mark(9, bytes(32), 3))
    with pytest.raises(GenerationMismatchError, match="customer keys at generation 3"):
        await on.recover(body)
    assert await on.body() == body
