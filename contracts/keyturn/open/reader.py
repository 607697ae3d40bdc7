"""`Reader` and `open_object`: open objects without the gateway (SPEC 9.3, 15.2).

An API key never leaves this process: it only derives the user KEK. The storage sees only a
presigned URL.
"""

import ssl
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

from pydantic import SecretStr

from keyturn.api_key import ApiKey, secret_text
from keyturn.crypto.keys import CUSTOMER_SECRET_BYTES, Kek, Secret, user_kek
from keyturn.errors import MalformedRequestError
from keyturn.gateway.links import CiphertextLink
from keyturn.gateway.responses import ByteRange, is_web_address
from keyturn.gateway.transport import (
    CONNECT_TIMEOUT_S,
    IDLE_TIMEOUT_S,
    MAX_CONNECTIONS,
    Transport,
)
from keyturn.identifiers import check_object_key, is_project
from keyturn.open.plaintext import DecryptedObject, Source, open_range, open_whole
from keyturn.open.stored_body import StoredBody
from keyturn.open.unwrap import user_dek


class Reader:
    """Opens the objects of one project by ciphertext links. Made by `connect`.

    Safe for concurrent use. It keeps the project's user KEK, not the API key, and the customer
    secrets that it was given.
    """

    def __init__(
        self,
        transport: Transport,
        project: str,
        kek: Kek,
        customer_secrets: tuple[Secret, ...] = (),
    ) -> None:
        self._transport = transport
        self._project = project
        self._kek = kek
        self._customer_secrets = customer_secrets

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        project: str,
        api_key: ApiKey,
        *,
        pepper: ApiKey = "",
        customer_secrets: Iterable[bytes] = (),
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        idle_timeout_s: float = IDLE_TIMEOUT_S,
        max_connections: int = MAX_CONNECTIONS,
        tls: ssl.SSLContext | None = None,
    ) -> AsyncIterator[Self]:
        """Yield a reader and its connections to the storage.

        Args:
            project: The project's id (SPEC 1).
            api_key: The API key that the links' metadata was written under.
            pepper: The deployment's `KEYTURN_PEPPER`.
            customer_secrets: For a project with a customer key, the secrets that the customer's
                KMS decrypted, 32 bytes each: `keyturn.gateway.Client.keys` has what it needs.
            connect_timeout_s: Seconds to make one connection.
            idle_timeout_s: Seconds without progress after which a request fails.
            max_connections: Connections at once; further requests wait for one.
            tls: The authorities that verify the storage's certificate; the system's by default.

        Raises:
            MalformedRequestError: the project or the API key does not have the form of SPEC 1, or
                a customer secret is not 32 bytes long.
            SettingsError: aiohttp is not installed.
        """
        kek, secrets = _user_kek(project, api_key, pepper), _secrets(customer_secrets)
        async with Transport.open(
            None,
            connect_timeout_s=connect_timeout_s,
            idle_timeout_s=idle_timeout_s,
            max_connections=max_connections,
            tls=tls,
        ) as transport:
            yield cls(transport, project, kek, secrets)

    @asynccontextmanager
    async def open(
        self,
        link: CiphertextLink | Mapping[str, Any],
        object_key: str,
        *,
        start: int = 0,
        length: int | None = None,
    ) -> AsyncIterator[DecryptedObject]:
        """Open an object, or a range of it, for the duration of the block.

        The pieces of `DecryptedObject.chunks` are authentic, but complete only when the iteration
        ends without an error.

        Args:
            link: A ciphertext link of this object, or the gateway's JSON of one.
            object_key: The object's key, 1 to 900 bytes of UTF-8. The wrap is bound to it.
            start: The first byte; a negative one counts from the object's end.
            length: The maximum of bytes, or None for all from `start` on.

        Yields:
            The object: its length, its metadata, and its plaintext as a stream.

        Raises:
            MalformedRequestError: the key, the range or the link is not valid.
            NoUsableWrapError: the API key, the pepper or the object key does not match the link's
                metadata, or the object needs a customer secret that was not given.
            CorruptObjectError: the stored bytes or the metadata do not authenticate.
            UnknownAlgorithmError: the object is of a later version.
            NotFoundError: the object was deleted.
            RangeNotSatisfiableError: the object ends before `start`.
            LinkExpiredError: the storage refuses the link.
            ArchivedObjectError: the object must be restored first.
            StorageUnavailableError: the storage does not respond, or fails.
            UnexpectedResponseError: the response is not the storage's.
        """
        url, metadata = _parts(link)
        try:
            span = ByteRange(start, length)
            check_object_key(object_key)
        except ValueError as exc:
            raise MalformedRequestError(str(exc)) from exc
        dek = user_dek(
            metadata,
            self._kek,
            project=self._project,
            object_key=object_key,
            customer_secrets=self._customer_secrets,
        )
        source = Source(StoredBody(self._transport, url), metadata, dek)
        opening = open_whole(source) if span.is_whole else open_range(source, span)
        async with opening as opened:
            yield opened


