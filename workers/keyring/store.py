"""Writing keyrings, only ever by conditional put (SPEC 5.1)."""

from collections.abc import Mapping
from typing import Final

from contracts.errors import StorageUnavailableError
from contracts.names import keyring_key
from contracts.sealing import Secret
from workers.errors import PreconditionError, RefusedError
from workers.keyring.record import Keyring, build
from workers.storage import Headers, IfAbsent, Storage

_RECORD_HEADERS: Final = Headers(metadata={}, content_type="application/json")


async def create(storage: Storage, keyring: Keyring, master_keys: Mapping[str, Secret]) -> bool:
    """Put a project's first keyring; False where one stands already.

    Raises:
        StorageUnavailableError: the outcome is unknown, so read the keyring again: a loser
            of a race gets this from some servers, and a winner whose answer was lost too.
        UnknownMasterKeyError: this process lacks the keyring's master key.
    """
    body = build(keyring, master_keys)
    key = keyring_key(keyring.project)
    try:
        await storage.put(key, body, _RECORD_HEADERS, condition=IfAbsent())
    except PreconditionError:
        return False
    except RefusedError as exc:
        raise StorageUnavailableError("the storage refuses to write a keyring") from exc
    return True
