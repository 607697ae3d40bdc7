"""Records sealed for the bucket, and keyrings written to it (SPEC 5.1, 8.5)."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import Secret, from_base64, to_base64
from keyturn.errors import CorruptObjectError, StorageUnavailableError, UnknownMasterKeyError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.keyring import retire_old_keys, with_evidence, with_lease, with_master_key
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.keyring import sealed_records, store
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import (
    create_keyring,
    delete_older_versions,
    replace_keyring,
)
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tools.harness.local_keys import build_record, operator_keys, parse_keyring, parse_record
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from keyturn_workers.core.keyring import Keyring

PATH: Final = ".keyturn/sweeps/x/acme/sweep.json"
REST: Final = {"step": 3, "kek": "a-secret"}


def _built(
    path: str = PATH,
    project: str = "acme",
    master_key: str = "m1",
    master_keys: Mapping[str, Secret] = MASTER_KEYS,
) -> bytes:
    return build_record(path, project, master_key, REST, master_keys)


def _parsed(body: bytes) -> tuple[str, dict[str, Any]]:
    return parse_record(body, PATH, "acme", MASTER_KEYS)


# Building and parsing.


@pytest.mark.parametrize("master_key", ["m1", "m2"])
def test_what_was_built_is_parsed(master_key: str) -> None:
    assert _parsed(_built(master_key=master_key)) == (master_key, REST)


def test_a_record_shows_nothing_of_its_sealed_part() -> None:
    body = _built()
    assert json.loads(body).keys() == {"v", "project", "master_key", "sealed"}
    assert b"a-secret" not in body
    assert b"a-secret" not in from_base64(json.loads(body)["sealed"])


def test_no_two_seals_are_alike() -> None:
    """The bytes in the bucket show who wrote them."""
    assert _built() != _built()


@pytest.mark.parametrize(
    "body",
    [
        _built(path=".keyturn/sweeps/y/acme/sweep.json"),
        _built(project="other"),
        _built(master_keys={"m1": Secret(bytes(32))}),
        json.dumps({**json.loads(_built(master_key="m2")), "master_key": "m1"}).encode(),
        json.dumps({**json.loads(_built(project="other")), "project": "acme"}).encode(),
        json.dumps({**json.loads(_built()), "project": "other"}).encode(),
    ],
    ids=["moved", "another project's", "forged", "other key", "relabeled", "mislabeled"],
)
def test_a_record_opens_in_its_own_place_alone(body: bytes) -> None:
    with pytest.raises(CorruptObjectError):
        _parsed(body)


@pytest.mark.parametrize(
    "change",
    [
        {"v": True},
        {"master_key": "../m1"},
        {"master_key": 1},
        {"sealed": "***"},
        {"sealed": None},
        {"sealed": to_base64(b"short")},
        {"more": 1},
    ],
    ids=repr,
)
def test_a_malformed_record_is_corrupt(change: dict[str, object]) -> None:
    with pytest.raises(CorruptObjectError):
        _parsed(json.dumps(json.loads(_built()) | change).encode())


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", b'{"v":1,"v":1}'])
def test_what_is_no_record_is_corrupt(body: bytes) -> None:
    with pytest.raises(CorruptObjectError):
        _parsed(body)


def test_a_record_that_does_not_open_leaves_no_trace_of_what_it_holds() -> None:
    """A cause could repeat the opened bytes, which may contain keys."""
    with pytest.raises(CorruptObjectError) as refused:
        _parsed(_built(project="other").replace(b'"other"', b'"acme"'))
    assert refused.value.__cause__ is None
    assert refused.value.__suppress_context__


def test_an_unavailable_master_key_is_no_forgery() -> None:
    only_first = {"m1": MASTER_KEYS["m1"]}
    with pytest.raises(UnknownMasterKeyError):
        build_record(PATH, "acme", "m2", REST, only_first)
    with pytest.raises(UnknownMasterKeyError):
        parse_record(_built(master_key="m2"), PATH, "acme", only_first)


# Writing.


@pytest.mark.parametrize(
    "ring",
    [
        replace(keyring(), serial=2**63 - 1),
        replace(keyring(), serial=2**48 - 1),
        replace(keyring(), current=replace(keyring().current, generation=10**18)),
        replace(keyring(), current=replace(keyring().current, generation=2**48)),
        replace(keyring(), current=replace(keyring().current, at="yesterday")),
        replace(keyring(), recovery="r" * 3 * 1024**2),
    ],
    ids=["serial", "serial of a mark", "generation", "generation of a mark", "time", "size"],
)
async def test_nothing_replaces_a_keyring_by_one_that_cannot_be_read_or_marked(
    ring: Keyring,
) -> None:
    storage, s3_key = MemoryStorage(), keyring_s3_key("acme")
    assert await create_keyring(storage, keyring(), operator_keys(MASTER_KEYS), lease_s=15)
    head, body = await storage.read(s3_key)
    with pytest.raises(CorruptObjectError):
        await replace_keyring(
            storage,
            ring,
            head.etag,
            operator_keys(MASTER_KEYS),
            lease_s=15,
            recovery=ring.recovery,
        )
    assert (await storage.read(s3_key))[1] == body


async def _etag(storage: MemoryStorage) -> str:
    return (await storage.head(PATH)).etag


async def _body(storage: MemoryStorage) -> bytes:
    return (await storage.read(PATH))[1]


async def test_a_record_of_another_version_than_its_content_needs_is_corrupt() -> None:
    """An older worker would write it without the customer key."""
    keys = operator_keys(MASTER_KEYS)
    body = await store.build_keyring(keyring(), keys)
    assert await store.parse_keyring(body, "acme", keys)
    with pytest.raises(CorruptObjectError, match="another version"):
        await store.parse_keyring(body.replace(b'"v": 1', b'"v": 2'), "acme", keys)


async def test_a_record_is_created_once() -> None:
    storage, first = MemoryStorage(), _built()
    assert await sealed_records.create(storage, PATH, first)
    assert not await sealed_records.create(storage, PATH, _built())
    assert await _body(storage) == first
    assert (await storage.head(PATH)).headers.content_type == "application/json"


async def test_a_record_is_replaced_only_as_it_was_read() -> None:
    storage = MemoryStorage()
    assert await sealed_records.create(storage, PATH, _built())
    read, second = await _etag(storage), _built()
    assert await sealed_records.replace(storage, PATH, second, read)
    assert not await sealed_records.replace(storage, PATH, _built(), read)
    assert await _body(storage) == second


async def test_a_record_that_is_gone_is_not_replaced() -> None:
    storage = MemoryStorage()
    assert not await sealed_records.replace(storage, PATH, _built(), "etag")
    assert storage.stored_keys() == []


@pytest.mark.parametrize("times", [1, 2])
async def test_a_put_with_a_lost_response_is_recognized_by_its_bytes(times: int) -> None:
    """Also if its repetition finds the condition false: no other worker wrote these bytes."""
    storage, body = MemoryStorage(), _built()
    storage.fail_next("put", StorageUnavailableError("lost"), after_effect=True)
    for _ in range(times):
        assert await sealed_records.create(storage, PATH, body)


async def test_the_loser_of_a_race_that_is_answered_with_500_has_lost() -> None:
    storage, winner = MemoryStorage(), _built()

    async def win() -> None:
        storage.plant(PATH, winner, Headers({}))

    storage.before_next("put", win)
    storage.fail_next("put", StorageUnavailableError("500"))
    assert not await sealed_records.create(storage, PATH, _built())
    read = await _etag(storage)
    storage.plant(PATH, _built(), Headers({}))
    storage.fail_next("put", StorageUnavailableError("500"))
    assert not await sealed_records.replace(storage, PATH, _built(), read)


async def test_an_unknown_outcome_of_an_unchanged_record_is_raised() -> None:
    storage = MemoryStorage()
    storage.fail_next("put", StorageUnavailableError("500"), times=2)
    with pytest.raises(StorageUnavailableError, match="500"):
        await sealed_records.create(storage, PATH, _built())
    storage.plant(PATH, _built(), Headers({}))
    read = await _etag(storage)
    with pytest.raises(StorageUnavailableError, match="500"):
        await sealed_records.replace(storage, PATH, _built(), read)


async def test_a_record_removed_during_an_unanswered_put_has_changed() -> None:
    storage = MemoryStorage()
    storage.fail_next("put", StorageUnavailableError("500"))
    assert not await sealed_records.replace(storage, PATH, _built(), "etag")


async def test_a_storage_that_refuses_the_put_is_unavailable() -> None:
    storage = MemoryStorage()
    storage.fail_next("put", RefusedError("AccessDenied"))
    with pytest.raises(StorageUnavailableError, match="refuses"):
        await sealed_records.create(storage, PATH, _built())


# Under another master key.


async def _reseal(storage: MemoryStorage) -> bool:
    return await sealed_records.reseal(storage, PATH, "acme", "m2", operator_keys(MASTER_KEYS))


async def test_a_resealed_record_says_the_same_under_the_other_key() -> None:
    storage = MemoryStorage()
    storage.plant(PATH, _built(), Headers({}))
    assert await _reseal(storage)
    assert _parsed(await _body(storage)) == ("m2", REST)
    assert await _reseal(storage)
    assert storage.calls["put"] == 1


async def test_a_record_that_changes_meanwhile_is_not_resealed() -> None:
    storage, later = MemoryStorage(), _built()
    storage.plant(PATH, _built(), Headers({}))

    async def change() -> None:
        storage.plant(PATH, later, Headers({}))

    storage.before_next("put", change)
    assert not await _reseal(storage)
    assert await _body(storage) == later
    await storage.delete(PATH)
    assert not await _reseal(storage)


async def test_a_forged_record_is_not_resealed() -> None:
    storage = MemoryStorage()
    storage.plant(PATH, _built(project="other"), Headers({}))
    with pytest.raises(CorruptObjectError):
        await _reseal(storage)
    assert storage.calls["put"] == 0


# Keyrings as they are written.


async def versions(storage: MemoryStorage) -> int:
    return len([1 async for _ in storage.list_versions(keyring_s3_key("acme"))])


@pytest.mark.parametrize(("versioned", "left"), [(True, 1), (False, 1)])
async def test_only_the_latest_version_remains(*, versioned: bool, left: int) -> None:
    storage = MemoryStorage(versioned=versioned)
    ring = with_lease(keyring(), 15)
    assert await create_keyring(storage, ring, operator_keys(MASTER_KEYS), lease_s=15)
    assert await create_keyring(storage, keyring("acme-2"), operator_keys(MASTER_KEYS), lease_s=15)
    keyrings = KeyringReader(storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=0)
    for _ in range(3):
        ring = rotated(ring)
        snapshot = await keyrings.read_fresh("acme")
        assert await replace_keyring(
            storage, ring, snapshot.etag, operator_keys(MASTER_KEYS), lease_s=15
        )
    assert await versions(storage) == (4 if versioned else 1)
    await delete_older_versions(storage, "acme")
    assert await versions(storage) == left
    assert (await keyrings.read_fresh("acme")).keyring == replace(ring, serial=1)


async def test_while_versioning_is_suspended_a_keyring_that_is_written_meanwhile_stays() -> None:
    """It is the version `null`, which the listing showed as an older one."""
    storage, keys, ring = MemoryStorage(), operator_keys(MASTER_KEYS), keyring()
    keyrings = KeyringReader(storage, keys, lease_s=15, cache_s=0)

    async def rotate() -> None:
        snapshot = await keyrings.read_fresh("acme")
        turned = rotated(snapshot.keyring)
        assert await replace_keyring(storage, turned, snapshot.etag, keys, lease_s=15)

    assert await create_keyring(storage, ring, keys, lease_s=15)
    storage.set_versioning("Enabled")
    for _ in range(2):
        await rotate()
    storage.set_versioning("Suspended")
    storage.before_next("delete_version", rotate)
    await delete_older_versions(storage, "acme")
    assert (await keyrings.read_fresh("acme")).keyring.current.generation == 4
    # Its own put was the last one here, so that every version with an earlier KEK can go.
    await delete_older_versions(storage, "acme")
    assert await versions(storage) == 1
    assert (await keyrings.read_fresh("acme")).keyring.current.generation == 4


async def test_a_written_keyring_names_the_longest_lease_of_all_that_wrote_it() -> None:
    storage = MemoryStorage()

    async def read() -> tuple[Keyring, str]:
        head, body = await storage.read(keyring_s3_key("acme"))
        return parse_keyring(body, "acme", MASTER_KEYS), head.etag

    assert await create_keyring(storage, keyring(), operator_keys(MASTER_KEYS), lease_s=15)
    ring, etag = await read()
    assert ring.lease_s == 15
    assert await replace_keyring(storage, ring, etag, operator_keys(MASTER_KEYS), lease_s=60)
    ring, etag = await read()
    assert ring.lease_s == 60
    # A worker with a shorter lease does not lower it.
    assert await replace_keyring(storage, ring, etag, operator_keys(MASTER_KEYS), lease_s=6)
    assert (await read())[0].lease_s == 60


async def test_each_change_of_a_keyring_counts() -> None:
    """Whatever changes; and nothing else counts: a put that was refused changes nothing."""
    storage, keys = MemoryStorage(), operator_keys(MASTER_KEYS)
    keyrings = KeyringReader(storage, keys, lease_s=15, cache_s=0)
    assert await create_keyring(storage, keyring(), keys, lease_s=15)
    assert not await create_keyring(storage, keyring(), keys, lease_s=15)
    changes: list[Callable[[Keyring], Keyring]] = [
        rotated,
        retire_old_keys,
        lambda ring: ring,
        lambda ring: replace(ring, plaintext_allowed=not ring.plaintext_allowed),
        lambda ring: with_evidence(ring, "e" * 64),
        lambda ring: with_master_key(ring, "m2"),
    ]
    for serial, change in enumerate(changes, start=1):
        snapshot = await keyrings.read_fresh("acme")
        assert snapshot.keyring.serial == serial
        changed = change(snapshot.keyring)
        assert not await replace_keyring(storage, changed, "other-etag", keys, lease_s=15)
        assert await replace_keyring(storage, changed, snapshot.etag, keys, lease_s=15)
    assert (await keyrings.read_fresh("acme")).keyring.serial == 1 + len(changes)


async def test_the_first_keyring_after_a_removed_one_begins_above_its_serial() -> None:
    storage, keys = MemoryStorage(), operator_keys(MASTER_KEYS)
    assert await create_keyring(storage, replace(keyring(), serial=7), keys, lease_s=15)
    _, body = await storage.read(keyring_s3_key("acme"))
    assert parse_keyring(body, "acme", MASTER_KEYS).serial == 8
