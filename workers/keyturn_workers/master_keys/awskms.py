"""A master key in AWS KMS: an HMAC_256 key, named by its ARN (SPEC 2.2, 11).

HMAC keys have one key material for their whole life: AWS rotates them neither automatically nor on
demand, and of an imported one the same material alone can be imported again. So an ARN pins a
version. It is never an alias, which can be moved to another key.
"""

from typing import Any, Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from keyturn.crypto import Secret, expand_message
from keyturn.errors import KmsUnavailableError
from keyturn_workers.key_uris import AwsKmsUri
from keyturn_workers.master_keys.aws_client import AwsKmsClient, request_id
from keyturn_workers.master_keys.port import Derivation, KeyDescription
from keyturn_workers.settings import KmsSettings

_MAC_ALGORITHM: Final = "HMAC_SHA_256"
_MAC_BYTES: Final = 32
_KEY_SPEC: Final = "HMAC_256"
_KEY_USAGE: Final = "GENERATE_VERIFY_MAC"
_WRAPPING_KEY_BITS: Final = 4096
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class AwsKmsMasterKey:
    """A master key that AWS KMS holds and never returns.

    Args:
        uri: The key's ARN.
        settings: Time limit and endpoint. Credentials come from the standard AWS chain.
    """

    provider = "awskms"

    def __init__(self, uri: AwsKmsUri, settings: KmsSettings) -> None:
        self._uri = uri
        self._endpoint_url = settings.aws_kms_endpoint_url
        self._client = AwsKmsClient(uri, settings)

    async def derive(self, info: bytes) -> Derivation:
        """Derive by one `GenerateMac`."""
        answer = await self._client.call(
            "GenerateMac",
            "generate_mac",
            MacAlgorithm=_MAC_ALGORITHM,
            Message=expand_message(info),
        )
        _require(answer.get("KeyId") == self._uri.arn, "for another key")
        _require(answer.get("MacAlgorithm") == _MAC_ALGORITHM, "with another MAC algorithm")
        mac = answer.get("Mac")
        if not isinstance(mac, bytes) or len(mac) != _MAC_BYTES:
            raise KmsUnavailableError("AWS KMS returned a MAC that is not 32 bytes")
        return Derivation(Secret(mac), request_id(answer))

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

    The key has `Origin` EXTERNAL and no material yet. What is imported never expires.

    Raises:
        ValueError: the key is not one that takes this material.
        KmsUnavailableError: AWS KMS did not answer, or refused.
    """
    client = AwsKmsClient(uri, settings)
    try:
        _check_importable(await _metadata(client, uri))
        parameters = await client.call(
            "GetParametersForImport",
            "get_parameters_for_import",
            WrappingAlgorithm="RSAES_OAEP_SHA_256",
            WrappingKeySpec="RSA_4096",
        )
        _require(parameters.get("KeyId") == uri.arn, "for another key")
        padding = OAEP(mgf=MGF1(SHA256()), algorithm=SHA256(), label=None)
        await client.call(
            "ImportKeyMaterial",
            "import_key_material",
            ImportToken=parameters.get("ImportToken"),
            EncryptedKeyMaterial=_wrapping_key(parameters).encrypt(prk.reveal(), padding),
            ExpirationModel="KEY_MATERIAL_DOES_NOT_EXPIRE",
        )
    finally:
        await client.aclose()


def _require(condition: bool, otherwise: str) -> None:  # noqa: FBT001  # reads as a sentence
    if not condition:
        raise KmsUnavailableError(f"AWS KMS returned a response {otherwise}")


async def _metadata(client: AwsKmsClient, uri: AwsKmsUri) -> dict[str, Any]:
    answer = await client.call("DescribeKey", "describe_key")
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
