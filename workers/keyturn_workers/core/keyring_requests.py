"""Which generation of a keyring a request created, and whether it may create one. Pure.

See SPEC 5.4 and 8.1.
"""

from keyturn.crypto.keys import Secret, kek_id
from keyturn.errors import GenerationMismatchError
from keyturn.identifiers import parse_time
from keyturn.messages.requests import RequestedCustomerKey
from keyturn.request_origin import RequestOrigin
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.core.keyring import Generation, Keyring


def check_rotation(keyring: Keyring, *, requested_at: str, expected_generation: int | None) -> None:
    """Check that a rotation may be applied to the keyring.

    Raises:
        GenerationMismatchError: the rotation was requested before the last accepted one, or
            expects another generation.
    """
    current = keyring.current
    if parse_time(requested_at) < parse_time(current.requested_at):
        raise GenerationMismatchError("a rotation requested later was accepted already")
    if expected_generation is not None and expected_generation != current.generation:
        raise GenerationMismatchError(
            f"the project is at generation {current.generation}, not {expected_generation}"
        )


def find_generation(keyring: Keyring, rotation_id: str) -> Generation | None:
    """The generation that this request created; None if it has not created one yet."""
    for entry in (keyring.current, *reversed(keyring.history)):
        if entry.rotation_id == rotation_id:
            return entry
    return None


def is_same_request(
    keyring: Keyring,
    entry: Generation,
    *,
    kek: Secret | None,
    customer_key: KeyName | None = None,
    origin: RequestOrigin,
) -> bool:
    """Check that a request with this generation's id is the one that created it (SPEC 8.1).

    Another publisher of the project may send a known id with its own keys: the answer must not
    make it believe that they were accepted. If the history names no publisher, only the keys are
    compared. `kek` and `customer_key` are None where the request asks for no new one.
    """
    created_by = keyring.origin_of(entry)
    if created_by is not None and created_by.publisher != origin.publisher:
        return False
    entries = (*keyring.history, keyring.current)
    before = next((e for e in reversed(entries) if e.generation < entry.generation), None)
    new_kek_id = None if before and entry.kek_id == before.kek_id else entry.kek_id
    own = entry.customer_key
    is_new = own is not None and (before is None or own.secret_id != before.secret_id)
    new_key = own.name if own is not None and is_new else None
    return (new_kek_id, new_key) == (None if kek is None else kek_id(kek), customer_key)


def has_origin(keyring: Keyring, entry: Generation, origin: RequestOrigin) -> bool:
    """Return True if the keyring records exactly this request as the generation's origin.

    If so, the request's KEK need not be opened (impossible once its intake key was retired).
    """
    return keyring.origin_of(entry) == origin


def find_generation_number(keyring: Keyring, rotation_id: str) -> int | None:
    """The number of the generation that this request created; None if it created none."""
    entry = find_generation(keyring, rotation_id)
    return None if entry is None else entry.generation


def requested_key(named: RequestedCustomerKey | None) -> KeyName | None:
    """The customer key that a request names, if any."""
    return None if named is None else KeyName(named.store, named.key)
