"""Customer keys in the transit engine of HashiCorp Vault or OpenBao (SPEC 2.6).

A key is of a type that authenticates `associated_data`, which binds a secret to its place. A
version that the customer adds changes nothing: the text of a ciphertext names its own.
"""

from typing import Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.customer_keys import associated_data
from keyturn.crypto.keys import Secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.customer_key_stores import VaultStore
from keyturn_workers.core.erasure import KeyState
from keyturn_workers.core.keyring_record import is_wrapped
from keyturn_workers.core.vault_access import MasterKeyCredentials
from keyturn_workers.keys.customer_keys.port import Place
from keyturn_workers.keys.customer_keys.store_calls import TIMEOUT_S
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from keyturn_workers.keys.master_keys.vault_client import VaultClient

_OK: Final = 200
_BAD_REQUEST: Final = 400
# Both servers' phrases with a status of 400, and their meanings.
_REFUSALS: Final = {
    "encryption key not found": "the key does not exist",
    "soft-deleted": "the key is deleted, but can be restored",
    "disallowed by policy": "the key's version is below its min_decryption_version",
    "authentication failed": "the key did not encrypt this for this place",
    "associated_data": "the key's type does not authenticate associated_data",
}
_KEY_STATES: Final = {
    "encryption key not found": KeyState.MISSING,
    "soft-deleted": KeyState.DISABLED,
}


class VaultKeys:
    """A store of kind `vault`; see `Store`.

    Raises:
        SettingsError: its credentials or its CA file are malformed.
    """

    def __init__(self, name: str, settings: VaultStore, never_sent: MasterKeyCredentials) -> None:
        self.settings = settings
        access = settings.access(name, never_sent)
        self._client = VaultClient(settings.address, access, timeout_s=TIMEOUT_S)

    def address(self, key: str) -> str:  # noqa: ARG002  # one server for all of them
        """See `Store.address`."""
        return self.settings.address

    async def encrypt(self, key: str, place: Place, secret: Secret) -> str:
        """See `Store.encrypt`."""
        wrapped = await self._call(
            "encrypt", key, place, "plaintext", to_base64(secret.reveal()), "ciphertext"
        )
        if not wrapped.startswith("vault:") or not is_wrapped(wrapped):
            raise KmsUnavailableError("Vault's response is not a ciphertext")
        return wrapped

    async def decrypt(self, key: str, place: Place, wrapped: str) -> Secret:
        """See `Store.decrypt`."""
        plaintext = await self._call("decrypt", key, place, "ciphertext", wrapped, "plaintext")
        try:
            return Secret(from_base64(plaintext))
        except ValueError:
            raise KmsUnavailableError("Vault's response is not a plaintext") from None

    async def check_answers(self, key: str) -> None:  # noqa: ARG002  # one server for all of them
        """See `Store.check_answers`."""
        response = await self._client.call("GET", "auth/token/lookup-self")
        if response.status != _OK:
            raise response.failure()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._client.aclose()

    async def _call(
        self, operation: str, key: str, place: Place, name: str, value: str, result: str
    ) -> str:
        body = {
            name: value,
            "associated_data": associated_data(place.deployment, place.project, place.secret_id),
        }
        response = await self._client.call("POST", f"{self.settings.mount}/{operation}/{key}", body)
        if response.status == _BAD_REQUEST:
            for phrase, problem in _REFUSALS.items():
                if response.says(phrase):
                    raise KmsRefusedError(problem, key_state=_KEY_STATES.get(phrase))
        if response.status != _OK:
            raise response.failure()
        answer = response.section("data").get(result)
        if not isinstance(answer, str):
            raise KmsUnavailableError(f"Vault's response has no {result}")
        return answer
