"""An operator accepts a keyring that was restored, once and as it was found (SPEC 5.5)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from keyturn.errors import (
    CorruptObjectError,
    GenerationMismatchError,
    MarksUnavailableError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.messages import RecoverRequested
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.keyring.marks import KeyringContradictedError, KeyringRemovedError, Mark
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import replace_keyring
from keyturn_workers.pipeline.control.recovery import Recoverer
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import build_keyring, operator_keys
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
    assert (recovered.serial, recovered.current.generation) == (4, 1)
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
