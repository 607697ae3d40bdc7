"""What the operator opens with which keys, and what a reader never yields (SPEC 4, 9.1)."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    SealError,
    Secret,
    customer_secret_id,
    new_customer_secret,
    new_dek,
    open_sealed,
    seal,
    seal_tombstone,
    to_base64,
    user_kek,
)
from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    CorruptObjectError,
    CustomerKeyUnavailableError,
    KeyringRolledBackError,
    KmsUnavailableError,
    NotFoundError,
    NoUsableWrapError,
    UnknownAlgorithmError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.given_secrets import GivenSecrets
from keyturn_workers.core.open_dek import ReaderKeys, open_dek
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.wraps import build_object_metadata, wrap
from keyturn_workers.keys.keyring.store import create_keyring
from keyturn_workers.offline.download import OperatorAccess, open_object
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated, sealed_object
from tools.harness.local_keys import admin_keks, desired_state, operator_keys, parse_keyring
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring

_KEY = "a/b.bin"
_CHUNK = 16 * 1024
_OPERATOR = OperatorAccess("acme", operator_keys(MASTER_KEYS))


async def _read(
    storage: MemoryStorage, key: str = _KEY, access: OperatorAccess = _OPERATOR
) -> bytes:
    async with open_object(storage, key, access) as opened:
        pieces = [piece async for piece in opened.chunks()]
        plaintext = b"".join(pieces)
        assert opened.info.size_bytes == len(plaintext)
        return plaintext


async def _bucket(ring: Keyring, plaintext: bytes = b"hello", key: str = _KEY) -> MemoryStorage:
    storage = MemoryStorage()
    assert await create_keyring(storage, ring, operator_keys(MASTER_KEYS), lease_s=15)
    _plant(storage, ring, plaintext, key)
    return storage


def _plant(
    storage: MemoryStorage,
    ring: Keyring,
    plaintext: bytes = b"hello",
    key: str = _KEY,
    *,
    cut_bytes: int = 0,
    flip: int | None = None,
) -> None:
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key, plaintext)
    changed = bytearray(body[: len(body) - cut_bytes])
    if flip is not None:
        changed[flip] ^= 1
    metadata = build_object_metadata(wraps, upload_id=None, caller_wire={})
    storage.plant(object_s3_key("acme", key), bytes(changed), Headers(metadata))


@pytest.mark.parametrize("size", [0, 1, _CHUNK - 1, _CHUNK, _CHUNK + 1, 3 * 2**20])
async def test_the_operator_reads_what_was_stored_by_the_admin_wrap(size: int) -> None:
    plaintext = os.urandom(size)
    storage = await _bucket(keyring(), plaintext)
    assert await _read(storage) == plaintext
    async with open_object(storage, _KEY, _OPERATOR) as opened:
        assert opened.opened is not None
        assert opened.opened.role == "admin"


async def test_another_master_key_opens_nothing() -> None:
    storage = await _bucket(keyring())
    other = OperatorAccess("acme", operator_keys({"m1x": Secret(os.urandom(32))}))
    with pytest.raises(UnknownMasterKeyError):
        await _read(storage, access=other)


@pytest.mark.parametrize("change", [{"cut_bytes": 1}, {"cut_bytes": 200_000}, {"flip": -1}])
async def test_a_changed_body_is_never_read_to_its_end(change: dict[str, int]) -> None:
    ring, plaintext = keyring(), os.urandom(3 * 2**20)
    storage = await _bucket(ring)
    _plant(storage, ring, plaintext, **change)  # type: ignore[arg-type]  # of three kinds
    given = bytearray()

    async def read() -> None:
        async with open_object(storage, _KEY, _OPERATOR) as opened:
            async for piece in opened.chunks():
                given.extend(piece)

    with pytest.raises(CorruptObjectError):
        await read()
    assert plaintext.startswith(bytes(given))


async def test_a_body_cut_between_chunks_is_corrupt() -> None:
    ring = keyring()
    storage = await _bucket(ring)
    size = 4 * _CHUNK
    # The last chunk is the empty one with its tag alone, behind four full ones.
    _plant(storage, ring, os.urandom(size), cut_bytes=16 + SEALED_CHUNK_BYTES)
    with pytest.raises(CorruptObjectError):
        await _read(storage)


@pytest.mark.parametrize("kept", [0, 10, 56, 71])
async def test_what_is_left_of_a_body_is_corrupt(kept: int) -> None:
    ring = keyring()
    storage = await _bucket(ring)
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), _KEY, b"")
    metadata = build_object_metadata(wraps, upload_id=None, caller_wire={})
    storage.plant(object_s3_key("acme", _KEY), body[:kept], Headers(metadata))
    with pytest.raises(CorruptObjectError):
        await _read(storage)


async def test_an_object_moved_to_another_key_does_not_open() -> None:
    ring = keyring()
    storage = await _bucket(ring)
    head, body = await storage.read(object_s3_key("acme", _KEY))
    storage.plant(object_s3_key("acme", "elsewhere"), body, head.headers)
    with pytest.raises(NoUsableWrapError):
        await _read(storage, "elsewhere")


async def test_plaintext_is_read_by_the_operator_where_the_keyring_allows_it() -> None:
    for allowed in (True, False):
        ring = keyring(plaintext=allowed)
        storage = await _bucket(ring)
        storage.plant(object_s3_key("acme", "p"), b"as it is", Headers({}))
        if allowed:
            assert await _read(storage, "p") == b"as it is"
        else:
            with pytest.raises(CorruptObjectError):
                await _read(storage, "p")


async def test_without_a_keyring_the_operator_reads_encrypted_objects_alone() -> None:
    ring, storage = keyring(plaintext=True), MemoryStorage()
    _plant(storage, ring)
    storage.plant(object_s3_key("acme", "p"), b"as it is", Headers({}))
    assert await _read(storage) == b"hello"
    with pytest.raises(CorruptObjectError):
        await _read(storage, "p")


async def test_a_forged_keyring_stops_the_operator() -> None:
    storage = await _bucket(keyring())
    head, record = await storage.read(keyring_s3_key("acme"))
    storage.plant(keyring_s3_key("acme"), record.replace(b'"acme"', b'"acmf"'), head.headers)
    with pytest.raises(CorruptObjectError):
        await _read(storage)


async def test_a_keyring_older_than_the_object_stops_the_operator() -> None:
    ring = keyring()
    storage = await _bucket(ring)
    _plant(storage, rotated(ring), key="later")
    with pytest.raises(KeyringRolledBackError):
        await _read(storage, "later")
    assert await _read(storage) == b"hello"


async def test_missing_deleted_unknown_and_archived_objects_have_errors_of_their_own() -> None:
    ring = keyring()
    storage = await _bucket(ring)
    tombstone = seal_tombstone(desired_state(ring, MASTER_KEYS).admin_kek, "acme", "gone", "now")
    storage.plant(
        object_s3_key("acme", "gone"),
        b"",
        Headers({"enc-algo": "deleted", "enc-dek-admin": to_base64(tombstone)}),
    )
    storage.plant(object_s3_key("acme", "odd"), b"", Headers({"enc-algo": "ROT13"}))
    storage.plant(object_s3_key("acme", "cold"), b"", Headers({}), archived=True)
    expected: dict[str, type[CodedError]] = {
        "none": NotFoundError,
        "gone": NotFoundError,
        "odd": UnknownAlgorithmError,
        "cold": ArchivedObjectError,
    }
    for key, error in expected.items():
        with pytest.raises(error):
            await _read(storage, key)


async def test_an_object_that_a_key_which_is_away_may_open_is_not_unusable() -> None:
    """The user wrap needs no master key; without it, nothing final is said."""
    ring = keyring()
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), _KEY, b"hello")
    away = AdminKeks("acme", {}, frozenset({"m1"}))
    reader = ReaderKeys("acme", admin_keks=away)
    with pytest.raises(KmsUnavailableError):
        open_dek(wraps, body[:HEADER_BYTES], _KEY, reader)
    other = replace(reader, user_kek=keyring().current.kek)
    with pytest.raises(KmsUnavailableError):
        open_dek(wraps, body[:HEADER_BYTES], _KEY, other)
    own = replace(reader, user_kek=ring.current.kek)
    opened = open_dek(wraps, body[:HEADER_BYTES], _KEY, own)
    assert opened is not None
    assert opened.role == "user"


_FILE = Path(__file__).parents[4] / ".." / "shared" / "vectors" / "keyturn_v1.json"
_MISSING = not _FILE.is_file()
_VECTORS: dict[str, Any] = {} if _MISSING else json.loads(_FILE.read_text())
_BY_ADMIN = "corrupt_object by the user wrap, valid by the admin wrap"
BY_VECTORS = pytest.mark.skipif(
    _MISSING, reason="the shared known answers are not next to the project"
)
EACH_OBJECT = pytest.mark.parametrize(
    "vector", _VECTORS.get("objects", []), ids=lambda vector: vector["name"]
)


def _masters() -> dict[str, Secret]:
    keys = _VECTORS["keys"]["master_keys"]
    return {name: Secret(base64.b64decode(key)) for name, key in keys.items()}


def _reader(vector: dict[str, Any]) -> ReaderKeys:
    keys = _VECTORS["keys"]
    api_key = keys["new_api_key"] if vector["name"] == "both keys turned" else keys["api_key"]
    return ReaderKeys(
        project=vector["project"],
        user_kek=user_kek(api_key, vector["project"], keys["pepper"]),
        admin_keks=admin_keks(vector["project"], _masters()),
    )


def _plaintext_of(vector: dict[str, Any], reader: ReaderKeys) -> bytes:
    body = base64.b64decode(vector["body"])
    envelope = object_metadata.parse(vector["metadata"])
    opened = open_dek(envelope, body[:HEADER_BYTES], vector["key"], reader)
    assert opened is not None
    return open_sealed(opened.dek, BODY_CONTEXT, body)


def _expected(vector: dict[str, Any]) -> str:
    """The code, or `valid`; no reader opens objects of the earlier system."""
    is_v0 = vector["metadata"]["enc-algo"] == "AES-256-GCM"
    return "unknown_algorithm" if is_v0 else str(vector["expect"])


def _outcome(vector: dict[str, Any], reader: ReaderKeys) -> str:
    try:
        plaintext = _plaintext_of(vector, reader)
    except CodedError as exc:
        return exc.code
    except SealError:
        return "corrupt_object"
    assert len(plaintext) == vector["size"]
    assert hashlib.sha256(plaintext).hexdigest() == vector["sha256"]
    return "valid"


@BY_VECTORS
@EACH_OBJECT
def test_each_object_opens_or_fails_with_its_code(vector: dict[str, Any]) -> None:
    """Each object opens to its plaintext, or fails with its code."""
    expected = "corrupt_object" if vector["expect"] == _BY_ADMIN else _expected(vector)
    assert _outcome(vector, _reader(vector)) == expected


@BY_VECTORS
@EACH_OBJECT
def test_the_operators_key_alone_gives_the_same_result(vector: dict[str, Any]) -> None:
    """Except for what only the user wrap shows."""
    reader = replace(_reader(vector), user_kek=None)
    expected = "valid" if vector["expect"] == _BY_ADMIN else _expected(vector)
    assert _outcome(vector, reader) == expected


@BY_VECTORS
@EACH_OBJECT
def test_another_projects_keys_open_nothing(vector: dict[str, Any]) -> None:
    """Another project's keys never open anything."""
    stranger = ReaderKeys(project=vector["project"], user_kek=Secret(bytes(32)))
    assert _outcome(vector, stranger) in {"no_usable_wrap", "unknown_algorithm"}


