"""Customer keys that tests hold in memory, and can refuse or take away."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from keyturn.crypto import Secret, customer_secret_id, new_customer_secret
from keyturn.errors import CustomerKeyRefusedError, CustomerKeyUnavailableError, NotPermittedError
from keyturn_workers.core.customer_keys import CustomerKey, SecretNeededError
from keyturn_workers.core.erasure import KeyState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn.errors import CodedError
    from keyturn_workers.core.customer_keys import CustomerSecrets, KeyName
    from keyturn_workers.core.keyring import Keyring

_T = TypeVar("_T")


class HeldCustomerKeys:
    """A `CustomerKeys` whose store is a dictionary.

    Attributes:
        secrets: The secrets, by id.
        refused, away: The keys that refuse, or do not answer, by `store/key`.
        forbidden: The keys that the settings give to no project.
        states: What the store says of keys whose secrets it does not give, by `store/key`.
        asked: The secret ids that were asked for, in order.
    """

    def __init__(self, *secrets: Secret) -> None:
        self.secrets = {customer_secret_id(secret): secret for secret in secrets}
        self.refused: set[str] = set()
        self.away: set[str] = set()
        self.forbidden: set[str] = set()
        self.states: dict[str, KeyState] = {}
        self.asked: list[str] = []

    async def unlock(self, keyring: Keyring) -> CustomerSecrets:
        secrets = keyring.secrets
        customer_key = secrets.keys.get(keyring.current.generation)
        if customer_key is None:
            return secrets
        return replace(secrets, held={customer_key.secret_id: self._ask(customer_key)})

    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[_T]]
    ) -> _T:
        secrets = await self.unlock(keyring)
        while True:
            try:
                return await opening(secrets)
            except SecretNeededError as needed:
                secrets = self._with(secrets, needed.customer_key)

    async def ask(self, keyring: Keyring) -> dict[str, KeyState]:
        keys = keyring.customer_keys.values()
        return {key.secret_id: self.states.get(str(key.name), self._state(key)) for key in keys}

    def _state(self, customer_key: CustomerKey) -> KeyState:
        try:
            self._ask(customer_key)
        except (CustomerKeyRefusedError, CustomerKeyUnavailableError):
            return KeyState.UNDECIDED
        return KeyState.GIVEN

    async def create(self, project: str, name: KeyName) -> CustomerKey:
        if str(name) in self.forbidden:
            raise NotPermittedError(f"{project} may not have {name}")
        secret = new_customer_secret()
        self.secrets[customer_secret_id(secret)] = secret
        wrapped = base64.b64encode(customer_secret_id(secret).encode()).decode()
        made = CustomerKey.of(name, secret, wrapped)
        self._ask(made)
        return made

    def _with(self, secrets: CustomerSecrets, customer_key: CustomerKey) -> CustomerSecrets:
        try:
            held = {**secrets.held, customer_key.secret_id: self._ask(customer_key)}
        except (CustomerKeyRefusedError, CustomerKeyUnavailableError) as exc:
            failed: dict[str, CodedError] = {**secrets.failed, customer_key.secret_id: exc}
            return replace(secrets, failed=failed)
        return replace(secrets, held=held)

    def _ask(self, customer_key: CustomerKey) -> Secret:
        self.asked.append(customer_key.secret_id)
        name = str(customer_key.name)
        if name in self.refused:
            raise CustomerKeyRefusedError(f"{name} is disabled")
        if name in self.away:
            raise CustomerKeyUnavailableError(f"{name} does not answer")
        return self.secrets[customer_key.secret_id]
