"""The URIs of master keys that are held elsewhere (SPEC 2.2, 11). Pure.

    pkcs11:token=keyturn;object=master-m2?module-path=/usr/lib/softhsm/libsofthsm2.so
    awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab
    vault:https://vault.example.com:8200/transit/keyturn-m2?version=1

Each pins one version of one key: a master key's id must never resolve to another key. Errors
name the rule and repeat nothing of the URI, which may contain a PIN.
"""

import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote, unquote_to_bytes, urlsplit

from keyturn.crypto.keys import Secret

_IN_REGION: Final = r"arn:aws[a-z-]*:kms:(?P<region>[a-z]([a-z0-9-]{0,61}[a-z0-9])?):"
_ARN: Final = re.compile(_IN_REGION + r"[0-9]{12}:key/[A-Za-z0-9-]+")
_VAULT_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")
_PKCS11_PATH: Final = frozenset(
    {"token", "manufacturer", "serial", "model", "object", "type", "id", "slot-id"}
)
_PKCS11_QUERY: Final = frozenset({"pin-source", "pin-value", "module-path"})
_MAX_VERSION: Final = 10**9


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """A secret key on a token (RFC 7512). Attributes that are None match anything.

    `location` is the URI without a PIN. `pin_source` is the path of a file with the PIN.
    """

    location: str
    object: str | None = None
    id: bytes | None = None
    token: str | None = None
    serial: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    slot_id: int | None = None
    module_path: str | None = None
    pin_source: str | None = None
    pin: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AwsKmsUri:
    """An HMAC key of AWS KMS by its ARN; never an alias, which can be moved."""

    location: str
    arn: str
    region: str


@dataclass(frozen=True, slots=True)
class VaultUri:
    """One version of a transit key of type `hmac` in HashiCorp Vault or OpenBao.

    `address` is the server's URL without a path; `mount` is the path of the transit engine.
    """

    location: str
    address: str
    mount: str
    key: str
    version: int


KeyUri: TypeAlias = Pkcs11Uri | AwsKmsUri | VaultUri


def parse_key_uri(text: str) -> KeyUri:
    """Parse the URI of a master key.

    Raises:
        ValueError: another scheme, or a URI that does not name exactly one key.
    """
    scheme, _, rest = text.strip().partition(":")
    if scheme == "pkcs11":
        return _pkcs11(rest)
    if scheme == "awskms":
        return _aws(rest)
    if scheme == "vault":
        return _vault(rest)
    raise ValueError(
        "a master key must be the base64 of 32 bytes, or pkcs11:…, awskms:… or vault:…"
    )


def is_key_uri(text: str) -> bool:
    """Return True if a setting is a key's URI. Base64 contains no colon."""
    return ":" in text


def _pkcs11(rest: str) -> Pkcs11Uri:
    path, _, query = rest.partition("?")
    attributes = _attributes(path.split(";"), _PKCS11_PATH)
    extra = _attributes(query.split("&") if query else [], _PKCS11_QUERY)
    if attributes.get("type", b"secret-key") != b"secret-key":
        raise ValueError("a pkcs11: URI must name a secret key (type=secret-key)")
    if "object" not in attributes and "id" not in attributes:
        raise ValueError("a pkcs11: URI must name its key by object=… or id=…")
    slot_id = _text(attributes, "slot-id")
    if slot_id is not None and not slot_id.isdecimal():
        raise ValueError("a pkcs11: URI's slot-id must be a number")
    printable = "&".join(part for part in query.split("&") if not part.startswith("pin-value="))
    pin = extra.get("pin-value")
    return Pkcs11Uri(
        location=f"pkcs11:{path}" + (f"?{printable}" if printable else ""),
        object=_text(attributes, "object"),
        id=attributes.get("id"),
        token=_text(attributes, "token"),
        serial=_text(attributes, "serial"),
        manufacturer=_text(attributes, "manufacturer"),
        model=_text(attributes, "model"),
        slot_id=None if slot_id is None else int(slot_id),
        module_path=_text(extra, "module-path"),
        pin_source=_file_path(_text(extra, "pin-source")),
        pin=None if pin is None else Secret(pin),
    )


def _attributes(parts: list[str], allowed: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or name not in allowed or name in found:
            raise ValueError("a pkcs11: URI has an attribute that is unknown, empty or repeated")
        found[name] = unquote_to_bytes(value)
    return found


def _text(attributes: dict[str, bytes], name: str) -> str | None:
    value = attributes.get(name)
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError(f"a pkcs11: URI's {name} must be UTF-8") from None


def _file_path(source: str | None) -> str | None:
    """RFC 7512 allows a path and a `file:` URI."""
    if source is None or not source.startswith("file:"):
        return source
    return unquote(urlsplit(source).path)


def aws_region(arn: str) -> str | None:
    """The Region of the ARN of a key in AWS KMS; None if it is not one, such as an alias.

    A Region becomes a part of a host's name. So it is one label of such a name: 1 to 63 characters
    of a-z, 0-9 and -, which begin with a letter and do not end with -. Whether AWS has the Region
    is not checked.
    """
    match = _ARN.fullmatch(arn)
    return None if match is None else match["region"]


def begins_with_aws_region(text: str) -> bool:
    """Return True if all ARNs that begin with this text are of one Region."""
    return re.match(_IN_REGION, text) is not None


def _aws(rest: str) -> AwsKmsUri:
    region = aws_region(rest)
    if region is None:
        raise ValueError(
            "an awskms: URI must hold a key's ARN (arn:aws:kms:REGION:ACCOUNT:key/ID), not an alias"
        )
    return AwsKmsUri(f"awskms:{rest}", rest, region)


def _vault(rest: str) -> VaultUri:
    try:
        url = urlsplit(rest)
        query = parse_qsl(url.query, strict_parsing=True, keep_blank_values=True)
        port = url.port
    except ValueError:
        raise ValueError(
            "a vault: URI must have the form vault:https://HOST:PORT/MOUNT/KEY?version=N"
        ) from None
    has_user = "@" in url.netloc
    if url.scheme not in ("http", "https") or not url.hostname or has_user or url.fragment:
        raise ValueError("a vault: URI must begin with vault:https://HOST, without a user")
    segments = url.path.strip("/").split("/")
    if len(segments) < 2 or not all(_VAULT_SEGMENT.fullmatch(segment) for segment in segments):  # noqa: PLR2004  # a mount and a key
        raise ValueError(
            "a vault: URI's path must be the transit engine's mount and the key's name"
        )
    if [name for name, _ in query] != ["version"] or not _is_version(query[0][1]):
        raise ValueError("a vault: URI must pin the key's version: ?version=N")
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return VaultUri(
        location=f"vault:{rest}",
        address=f"{url.scheme}://{host}" + ("" if port is None else f":{port}"),
        mount="/".join(segments[:-1]),
        key=segments[-1],
        version=int(query[0][1]),
    )


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdecimal() and 1 <= int(text) <= _MAX_VERSION
