"""A master key in AWS KMS: an HMAC_256 key, named by its ARN (SPEC 2.2, 11, 12).

An HMAC key has one key material for its whole life: AWS rotates it neither automatically nor on
demand, and an imported key can only get the same material again. So an ARN pins a version. It is
never an alias, which can be moved to another key.

Credentials come from the standard AWS chain, not from the settings of the bucket. Errors never
repeat AWS's own text: after a wrong signature it shows the signed request with its session token.
"""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from urllib.parse import urlsplit

from aiobotocore.config import AioConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,  # noqa: A004  # botocore's own, no OSError
    ConnectTimeoutError,
    HTTPClientError,
    ReadTimeoutError,
)
from botocore.loaders import Loader, create_loader
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keyturn.crypto.keys import Secret, expand_message
from keyturn.errors import KmsUnavailableError, SettingsError
from keyturn.s3 import VerifyingSession, describe_credential_failure, verified_sessions
from keyturn.tls import PeerSettings, describe_connection_failure
from keyturn_workers.core.erasure import KeyState
from keyturn_workers.core.key_uris import AwsKmsUri
from keyturn_workers.keys.master_keys.port import Derivation, KeyDescription, KmsRefusedError
from keyturn_workers.process.settings import KmsSettings

_MAC_ALGORITHM: Final = "HMAC_SHA_256"
_MAC_BYTES: Final = 32
_KEY_SPEC: Final = "HMAC_256"
_KEY_USAGE: Final = "GENERATE_VERIFY_MAC"
_WRAPPING_KEY_BITS: Final = 4096
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_REQUEST_ID_MAX_CHARACTERS: Final = 128
# The second attempt follows a lost connection or a server error: every call may be repeated.
_ATTEMPTS: Final = 2

