"""Wrapping a DEK under both desired KEKs (SPEC 4.3). Pure; no I/O."""

from collections.abc import Mapping
from datetime import datetime

from keyturn import metadata as object_metadata
from keyturn.crypto import Role, Secret, b64, wrap_dek
from keyturn.metadata import COBBLESTONE, DELETED, Wraps
from keyturn_workers.keyring import DesiredState


def wrap(
    desired: DesiredState, object_key: str, dek: bytes, *, algorithm: str = COBBLESTONE
) -> Wraps:
    """Both wraps of a 32-byte DEK, bound to the algorithm, project, key and generation."""
    user = _wrap(desired, "user", desired.user_kek, object_key, dek, algorithm)
    admin = _wrap(desired, "admin", desired.admin_kek, object_key, dek, algorithm)
    generation = desired.generation
    return Wraps(algorithm, user, admin, generation, desired.kek_id, desired.master_key)


def _wrap(
    desired: DesiredState, role: Role, kek: Secret, object_key: str, dek: bytes, algorithm: str
) -> bytes:
    return wrap_dek(
        kek,
        role,
        algorithm=algorithm,
        project=desired.project,
        key=object_key,
        generation=desired.generation,
        dek=dek,
    )


def build_object_metadata(
    wraps: Wraps,
    *,
    upload_id: str | None,
    caller_wire: Mapping[str, str],
    tag: str | None = None,
    stored_at: datetime | None = None,
) -> dict[str, str]:
    """An object's whole metadata as it goes on the wire.

    `stored_at` is information alone: it is left out where the storage would refuse the write
    for its size (SPEC 4.3). The other arguments are those of `keyturn.metadata.build`.
    """
    own = object_metadata.build(wraps, upload_id=upload_id, tag=tag, stored_at=stored_at)
    whole = {**caller_wire, **own}
    if object_metadata.size_bytes(whole) > object_metadata.METADATA_MAX_BYTES:
        whole.pop(object_metadata.STORED_AT, None)
    return whole


def build_tombstone_metadata(sealed: bytes) -> dict[str, str]:
    """A tombstone's whole metadata, around the bytes of `seal_tombstone` (SPEC 8.7)."""
    return {object_metadata.ALGO: DELETED, object_metadata.DEK_ADMIN: b64(sealed)}
