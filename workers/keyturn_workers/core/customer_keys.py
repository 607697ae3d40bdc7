"""Customer keys as values, and the KEKs that need a customer secret (SPEC 2.6). Pure.

A project's generation may have a customer key: a key in a KMS that the customer controls. It
encrypts a secret, and every wrap at that generation is made under a KEK that needs both the plain
KEK and this secret. Wraps of a generation with a customer key must never be made under a plain KEK:
such a wrap would open without the customer.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Final, Self

from keyturn.crypto.keys import Secret, composite_kek, customer_secret_id
from keyturn.crypto.wraps import Role
from keyturn.errors import CodedError, CustomerKeyUnavailableError


@dataclass(frozen=True, slots=True)
class KeyName:
    """A key in a store: the store's name in the settings, and the store's own name of the key."""

    store: str
    key: str

    def __str__(self) -> str:
        return f"{self.store}/{self.key}"


@dataclass(frozen=True, slots=True)
class CustomerKey:
    """The customer key of a generation.

    `wrapped` is the secret as the store encrypted it, and `secret_sha256` the secret's SHA-256 in
    hex; a clean end of a sweep clears both from the history.
    """

    name: KeyName
    secret_id: str
    secret_sha256: str | None
    wrapped: str | None

    @classmethod
    def of(cls, name: KeyName, secret: Secret, wrapped: str) -> Self:
        """The customer key of a new secret."""
        digest = sha256(secret.reveal()).hexdigest()
        return cls(name, customer_secret_id(secret), digest, wrapped)

    @property
    def is_cleared(self) -> bool:
        """True if the secret cannot be asked for any longer: no wrap needs it."""
        return self.wrapped is None

    def cleared(self) -> "CustomerKey":
        """A copy that only names the key and the secret."""
        return replace(self, secret_sha256=None, wrapped=None)

    def is_secret(self, secret: Secret) -> bool:
        """Return True if this is the generation's secret, and not another one."""
        digest = sha256(secret.reveal()).hexdigest()
        return hmac.compare_digest(digest, self.secret_sha256 or "")


class SecretNeededError(CustomerKeyUnavailableError):
    """A customer secret is not in memory: ask its store for it, and try again.

    Attributes:
        customer_key: The key to ask.
    """

    def __init__(self, customer_key: CustomerKey) -> None:
        # Only commands that ask no store show this.
        super().__init__(
            f"the secret {customer_key.secret_id} of {customer_key.name} was not given "
            "(--customer-secret-file)"
        )
        self.customer_key = customer_key


@dataclass(frozen=True, slots=True)
class CustomerSecrets:
    """The customer keys of a project's generations, and the secrets that are in memory.

    `keys` are by generation, without those that were cleared. `held` and `failed` are by secret id;
    `failed` says why a secret that was asked for is not held.
    """

    keys: Mapping[int, CustomerKey] = field(default_factory=dict)
    held: Mapping[str, Secret] = field(default_factory=dict)
    failed: Mapping[str, CodedError] = field(default_factory=dict)
    # The last KEK that was derived at a generation, and from which: a page has hundreds of wraps.
    _derived: dict[tuple[int, Role, str], tuple[Secret, Secret]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def kek_at(self, generation: int, role: Role, project: str, kek: Secret) -> Secret | None:
        """The KEK of wraps at a generation, given the plain one; None if its secret is not held."""
        customer_key = self.keys.get(generation)
        if customer_key is None:
            return kek
        secret = self.held.get(customer_key.secret_id)
        if secret is None:
            return None
        place = generation, role, project
        derived = self._derived.get(place)
        if derived is None or derived[0] != kek:
            composite = composite_kek(kek, secret, role, project, customer_key.secret_id)
            derived = self._derived[place] = kek, composite
        return derived[1]

    def check_keys(self, keys: Mapping[int, CustomerKey]) -> None:
        """Refuse to judge objects of a keyring by the secrets of another one.

        Raises:
            ValueError: the keyring has other customer keys.
        """
        if self.keys.keys() != keys.keys():
            raise ValueError("these are not the customer secrets of the keyring")

    def require(self, generation: int) -> None:
        """Check that wraps can be made at a generation.

        Raises:
            SecretNeededError: its secret was not asked for yet.
            CustomerKeyRefusedError, CustomerKeyUnavailableError: it was not given.
        """
        customer_key = self.keys.get(generation)
        if customer_key is not None and customer_key.secret_id not in self.held:
            self._raise(customer_key)

    def check_complete(self, likely: int | None = None) -> None:
        """Check that every secret was available, before a failure to open is called final.

        `likely` is the generation whose secret is asked for first. Raises as `require`.
        """
        missing = {g: key for g, key in self.keys.items() if key.secret_id not in self.held}
        asked = [key for key in missing.values() if key.secret_id in self.failed]
        rest = {g: key for g, key in missing.items() if key.secret_id not in self.failed}
        if rest:
            self._raise(rest.get(likely or 0) or rest[max(rest)])
        if asked:
            self._raise(asked[-1])

    def _raise(self, customer_key: CustomerKey) -> None:
        failure = self.failed.get(customer_key.secret_id)
        if failure is None:
            raise SecretNeededError(customer_key)
        raise type(failure)(failure.detail)


NO_SECRETS: Final = CustomerSecrets()
"""Those of a project without customer keys."""
