"""The customer secrets that a person gave a command (SPEC 2.6, 14)."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from keyturn.crypto.keys import Secret, customer_secret_id
from keyturn.errors import CustomerKeyUnavailableError
from keyturn.metadata import Envelope, Wraps
from keyturn_workers.core.customer_keys import NO_SECRETS, CustomerKey, CustomerSecrets, KeyName
from keyturn_workers.core.keyring import Keyring

_T = TypeVar("_T")


class GivenSecrets:
    """Opens objects as `CustomerKeys` does, and asks no store."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        self._held = {customer_secret_id(secret): secret for secret in secrets}

    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[_T]]
    ) -> _T:
        """See `CustomerKeys.open_with`. A former secret suffices where nothing else is needed."""
        return await opening(self._of(keyring))

    def require_all(self, keyring: Keyring) -> Mapping[str, Secret]:
        """Return the secret of each generation that needs one and is not cleared, by its id.

        Raises:
            CustomerKeyUnavailableError: one was not given.
        """
        secrets = self._of(keyring)
        secrets.check_complete()
        return secrets.held

    def by_label(self, envelope: Envelope) -> CustomerSecrets:
        """The secrets for an object whose keyring is lost: only its label names what it needs."""
        if not isinstance(envelope, Wraps) or envelope.secret_id is None:
            return NO_SECRETS
        secret_id = envelope.secret_id
        if secret_id not in self._held:
            raise CustomerKeyUnavailableError(
                f"the secret {secret_id} was not given (--customer-secret-file)"
            )
        labeled = CustomerKey(KeyName("", ""), secret_id, secret_sha256=None, wrapped=None)
        return CustomerSecrets({envelope.generation: labeled}, self._held)

    def _of(self, keyring: Keyring) -> CustomerSecrets:
        """The keyring's secrets, as far as they were given: another one by their id is none."""
        given = {
            key.secret_id: secret
            for key in keyring.customer_keys.values()
            if (secret := self._held.get(key.secret_id)) is not None and key.is_secret(secret)
        }
        return replace(keyring.secrets, held=given)
