"""The port to customer keys, wherever their stores are (SPEC 2.6)."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar

from keyturn_workers.core.customer_keys import CustomerKey, CustomerSecrets, KeyName
from keyturn_workers.core.erasure import KeyState
from keyturn_workers.core.keyring import Keyring

_T = TypeVar("_T")


class CustomerKeys(Protocol):
    """The customer keys that this process may ask for.

    The implementation is in `keyturn_workers.keys.customer_keys`. Projects without a customer key
    cost nothing here. Every method but `create` raises `CustomerKeyRefusedError` or
    `CustomerKeyUnavailableError` if a secret that it needs is not given.
    """

    async def unlock(self, keyring: Keyring) -> CustomerSecrets:
        """The keyring's customer secrets, with that of the current generation."""
        ...

    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[_T]]
    ) -> _T:
        """Await `opening` with the keyring's customer secrets, and return its result.

        Without the current generation's secret it is not called. While it raises
        `SecretNeededError`, the former secret that it names is asked for, and it is called again.
        """
        ...

    async def ask(self, keyring: Keyring) -> Mapping[str, KeyState]:
        """What the stores say now of each customer key that is not cleared, by its secret's id.

        Nothing that is in memory answers. Raises nothing: a store that is away decides nothing.
        """
        ...

    async def create(self, project: str, name: KeyName) -> CustomerKey:
        """Make a secret, have the store encrypt it, and check that the store gives it back.

        Raises:
            NotPermittedError: the settings do not give this project this key.
            CustomerKeyRefusedError: the store refuses the key.
            CustomerKeyUnavailableError: it does not answer, or this process lacks the store.
        """
        ...
<<<<<<< HEAD
=======


class GivenSecrets:
    """The `CustomerKeys` of a process that asks no store: it has the secrets that it was given."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        self._held = {customer_secret_id(secret): secret for secret in secrets}

    async def unlock(self, keyring: Keyring) -> CustomerSecrets:
        """See `CustomerKeys.unlock`."""
        secrets = self._secrets(keyring)
        try:
            secrets.require(keyring.current.generation)
        except SecretNeededError as exc:
            raise _not_given(exc) from exc
        return secrets

    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[_T]]
    ) -> _T:
        """See `CustomerKeys.open_with`. A former secret suffices where nothing else is needed."""
        try:
            return await opening(self._secrets(keyring))
        except SecretNeededError as exc:
            raise _not_given(exc) from exc

    def require_all(self, keyring: Keyring) -> Mapping[str, Secret]:
        """Return the secret of each generation that needs one and is not cleared, by its id.

        Raises:
            CustomerKeyUnavailableError: one was not given.
        """
        secrets = self._secrets(keyring)
        try:
            secrets.check_complete()
        except SecretNeededError as exc:
            raise _not_given(exc) from exc
        return secrets.held

    def by_label(self, envelope: Envelope) -> CustomerSecrets:
        """The secrets for an object whose keyring is lost: only its label names what it needs."""
        if not isinstance(envelope, Wraps) or envelope.secret_id is None:
            return NO_SECRETS
        secret_id = envelope.secret_id
        if secret_id not in self._held:
            raise CustomerKeyUnavailableError(f"the secret {secret_id} was not given (--customer-secret-file)")
        labeled = CustomerKey(KeyName("", ""), secret_id, secret_sha256=None, wrapped=None)
        return CustomerSecrets({envelope.generation: labeled}, self._held)

    async def ask(self, keyring: Keyring) -> Mapping[str, KeyState]:
        """See `CustomerKeys.ask`."""
        return {key.secret_id: KeyState.UNDECIDED for key in keyring.customer_keys.values()}

    async def create(self, project: str, name: KeyName) -> CustomerKey:
        """See `CustomerKeys.create`."""
        raise CustomerKeyUnavailableError(f"{name}: this process asks no store, for {project}")

    def _secrets(self, keyring: Keyring) -> CustomerSecrets:
        """The keyring's secrets, as far as they were given: another one by their id is none."""
        keys = keyring.customer_keys
        given = {
            key.secret_id: secret
            for key in keys.values()
            if (secret := self._held.get(key.secret_id)) is not None and key.is_secret(secret)
        }
        return replace(keyring.secrets, held=given)


def _not_given(needed: SecretNeededError) -> CustomerKeyUnavailableError:
    key = needed.customer_key
    return CustomerKeyUnavailableError(
        f"the secret {key.secret_id} of {key.name} was not given (--customer-secret-file)"
    )
>>>>>>> ck-n
