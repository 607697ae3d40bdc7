"""The port to a store of customer keys (SPEC 2.6)."""

from dataclasses import dataclass
from typing import Protocol

from keyturn.crypto.keys import Secret
from keyturn_workers.core.customer_key_stores import CustomerKeyStore


@dataclass(frozen=True, slots=True)
class Place:
    """Where a customer secret belongs. A store decrypts it only for the same place."""

    deployment: str
    project: str
    secret_id: str


class Store(Protocol):
    """One store of the settings. Contacts nothing before the first call.

    All calls raise `KmsRefusedError` if the store answered and refuses, and otherwise
    `KmsUnavailableError`: it did not respond, throttled, failed, or its response is invalid. The
    error's text is one line without a secret. `StoreCalls` bounds the calls.
    """

    @property
    def settings(self) -> CustomerKeyStore:
        """As configured."""

    def address(self, key: str) -> str:
        """The server that calls about this key go to."""

    async def encrypt(self, key: str, place: Place, secret: Secret) -> str:
        """Return the secret as the key encrypts it: text that the keyring keeps."""

    async def decrypt(self, key: str, place: Place, wrapped: str) -> Secret:
        """Return what `encrypt` was given. The caller compares it with the expected secret."""

    async def check_answers(self, key: str) -> None:
        """Check that the server of this key answers the same credentials in another matter."""

    async def aclose(self) -> None:
        """Close the connections."""
