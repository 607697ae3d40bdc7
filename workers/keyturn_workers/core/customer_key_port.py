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
            NotPermittedError: the settings lack the store, or do not give this project this key.
            CustomerKeyRefusedError: the store refuses the key.
            CustomerKeyUnavailableError: it does not answer.
        """
        ...