@BY_VECTORS
def test_the_keyring_record_opens_as_the_vectors_say() -> None:
    """The record opens to what the vectors say."""
    vector = _VECTORS["keyring"]
    keyring = parse_keyring(json.dumps(vector["record"]).encode(), "acme", _masters())
    expected = vector["opens_to"]
    assert keyring.current.generation == expected["generation"]
    assert keyring.current.kek_id == expected["kek_id"]
    assert keyring.current.kek == Secret(base64.b64decode(expected["kek"]))
    assert keyring.current.rotation_id == expected["rotation_id"]
    assert not keyring.plaintext_allowed
    assert keyring.history == ()


# A project with a customer key: the admin wrap also needs the secret (SPEC 2.6).


_SECRET, _FORMER = new_customer_secret(), new_customer_secret()


def _locked(secret: Secret, before: Keyring | None = None) -> Keyring:
    ring = keyring() if before is None else rotated(before)
    customer_key = CustomerKey.of(KeyName("kms-eu", "a"), secret, "YQ==")
    return replace(ring, current=replace(ring.current, customer_key=customer_key))


def _plant_locked(storage: MemoryStorage, ring: Keyring, secret: Secret) -> None:
    dek = new_dek()
    secrets = replace(ring.secrets, held={customer_secret_id(secret): secret})
    wraps = wrap(desired_state(ring, MASTER_KEYS), _KEY, dek, secrets)
    metadata = build_object_metadata(wraps, upload_id=None, caller_wire={})
    body = seal(dek, BODY_CONTEXT, b"locked")
    storage.plant(object_s3_key("acme", _KEY), body, Headers(metadata))


