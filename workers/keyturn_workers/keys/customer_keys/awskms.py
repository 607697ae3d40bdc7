"""Customer keys in AWS KMS: symmetric keys of usage ENCRYPT_DECRYPT, by their ARNs (SPEC 2.6).

The process calls the Region of the ARN with its own identity, which the key's policy admits. The
encryption context binds a secret to its place, and the policy can demand it.
"""

from typing import Any, Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.customer_keys import encryption_context
from keyturn.crypto.keys import Secret
from keyturn.errors import KmsUnavailableError
from keyturn_workers.core.customer_key_stores import AwsKmsStore
from keyturn_workers.core.key_uris import aws_region
from keyturn_workers.core.keyring_record import is_wrapped
from keyturn_workers.keys.customer_keys.port import Place
from keyturn_workers.keys.customer_keys.store_calls import MAX_CONNECTIONS, TIMEOUT_S
from keyturn_workers.keys.master_keys.awskms import AwsKmsClient
from keyturn_workers.keys.master_keys.port import KmsRefusedError

_ALGORITHM: Final = "SYMMETRIC_DEFAULT"


class AwsKmsRegions:
    """The clients of a process, which all stores share: one for each Region in its settings."""

    def __init__(self, endpoint_url: str | None) -> None:
        self._endpoint_url = endpoint_url
        self._clients: dict[str, AwsKmsClient] = {}

    def client(self, region: str) -> AwsKmsClient:
        """The Region's client. Contacts nothing."""
        client = self._clients.get(region)
        if client is None:
            client = self._clients[region] = AwsKmsClient(
                region,
                self._endpoint_url,
                timeout_s=TIMEOUT_S,
                max_connections=MAX_CONNECTIONS,
                share=True,
            )
        return client

    def address(self, region: str) -> str:
        """The server that is called for the Region."""
        return self._endpoint_url or f"kms.{region}"

    async def aclose(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.aclose()


class AwsKmsKeys:
    """A store of kind `awskms`; see `Store`."""

    def __init__(self, settings: AwsKmsStore, regions: AwsKmsRegions) -> None:
        self.settings = settings
        self._regions = regions

    def address(self, key: str) -> str:
        """See `Store.address`."""
        return self._regions.address(_region(key))

    async def encrypt(self, key: str, place: Place, secret: Secret) -> str:
        """See `Store.encrypt`."""
        answer = await self._call("Encrypt", key, place, Plaintext=secret.reveal())
        blob = answer.get("CiphertextBlob")
        wrapped = to_base64(blob) if isinstance(blob, bytes) else ""
        if not is_wrapped(wrapped):
            raise KmsUnavailableError("AWS KMS returned no ciphertext")
        return wrapped

    async def decrypt(self, key: str, place: Place, wrapped: str) -> Secret:
        """See `Store.decrypt`."""
        try:
            blob = from_base64(wrapped)
        except ValueError:
            raise KmsRefusedError("AWS KMS did not encrypt this: it is not base64") from None
        answer = await self._call("Decrypt", key, place, CiphertextBlob=blob)
        plaintext = answer.get("Plaintext")
        if not isinstance(plaintext, bytes):
            raise KmsUnavailableError("AWS KMS returned no plaintext")
        return Secret(plaintext)

    async def check_answers(self, key: str) -> None:
        """See `Store.check_answers`."""
        await self._regions.client(_region(key)).check_answers()

    async def aclose(self) -> None:
        """See `Store.aclose`."""
        await self._regions.aclose()

    async def _call(
        self, operation: str, key: str, place: Place, **parameters: object
    ) -> dict[str, Any]:
        answer = await self._regions.client(_region(key)).call(
            operation,
            operation.lower(),
            KeyId=key,
            EncryptionAlgorithm=_ALGORITHM,
            EncryptionContext=encryption_context(place.deployment, place.project, place.secret_id),
            **parameters,
        )
        if answer.get("KeyId") != key:
            raise KmsUnavailableError("AWS KMS returned a response for another key")
        return answer


def _region(key: str) -> str:
    region = aws_region(key)
    if region is None:
        raise KmsUnavailableError("this is not the ARN of a key in AWS KMS")
    return region
