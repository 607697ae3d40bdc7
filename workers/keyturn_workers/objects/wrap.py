"""Wrapping a DEK under both desired KEKs (SPEC 4.3). Pure; no I/O."""

from collections.abc import Mapping
from datetime import datetime

from keyturn import metadata as object_metadata
from keyturn.crypto import Role, Secret, to_base64, wrap_dek
from keyturn.metadata import COBBLESTONE, DELETED, Wraps
from keyturn_workers.keyring import DesiredState


def wrap(
    desired: DesiredState, object_key: str, dek: bytes, *, algorithm: str = COBBLESTONE
) -> Wraps:
    """Wrap a 32-byte DEK under both KEKs, bound to algorithm, project, key and generation."""
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
        object_key=object_key,
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
    """All metadata of an object, as on the wire.

    `stored_at` is informational: it is left out if the metadata would be too large for the
    storage (SPEC 4.3). The other arguments are those of `keyturn.metadata.build`.
    """
    encryption = object_metadata.build(wraps, upload_id=upload_id, tag=tag, stored_at=stored_at)
    metadata = {**caller_wire, **encryption}
    if object_metadata.size_bytes(metadata) > object_metadata.METADATA_MAX_BYTES:
        metadata.pop(object_metadata.STORED_AT, None)
    return metadata


def build_tombstone_metadata(sealed: bytes) -> dict[str, str]:
    """All metadata of a tombstone, around the bytes of `seal_tombstone` (SPEC 8.7)."""
    return {object_metadata.ALGO: DELETED, object_metadata.DEK_ADMIN: to_base64(sealed)}