def _access(*secrets: Secret) -> OperatorAccess:
    return OperatorAccess("acme", operator_keys(MASTER_KEYS), GivenSecrets(secrets))


@pytest.mark.parametrize("has_keyring", [True, False], ids=["keyring", "lost keyring"])
async def test_the_operator_needs_the_customer_secret(has_keyring: bool) -> None:
    storage, ring = MemoryStorage(), _locked(_SECRET)
    if has_keyring:
        assert await create_keyring(storage, ring, operator_keys(MASTER_KEYS), lease_s=15)
    _plant_locked(storage, ring, _SECRET)
    assert await _read(storage, access=_access(_FORMER, _SECRET)) == b"locked"
    for secrets in ((), (_FORMER,)):
        with pytest.raises(CustomerKeyUnavailableError, match=r"given \(--customer-secret-file"):
            await _read(storage, access=_access(*secrets))


async def test_a_former_secret_suffices_for_an_object_of_its_generation() -> None:
    storage, former = MemoryStorage(), _locked(_FORMER)
    ring = _locked(_SECRET, former)
    assert await create_keyring(storage, ring, operator_keys(MASTER_KEYS), lease_s=15)
    _plant_locked(storage, former, _FORMER)
    assert await _read(storage, access=_access(_FORMER)) == b"locked"
    with pytest.raises(CustomerKeyUnavailableError, match=customer_secret_id(_FORMER)):
        await _read(storage, access=_access(_SECRET))


def test_all_given_secrets_are_required_for_an_export() -> None:
    ring = _locked(_SECRET, _locked(_FORMER))
    secrets = GivenSecrets([_SECRET, _FORMER]).require_all(ring)
    assert secrets.keys() == {customer_secret_id(each) for each in (_SECRET, _FORMER)}
    for given, missing in ((_FORMER, _SECRET), (_SECRET, _FORMER)):
        with pytest.raises(CustomerKeyUnavailableError, match=customer_secret_id(missing)):
            GivenSecrets([given]).require_all(ring)
    assert GivenSecrets().require_all(keyring()) == {}


def test_another_secret_of_the_same_id_is_none() -> None:
    """The id is a short hash: the keyring's SHA-256 decides."""
    ring = _locked(_SECRET)
    key = ring.current.customer_key
    assert key is not None
    other = replace(key, secret_sha256="0" * 64)
    forged = replace(ring, current=replace(ring.current, customer_key=other))
    with pytest.raises(CustomerKeyUnavailableError):
        GivenSecrets([_SECRET]).require_all(forged)