_EXPIRED: Final = "the AWS credentials are expired"
_UNKNOWN: Final = "AWS does not accept the credentials: unknown access key or token"
_SIGNATURE: Final = (
    "AWS does not accept the signature: wrong secret access key, or this machine's clock"
)
_NO_ROLE: Final = "AWS returned no temporary credentials for the role"
_CREDENTIALS_REFUSED: Final = frozenset({_EXPIRED, _UNKNOWN, _SIGNATURE, _NO_ROLE})
_DISABLED: Final = "the key is disabled in AWS KMS"
_MISSING: Final = "the key does not exist in this account and Region of AWS KMS"
_DELETION: Final = "the key is scheduled for deletion in AWS KMS"
_REFUSALS: Final = {
    "DisabledException": _DISABLED,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "IncompleteSignature": _SIGNATURE,
    "IncompleteSignatureException": _SIGNATURE,
    "InvalidClientTokenId": _UNKNOWN,
    "IncorrectKeyException": "another key in AWS KMS encrypted this",
    "InvalidArnException": "AWS KMS does not know the key by this ARN",
    "InvalidCiphertextException": "the key in AWS KMS did not encrypt this for this place",
    "InvalidSignatureException": _SIGNATURE,
    "MissingAuthenticationToken": _UNKNOWN,
    "MissingAuthenticationTokenException": _UNKNOWN,
    "NotAuthorized": _UNKNOWN,
    "NotFoundException": _MISSING,
    "OptInRequired": _UNKNOWN,
    "RequestExpired": _SIGNATURE,
    "RequestTimeTooSkewed": _SIGNATURE,
    "SignatureDoesNotMatch": _SIGNATURE,
    "UnrecognizedClientException": _UNKNOWN,
}
_WRONG_USAGE: Final = "InvalidKeyUsageException"
_USAGES: Final = {
    "Decrypt": "SYMMETRIC_DEFAULT and ENCRYPT_DECRYPT",
    "Encrypt": "SYMMETRIC_DEFAULT and ENCRYPT_DECRYPT",
}
# AWS has one code for these states and names the state in the text.
_INVALID_STATE: Final = "KMSInvalidStateException"
_STATES: Final = {
    "deletion": _DELETION,
    "import": "the key in AWS KMS has no key material: its import is pending, or it expired",
    "disabled": _DISABLED,
    "": "the key's state in AWS KMS does not allow its use",
}
_KEY_STATES: Final = {
    _DISABLED: KeyState.DISABLED,
    _DELETION: KeyState.PENDING_DELETION,
    _MISSING: KeyState.MISSING,
}
_ACCESS_DENIED: Final = frozenset({"AccessDenied", "AccessDeniedException"})
_THROTTLED: Final = frozenset(
    {
        "LimitExceededException",
        "RequestLimitExceeded",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_FAILED: Final = frozenset(
    {
        "DependencyTimeoutException",
        "InternalFailure",
        "KMSInternalException",
        "KeyUnavailableException",
        "ServiceUnavailable",
        "ServiceUnavailableException",
    }
)
# Also for the servers of the AWS chain that give credentials.
_SERVER: Final = PeerSettings(
    "KEYTURN_AWS_KMS_ENDPOINT_URL and the AWS_… settings", "https://", "AWS_CA_BUNDLE"
)


class AwsKmsMasterKey:
    """A master key that AWS KMS never returns; `settings` has the time limit and endpoint."""

    provider = "awskms"

    def __init__(self, uri: AwsKmsUri, settings: KmsSettings) -> None:
        self._uri = uri
        self._endpoint_url = settings.aws_kms_endpoint_url
        self._client = _client(uri, settings)

    async def derive(self, info: bytes) -> Derivation:
        """Derive by one `GenerateMac`."""
        answer = await self._client.call(
            "GenerateMac",
            "generate_mac",
            KeyId=self._uri.arn,
            MacAlgorithm=_MAC_ALGORITHM,
            Message=expand_message(info),
        )
        _require(answer.get("KeyId") == self._uri.arn, "for another key")
        _require(answer.get("MacAlgorithm") == _MAC_ALGORITHM, "with another MAC algorithm")
        mac = answer.get("Mac")
        if not isinstance(mac, bytes) or len(mac) != _MAC_BYTES:
            raise KmsUnavailableError("AWS KMS returned a MAC that is not 32 bytes")
        return Derivation(Secret(mac), _request_id(answer))

    async def describe(self) -> KeyDescription:
        """Describe the key by `DescribeKey`."""
        metadata = await _metadata(self._client, self._uri)
        return KeyDescription(
            "awskms",
            self._uri.location,
            exportable=False,
            automatic_rotation=False,
            imported=metadata.get("Origin") == "EXTERNAL",
            warnings=(*_warnings(metadata), *_endpoint_warnings(self._endpoint_url)),
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def import_prk(uri: AwsKmsUri, settings: KmsSettings, prk: Secret) -> None:
    """Import a PRK as the key material of an existing key that was created for it.

    The key has `Origin` EXTERNAL and no material yet. The imported material never expires.

    Raises:
        ValueError: the key cannot take this material.
        KmsUnavailableError: AWS KMS did not respond, or refused.
    """
    client = _client(uri, settings)
    try:
        _check_importable(await _metadata(client, uri))
        parameters = await client.call(
            "GetParametersForImport",
            "get_parameters_for_import",
            KeyId=uri.arn,
            WrappingAlgorithm="RSAES_OAEP_SHA_256",
            WrappingKeySpec="RSA_4096",
        )
        _require(parameters.get("KeyId") == uri.arn, "for another key")
        padding = OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
        await client.call(
            "ImportKeyMaterial",
            "import_key_material",
            KeyId=uri.arn,
            ImportToken=parameters.get("ImportToken"),
            EncryptedKeyMaterial=_wrapping_key(parameters).encrypt(prk.reveal(), padding),
            ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE",
        )
    finally:
        await client.aclose()


def _client(uri: AwsKmsUri, settings: KmsSettings) -> "AwsKmsClient":
    return AwsKmsClient(
        uri.region,
        settings.aws_kms_endpoint_url,
        timeout_s=settings.kms_timeout_s,
        max_connections=settings.kms_concurrency,
    )


@dataclass(eq=False, slots=True)
class _Opened:
    """A client of botocore, which generates its methods from a description of the service."""

    client: Any
    connections: AsyncExitStack
    calls: int = 0


class AwsKmsClient:
    """Requests to AWS KMS in one Region, by a client that the first of them opens.

    A client reads the chain of credentials once. So a client whose request was refused is replaced,
    and closed once none of its requests is under way any more. Where keys of several customers
    `share` it, only a refusal of the credentials themselves replaces it: a key that denies access
    must not cost the others their connections.
    """

    def __init__(
        self,
        region: str,
        endpoint_url: str | None,
        *,
        timeout_s: float,
        max_connections: int,
        share: bool = False,
    ) -> None:
        self._region = region
        self._endpoint_url = endpoint_url
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._share = share
        self._opening = asyncio.Lock()
        self._opened: _Opened | None = None

    async def call(self, operation: str, method: str, **parameters: object) -> dict[str, Any]:
        """Send one request, and return the parsed response.

        `operation` is IAM's name, such as `GenerateMac`; `method` is botocore's, `generate_mac`.

        Raises:
            KmsRefusedError: AWS responded, and denies access.
            KmsUnavailableError: there was no usable response.
        """
        opened = None
        try:
            async with self._opening:
                opened = self._opened = self._opened or await self._open()
                opened.calls += 1
            return dict(await getattr(opened.client, method)(**parameters))
        except Exception as exc:  # noqa: BLE001  # a parser's errors have no common base
            failure = describe_failure(exc, operation)
            if opened is self._opened and self._ends_client(exc, failure):
                self._opened = None
            # The cause can show the request with its session token.
            raise failure from None
        finally:
            if opened is not None:
                opened.calls -= 1
                if opened is not self._opened and opened.calls == 0:
                    await opened.connections.aclose()

    async def check_answers(self) -> None:
        """Check that AWS KMS answers these credentials, by a call that names no key.

        Raises:
            KmsUnavailableError: it does not answer, or does not accept the credentials.
        """
        try:
            await self.call("ListKeys", "list_keys", Limit=1)
        except KmsRefusedError as exc:
            if exc.detail in _CREDENTIALS_REFUSED:
                raise  # otherwise they are accepted, and may not list keys

    async def aclose(self) -> None:
        """Close the connections. A later call opens new ones."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.connections.aclose()

    def _ends_client(self, exc: Exception, failure: KmsUnavailableError) -> bool:
        if describe_credential_failure(exc) is not None:
            return True
        is_refusal = isinstance(failure, KmsRefusedError)
        return is_refusal and (not self._share or failure.detail in _CREDENTIALS_REFUSED)

    async def _open(self) -> _Opened:
        is_plain = (self._endpoint_url or "").startswith("http://")
        config = AioConfig(
            retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
            connect_timeout=self._timeout_s,
            read_timeout=self._timeout_s,
            max_pool_connections=self._max_connections,
            tcp_keepalive=True,
            # AWS_ENDPOINT_URL is often that of an S3 server, and no KEK or secret may go there.
            ignore_configured_endpoint_urls=True,
            **({} if is_plain else {"http_session_cls": verified_sessions()}),
        )
        session = VerifyingSession()
        session.register_component("data_loader", await asyncio.to_thread(_data_loader))
        connections = AsyncExitStack()
        client = await connections.enter_async_context(
            session.create_client(
                "kms",
                region_name=self._region,
                endpoint_url=self._endpoint_url,
                config=config,
            )
        )
        return _Opened(client, connections)


@cache
def _data_loader() -> Loader:
    """Botocore's description of the service, read once per process: it takes a while."""
    loader: Loader = create_loader()
    for name in ("service-2", "endpoint-rule-set-1"):
        loader.load_service_model("kms", name)
    return loader


def describe_failure(exc: Exception, operation: str) -> KmsUnavailableError:
    """Say in one line, without secrets, why an operation of AWS KMS failed.

    The result is a `KmsRefusedError` if AWS responded, and denies access. `exc` is aiobotocore's
    error, or a `SettingsError` if the credentials would come from a server that is not allowed.
    `operation` is IAM's name, such as `GenerateMac`.
    """
    if isinstance(exc, ClientError):
        return _describe_error(exc, operation)
    if isinstance(exc, SettingsError):
        return KmsUnavailableError(str(exc))
    if (problem := describe_credential_failure(exc)) is not None:
        # The source of credentials may be out of reach: that revokes no access.
        return KmsUnavailableError(f"no AWS credentials: {problem}")
    # These include EndpointConnectionError and the timeouts of connecting and reading.
    if isinstance(exc, (ConnectionError, HTTPClientError, OSError)):
        problem = describe_connection_failure(exc, _SERVER) or "the connection was lost"
        if isinstance(exc, (ConnectTimeoutError, ReadTimeoutError)):
            problem = "it did not respond in time"
        return KmsUnavailableError(f"AWS KMS cannot be reached ({problem})")
    name = type(exc).__name__  # unexpected: a bug report needs it
    if isinstance(exc, BotoCoreError):
        return KmsUnavailableError(f"the call to AWS KMS failed ({name})")
    # On a malformed response the parser can raise any exception.
    return KmsUnavailableError(f"AWS KMS returned an unreadable response ({name})")


def _describe_error(exc: ClientError, operation: str) -> KmsUnavailableError:
    error = exc.response.get("Error", {})
    # JSON that is not a KMS error can have any values here.
    code, message = str(error.get("Code", "")), str(error.get("Message", "")).lower()
    if exc.operation_name != operation:  # the security token service
        kind = KmsUnavailableError if code in _THROTTLED | _FAILED else KmsRefusedError
        return kind(_NO_ROLE)
    if code in _ACCESS_DENIED:
        return KmsRefusedError(
            f"AWS KMS denied access: these credentials are not allowed kms:{operation} on this key"
        )
    if code == _WRONG_USAGE:
        usage = _USAGES.get(operation, f"{_KEY_SPEC} and {_KEY_USAGE}")
        return KmsRefusedError(f"the key in AWS KMS is not of {usage}")
    if code == _INVALID_STATE:
        text = next(text for word, text in _STATES.items() if word in message)
        # The others are the key's own; this one is also a custom key store's that is disconnected.
        is_refusal = text != _STATES[""]
        state = _KEY_STATES.get(text)
        return KmsRefusedError(text, key_state=state) if is_refusal else KmsUnavailableError(text)
    if code in _REFUSALS:
        text = _REFUSALS[code]
        return KmsRefusedError(text, key_state=_KEY_STATES.get(text))
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    text = f"AWS KMS refused the request (status {status if isinstance(status, int) else '?'})"
    if code in _THROTTLED:
        text = "AWS KMS is throttling: too many requests for this account and Region"
    elif code in _FAILED:
        text = "AWS KMS cannot use the key at the moment"
    return KmsUnavailableError(text)


def _request_id(answer: dict[str, Any]) -> str | None:
    """AWS's id of the request, as in CloudTrail; None if it is not a short line."""
    metadata = answer.get("ResponseMetadata")
    value = metadata.get("RequestId") if isinstance(metadata, dict) else None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable():
        return None
    return value if 1 <= len(value) <= _REQUEST_ID_MAX_CHARACTERS else None


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001  # reads as a sentence
    if not condition:
        raise KmsUnavailableError(f"AWS KMS returned a response {otherwise}")


async def _metadata(client: AwsKmsClient, uri: AwsKmsUri) -> dict[str, Any]:
    answer = await client.call("DescribeKey", "describe_key", KeyId=uri.arn)
    metadata = answer.get("KeyMetadata")
    if not isinstance(metadata, dict) or metadata.get("Arn") != uri.arn:
        raise KmsUnavailableError("AWS KMS returned a response for another key")
    return metadata


def _warnings(metadata: dict[str, Any]) -> list[str]:
    warnings = []
    if metadata.get("KeySpec") != _KEY_SPEC or metadata.get("KeyUsage") != _KEY_USAGE:
        warnings.append(f"not a key of spec {_KEY_SPEC} and usage {_KEY_USAGE}")
    if metadata.get("KeyState") != "Enabled":
        warnings.append(f"the key's state is {metadata.get('KeyState')}, not Enabled")
    if metadata.get("ExpirationModel") == "KEY_MATERIAL_EXPIRES":
        warnings.append(
            f"the imported key material expires at {metadata.get('ValidTo')}: AWS deletes it then"
        )
    if metadata.get("MultiRegion"):
        warnings.append("a multi-Region key: replicas in other Regions hold the same key material")
    return warnings


def _endpoint_warnings(url: str | None) -> list[str]:
    if url is None or not url.startswith("http:") or urlsplit(url).hostname in _LOOPBACK:
        return []
    return ["the endpoint is http: the network can read the KEKs"]


def _check_importable(metadata: dict[str, Any]) -> None:
    if metadata.get("KeySpec") != _KEY_SPEC or metadata.get("KeyUsage") != _KEY_USAGE:
        raise ValueError(f"the key is not of spec {_KEY_SPEC} and usage {_KEY_USAGE}")
    if metadata.get("Origin") != "EXTERNAL":
        raise ValueError("AWS KMS imports only into a key that was created with --origin EXTERNAL")
    if metadata.get("KeyState") != "PendingImport":
        raise ValueError(
            f"the key has key material already, or cannot take it: {metadata.get('KeyState')}"
        )


def _wrapping_key(parameters: dict[str, Any]) -> RSAPublicKey:
    try:
        key = load_der_public_key(parameters.get("PublicKey") or b"")
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, RSAPublicKey) or key.key_size != _WRAPPING_KEY_BITS:
        raise KmsUnavailableError("AWS KMS returned no 4096-bit RSA wrapping key")
    return key
