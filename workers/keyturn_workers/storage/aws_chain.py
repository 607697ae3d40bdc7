"""The bucket's URL and the credentials by AWS's own rules, with botocore (SPEC 11)."""

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from botocore.exceptions import BotoCoreError, ClientError

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn.s3 import describe_credential_failure, new_session, open_client
from keyturn.settings import S3Settings
from keyturn_workers.storage.credentials import Credentials

if TYPE_CHECKING:
    from aiobotocore.credentials import AioCredentials


@dataclass(frozen=True, slots=True)
class ChainCredentials:
    """The credentials of the standard AWS chain. botocore refreshes temporary ones."""

    _credentials: "AioCredentials"

    async def current(self) -> Credentials:
        """Return the credentials to sign with now.

        Raises:
            StorageUnavailableError: the credential service cannot be reached, or refuses.
        """
        try:
            found = await self._credentials.get_frozen_credentials()
        except ClientError as exc:
            raise StorageUnavailableError(
                "credentials: the credential service refuses them"
            ) from exc
        except (aiohttp.ClientError, BotoCoreError, OSError) as exc:
            problem = describe_credential_failure(exc) or "the credential service cannot be reached"
            raise StorageUnavailableError(f"credentials: {problem}") from exc
        if found.access_key is None or found.secret_key is None:
            raise StorageUnavailableError("credentials: the AWS chain gives no access key")
        return Credentials(found.access_key, found.secret_key, found.token)


async def find_bucket(
    settings: S3Settings, tls: ssl.SSLContext | None
) -> tuple[str, ChainCredentials]:
    """Return the bucket's URL, which ends with a slash, and the credentials.

    The URL follows botocore's rules: virtual host, region, partition and endpoint.

    Raises:
        SettingsError: the standard AWS chain has no credentials.
    """
    session = new_session(settings)
    # The stubs do not know that this is a coroutine.
    credentials: AioCredentials | None = await session.get_credentials()  # type: ignore[misc]
    if credentials is None:
        raise SettingsError(
            "no S3 credentials: set KEYTURN_S3_ACCESS_KEY_ID and KEYTURN_S3_SECRET_ACCESS_KEY, "
            "or provide credentials through the standard AWS chain"
        )
    async with open_client(settings, session=session, max_connections=1, tls=tls) as client:
        signed = await client.generate_presigned_url(
            "get_object", Params={"Bucket": settings.s3_bucket, "Key": "k"}
        )
    parts = urlsplit(signed)
    return f"{parts.scheme}://{parts.netloc}{parts.path.removesuffix('k')}", ChainCredentials(
        credentials
    )
