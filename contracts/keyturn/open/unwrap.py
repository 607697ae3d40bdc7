"""The DEK that a project's API key opens, from an object's metadata alone (SPEC 4). Pure.

A reader without the operator's keys and without the keyring has only the user wrap. So it opens no
plaintext object, which only the keyring can allow (SPEC 4.5).
"""

from collections.abc import Collection, Iterator, Mapping

from keyturn.crypto.keys import Kek, Secret, composite_kek, customer_secret_id, kek_id
from keyturn.crypto.wraps import unwrap_dek
from keyturn.errors import (
    CorruptObjectError,
    NotFoundError,
    NoUsableWrapError,
    SealError,
)
from keyturn.metadata import Plaintext, Tombstone, Wraps, parse


def user_dek(
    metadata: Mapping[str, str],
    kek: Kek,
    *,
    project: str,
    object_key: str,
    customer_secrets: Collection[Secret] = (),
) -> bytes:
    """Return the DEK of a Cobblestone-256 object, by its user wrap.

    Args:
        metadata: The object's `enc-` names.
        kek: The project's user KEK.
        project: The project's id.
        object_key: The object's key, without its project.
        customer_secrets: The customer secrets that the reader has, 32 bytes each (SPEC 2.6).

    Raises:
        NoUsableWrapError: the user wrap does not open for this object, neither under this KEK nor
            under it and one of the secrets.
        CorruptObjectError: the metadata is not an encrypted object's.
        UnknownAlgorithmError: `enc-algo` is not one of SPEC 4.
        NotFoundError: the object was deleted.
    """
    wraps = parse(metadata)
    if isinstance(wraps, Tombstone):
        raise NotFoundError("the object was deleted")
    if isinstance(wraps, Plaintext):
        raise CorruptObjectError("the object is not encrypted: only the gateway serves it")
    secrets = {customer_secret_id(secret): secret for secret in customer_secrets}
    for candidate in _keks(wraps, kek, project, secrets):
        try:
            return unwrap_dek(
                candidate,
                "user",
                algorithm=wraps.algorithm,
                project=project,
                object_key=object_key,
                generation=wraps.generation,
                wrap=wraps.user,
            )
        except SealError:
            continue
    raise NoUsableWrapError(_why(wraps, kek, secrets))


def _keks(wraps: Wraps, kek: Kek, project: str, secrets: Mapping[str, Secret]) -> Iterator[Kek]:
    """Yield what the wrap may be under, the KEK that its label names first: labels are hints."""
    named = wraps.secret_id
    for secret_id in dict.fromkeys((named, None, *secrets)):
        if secret_id is None:
            yield kek
        elif secret_id in secrets:
            yield composite_kek(kek, secrets[secret_id], "user", project, secret_id)


def _why(wraps: Wraps, kek: Kek, secrets: Mapping[str, Secret]) -> str:
    # The label authorizes nothing, but it explains the usual mistakes.
    if wraps.secret_id is not None and wraps.secret_id not in secrets:
        return (
            f"the object also needs the customer secret {wraps.secret_id}: decrypt it with the "
            "customer's KMS"
        )
    if kek_id(kek) == wraps.kek_id:
        return "the wrap is not of this project and object key"
    return (
        "another API key or pepper than the one that this metadata was written under: "
        "after a rotation, get a new link and use the new API key"
    )