@asynccontextmanager
async def open_object(
    link: CiphertextLink | Mapping[str, Any],
    *,
    project: str,
    object_key: str,
    api_key: ApiKey,
    pepper: ApiKey = "",
    customer_secrets: Iterable[bytes] = (),
    start: int = 0,
    length: int | None = None,
) -> AsyncIterator[DecryptedObject]:
    """Open one object, or a range of it, by its ciphertext link and the project's API key.

    For several objects, `Reader.connect` shares connections and derives the KEK once.

    Args:
        link: A ciphertext link of this object, or the gateway's JSON of one.
        project: The project's id (SPEC 1).
        object_key: The object's key, 1 to 900 bytes of UTF-8.
        api_key: The API key that the link's metadata was written under.
        pepper: The deployment's `KEYTURN_PEPPER`.
        customer_secrets: As for `Reader.connect`.
        start: The first byte; a negative one counts from the object's end.
        length: The maximum of bytes, or None for all from `start` on.

    Yields:
        The object: its length, its metadata, and its plaintext as a stream.

    Raises:
        CodedError, GatewayError: as `Reader.connect` and `Reader.open`.
    """
    async with (
        Reader.connect(
            project, api_key, pepper=pepper, customer_secrets=customer_secrets
        ) as reader,
        reader.open(link, object_key, start=start, length=length) as opened,
    ):
        yield opened


def _user_kek(project: str, api_key: ApiKey, pepper: ApiKey) -> Kek:
    if not is_project(project):
        raise MalformedRequestError("a project id has 1 to 63 characters of a-z, 0-9 and -")
    try:
        return user_kek(secret_text(api_key), project, secret_text(pepper))
    except ValueError as exc:
        raise MalformedRequestError(str(exc)) from None


def _secrets(given: Iterable[bytes]) -> tuple[Secret, ...]:
    secrets = tuple(given)
    if any(
        not isinstance(secret, bytes) or len(secret) != CUSTOMER_SECRET_BYTES for secret in secrets
    ):
        raise MalformedRequestError(f"a customer secret is {CUSTOMER_SECRET_BYTES} bytes long")
    return tuple(Secret(secret) for secret in secrets)


def _parts(link: CiphertextLink | Mapping[str, Any]) -> tuple[SecretStr, Mapping[str, str]]:
    if isinstance(link, CiphertextLink):
        return SecretStr(link.url), link.metadata
    url, metadata = link.get("url"), link.get("metadata")
    if not isinstance(url, str) or not is_web_address(url):
        raise MalformedRequestError("a ciphertext link has an http or https URL")
    if not isinstance(metadata, Mapping) or not all(
        isinstance(part, str) for item in metadata.items() for part in item
    ):
        raise MalformedRequestError(
            "a ciphertext link needs the object's metadata, as text by name"
        )
    return SecretStr(url), metadata
