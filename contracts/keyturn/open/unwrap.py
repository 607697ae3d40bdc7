"""The DEK that a project's API key opens, from an object's metadata alone (SPEC 4). Pure.

A reader without the operator's keys and without the keyring has only the user wrap. So it opens no
plaintext object, which only the keyring can allow (SPEC 4.5).
"""

from collections.abc import Mapping

from keyturn.crypto.keys import Kek, kek_id
from keyturn.crypto.wraps import unwrap_dek
from keyturn.errors import (
    CorruptObjectError,
    NotFoundError,
    NoUsableWrapError,
    SealError,
)
from keyturn.metadata import Plaintext, Tombstone, Wraps, parse


def user_dek(metadata: Mapping[str, str], kek: Kek, *, project: str, object_key: str) -> bytes:
    """Return the DEK of a Cobblestone-256 object, by its user wrap.

    Args:
        metadata: The object's `enc-` names.
        kek: The project's user KEK.
        project: The project's id.
        object_key: The object's key, without its project.

    Raises:
        NoUsableWrapError: the user wrap does not open under this KEK for this object.
        CorruptObjectError: the metadata is not an encrypted object's.
        UnknownAlgorithmError: `enc-algo` is not one of SPEC 4.
        NotFoundError: the object was deleted.
    """
    wraps = parse(metadata)
    if isinstance(wraps, Tombstone):
        raise NotFoundError("the object was deleted")
    if isinstance(wraps, Plaintext):
        raise CorruptObjectError("the object is not encrypted: only the gateway serves it")
    try:
        return unwrap_dek(
            kek,
            "user",
            algorithm=wraps.algorithm,
            project=project,
            object_key=object_key,
            generation=wraps.generation,
            wrap=wraps.user,
        )
    except SealError as exc:
        raise NoUsableWrapError(_why(wraps, kek)) from exc


def _why(wraps: Wraps, kek: Kek) -> str:
    # The label authorizes nothing, but it explains the usual mistakes.
    if kek_id(kek) == wraps.kek_id:
        return "the wrap is not of this project and object key"
    return (
        "another API key or pepper than the one that this metadata was written under: "
        "after a rotation, get a new link and use the new API key"
    )
