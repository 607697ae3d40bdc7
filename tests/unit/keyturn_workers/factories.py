"""Values for unit tests: keyrings and objects of an example project."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from keyturn import metadata as object_metadata
from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    Secret,
    kek_id,
    new_dek,
    seal,
    seal_tombstone,
)
from keyturn.messages import RequestOrigin
from keyturn_workers.core.customer_keys import (
    NO_SECRETS,
    CustomerKey,
    CustomerSecrets,
    KeyName,
)
from keyturn_workers.core.keyring import DesiredState, Generation, Keyring, rotate
from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
from keyturn_workers.core.plan_action import ObjectView
from keyturn_workers.core.storage_values import Headers, ObjectHead
from keyturn_workers.core.wraps import build_tombstone_metadata, wrap
from tools.harness.local_keys import admin_keks, desired_state, operator_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.metadata import Wraps

MASTER_KEYS = {"m1": Secret(bytes([1]) * 32), "m2": Secret(bytes([2]) * 32)}
OPERATOR_KEYS = operator_keys(MASTER_KEYS)
ADMIN_KEKS = admin_keks("acme", MASTER_KEYS)
DATE = datetime(2026, 11, 24, 10, tzinfo=UTC)
AT = "2026-11-24T10:00:00.000000Z"
ORIGIN = RequestOrigin("api", "0" * 64)


def generation(number: int, *, kek: Secret | None = None) -> Generation:
    """A generation with a fresh KEK."""
    kek = kek or Secret(os.urandom(32))
    return Generation(number, kek_id(kek), kek, str(uuid.uuid4()), AT, AT)


def keyring(project: str = "acme", *, master_key: str = "m1", plaintext: bool = False) -> Keyring:
    """A keyring at generation 1."""
    return Keyring(
        project, master_key, generation(1), ORIGIN, lease_s=15, plaintext_allowed=plaintext
    )


def snapshot(ring: Keyring, **changed: Any) -> KeyringSnapshot:
    """A prompt read of this keyring, under a lease of 15 seconds."""
    fields: dict[str, Any] = {"read_at": DATE, "sent_s": 1000.0, "lease_s": 15, **changed}
    return KeyringSnapshot(
        ring,
        desired_state(ring, MASTER_KEYS),
        "etag",
        **{"leased": True, "proves": False, **fields},
    )


def rotated(before: Keyring) -> Keyring:
    """The same keyring after a user rotation."""
    number = before.current.generation + 1
    earlier = replace(before.current, origin=before.origin)
    return replace(before, current=generation(number), history=(*before.history, earlier))


def turned_to(before: Keyring, secret: Secret, key: str = "acme", wrapped: str = "YQ==") -> Keyring:
    """The same keyring after a rotation to a customer key of the store `kms` with this secret."""
    return rotate(
        before,
        customer_key=CustomerKey.of(KeyName("kms", key), secret, wrapped),
        rotation_id=str(uuid.uuid4()),
        requested_at=AT,
        at=AT,
        origin=ORIGIN,
    )


def sealed_object(
    desired: DesiredState,
    key: str,
    plaintext: bytes = b"hello",
    secrets: CustomerSecrets = NO_SECRETS,
) -> tuple[Wraps, bytes]:
    """The wraps and the body of an object in that state."""
    dek = new_dek()
    return wrap(desired, key, dek, secrets), seal(dek, BODY_CONTEXT, plaintext)


def enc(wraps: Wraps, upload_id: str | None = None) -> dict[str, str]:
    """An object's `enc-` metadata."""
    return object_metadata.build(wraps, upload_id=upload_id)


def deleted(desired: DesiredState, key: str, time: str = AT) -> dict[str, str]:
    """A tombstone's metadata."""
    return build_tombstone_metadata(seal_tombstone(desired.admin_kek, desired.project, key, time))


def object_view(metadata: Mapping[str, str], body: bytes, **more: Any) -> ObjectView:
    """An object as a ranged read shows it; `more` are fields of its head."""
    fields: dict[str, Any] = {"size_bytes": len(body), "etag": "e", **more}
    head = ObjectHead(date=DATE, last_modified=DATE, headers=Headers(metadata), **fields)
    return ObjectView(head, body[:HEADER_BYTES])
