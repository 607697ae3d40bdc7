"""The metadata of an object: parse and build (SPEC 4.3 to 4.6). Pure; opens no wrap.

`parse` classifies an object by the claim of its metadata. Only the wraps and the header prove the
claim (`keyturn_workers.pipeline.objects`); labels are hints.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.errors import MessageError
from email.header import decode_header, make_header
from typing import Final

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.crypto.wraps import UPLOAD_TAG_BYTES
from keyturn.errors import CorruptObjectError, MalformedRequestError, UnknownAlgorithmError
from keyturn.identifiers import (
    format_time,
    has_control_characters,
    is_short_name,
    is_uuid,
    parse_time,
)

COBBLESTONE: Final = "Cobblestone-256"
DELETED: Final = "deleted"

ALGO: Final = "enc-algo"
DEK_USER: Final = "enc-dek-user"
DEK_ADMIN: Final = "enc-dek-admin"
KEK_USER: Final = "enc-kek-user"
KEK_ADMIN: Final = "enc-kek-admin"
UPLOAD: Final = "enc-upload"
UPLOAD_TAG: Final = "enc-upload-tag"
STORED_AT: Final = "enc-stored-at"
OWN_PREFIX: Final = "enc-"
OWN_NAMES: Final = frozenset(
    {ALGO, DEK_USER, DEK_ADMIN, KEK_USER, KEK_ADMIN, UPLOAD, UPLOAD_TAG, STORED_AT}
)
"""Every `enc-` name of SPEC 4.3."""

_TOMBSTONE_NAMES: Final = frozenset({ALGO, DEK_ADMIN})

METADATA_MAX_BYTES: Final = 2048
"""S3's limit of names and values together, counted without `x-amz-meta-`."""
CALLER_MAX_BYTES: Final = 1024
CONTENT_TYPE_MAX_BYTES: Final = 1024
_DECODED_MAX_CHARACTERS: Final = 4 * CALLER_MAX_BYTES

_CALLER_NAME = re.compile(r"[a-z0-9-]+")
_KEK_USER = re.compile(r"([1-9][0-9]{0,17}):([0-9a-f]{16})(?::([0-9a-f]{16}))?")
_PRINTABLE_ASCII = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True)
class Wraps:
    """The two wraps of a DEK and their labels, as an object's metadata carries them.

    `secret_id` names the customer secret that they also need; None if they need none.
    `unknown_names` are the result of `unknown_names`, and are never written.
    """

    algorithm: str
    user: bytes
    admin: bytes
    generation: int
    kek_id: str
    master_key: str
    secret_id: str | None = None
    unknown_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A deleted key (SPEC 8.7). `unknown_names` as of `Wraps`."""

    sealed: bytes
    unknown_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plaintext:
    """An object without any envelope (SPEC 4.5)."""


Envelope = Wraps | Tombstone | Plaintext


def parse(metadata: Mapping[str, str]) -> Envelope:
    """Classify an object by its metadata.

    Raises:
        UnknownAlgorithmError: `enc-algo` is not one of SPEC 4; its value is in the detail.
        CorruptObjectError: names or values are missing or unreadable.
    """
    algorithm = metadata.get(ALGO)
    if algorithm is None:
        if any(name.startswith(OWN_PREFIX) and name != UPLOAD for name in metadata):
            raise CorruptObjectError("enc-algo is missing")
        return Plaintext()
    if algorithm == DELETED:
        return Tombstone(_wrap(metadata, DEK_ADMIN), tuple(unknown_names(metadata)))
    if algorithm == COBBLESTONE:
        return _wraps(algorithm, metadata)
    raise UnknownAlgorithmError(ascii(algorithm)[1:-1][:100])


def _wraps(algorithm: str, metadata: Mapping[str, str]) -> Wraps:
    label = _KEK_USER.fullmatch(metadata.get(KEK_USER, ""))
    if label is None:
        raise CorruptObjectError(f"{KEK_USER} is missing or unreadable")
    return Wraps(
        algorithm=algorithm,
        user=_wrap(metadata, DEK_USER),
        admin=_wrap(metadata, DEK_ADMIN),
        generation=int(label[1]),
        kek_id=label[2],
        master_key=metadata.get(KEK_ADMIN, ""),
        secret_id=label[3],
        unknown_names=tuple(unknown_names(metadata)),
    )


def unknown_names(metadata: Mapping[str, str]) -> list[str]:
    """Return the `enc-` names that SPEC 4.3, or 8.7 for a tombstone, does not list, sorted.

    A name with an impossible value counts, too: a bucket writer can keep a wrap of an earlier KEK
    anywhere. A rewrap leaves them out.
    """
    known = _TOMBSTONE_NAMES if metadata.get(ALGO) == DELETED else OWN_NAMES
    return sorted(
        name
        for name, value in metadata.items()
        if name.startswith(OWN_PREFIX) and (name not in known or _is_impossible(name, value))
    )


def _is_impossible(name: str, value: str) -> bool:
    if name == UPLOAD:
        return not is_uuid(value)
    if name == UPLOAD_TAG:
        return _tag(value) is None
    return name == STORED_AT and _time(value) is None


def _wrap(metadata: Mapping[str, str], name: str) -> bytes:
    try:
        return from_base64(metadata[name])
    except KeyError as exc:
        raise CorruptObjectError(f"{name} is missing") from exc
    except ValueError as exc:
        raise CorruptObjectError(f"{name} is not base64") from exc


def build(
    wraps: Wraps,
    *,
    upload_id: str | None,
    tag: str | None = None,
    stored_at: datetime | None = None,
) -> dict[str, str]:
    """Return the `enc-` names of an object with these wraps (SPEC 4.3).

    Args:
        wraps: both, with their labels.
        upload_id: of the upload that stored the object.
        tag: as `format_upload_tag` writes it; a rewrap keeps it unchanged.
        stored_at: when the object was stored, if rewraps have changed its `Last-Modified`.
    """
    if not is_short_name(wraps.master_key):
        raise ValueError("a master key's id has 1 to 32 characters of a-z, 0-9 and -")
    secret = "" if wraps.secret_id is None else f":{wraps.secret_id}"
    built = {
        ALGO: wraps.algorithm,
        DEK_USER: to_base64(wraps.user),
        DEK_ADMIN: to_base64(wraps.admin),
        KEK_USER: f"{wraps.generation}:{wraps.kek_id}{secret}",
        KEK_ADMIN: wraps.master_key,
    }
    if upload_id is not None:
        built[UPLOAD] = upload_id
    if tag is not None:
        built[UPLOAD_TAG] = tag
    if stored_at is not None:
        built[STORED_AT] = format_time(stored_at)
    return built


def size_bytes(metadata: Mapping[str, str]) -> int:
    """Return the bytes that S3 counts against `METADATA_MAX_BYTES`."""
    return sum(len(name.encode()) + len(value.encode()) for name, value in metadata.items())


def format_upload_tag(tag: bytes) -> str:
    """Return the value of `enc-upload-tag` for the tag of `keyturn.crypto.upload_tag`."""
    return to_base64(tag)


def upload_tag(metadata: Mapping[str, str]) -> bytes | None:
    """Return the tag by which an upload recognizes its own object; None if there is none.

    A malformed value gives empty bytes, which equal no tag.
    """
    value = metadata.get(UPLOAD_TAG)
    return None if value is None else _tag(value) or b""


def _tag(value: str) -> bytes | None:
    try:
        tag = from_base64(value)
    except ValueError:
        return None
    return tag if len(tag) == UPLOAD_TAG_BYTES else None


def stored_at(metadata: Mapping[str, str], last_modified: datetime) -> datetime | None:
    """Return when the object was stored, if a rewrap recorded it (SPEC 4.3).

    Not authenticated: a malformed time, or one later than the storage's own `last_modified`, is
    ignored.
    """
    instant = _time(metadata.get(STORED_AT, ""))
    return instant if instant is not None and instant <= last_modified else None


def _time(value: str) -> datetime | None:
    try:
        return parse_time(value)
    except ValueError:
        return None


def encode_caller_metadata(caller: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's own metadata as sent to the storage (SPEC 4.3).

    Raises:
        MalformedRequestError: a name that is not allowed, a control character in a
            value, or more than 1 KiB of names and values on the wire.
    """
    wire = {check_caller_metadata_name(name): _encode(value) for name, value in caller.items()}
    size_bytes = sum(len(name) + len(value) for name, value in wire.items())
    if size_bytes > CALLER_MAX_BYTES:
        raise MalformedRequestError(
            f"metadata has {size_bytes} bytes on the wire, at most {CALLER_MAX_BYTES} are allowed"
        )
    return wire


def check_caller_metadata_name(name: str) -> str:
    """Return the name if a caller may use it.

    Raises:
        MalformedRequestError: other characters than a-z, 0-9 and -, or an `enc-` name.
    """
    if _CALLER_NAME.fullmatch(name) is None:
        raise MalformedRequestError("metadata names consist of a-z, 0-9 and - only")
    if name.startswith(OWN_PREFIX):
        raise MalformedRequestError("metadata names beginning with enc- are Keyturn's own")
    return name


def check_content_type(content_type: str) -> str:
    """Return the content type if it can be a header on one line.

    HTTP does not keep spaces around it; an empty one counts as none.

    Raises:
        MalformedRequestError: control characters, others that a header does not carry
            unchanged (anything but ASCII), or more than 1 KiB.
    """
    if len(content_type) > CONTENT_TYPE_MAX_BYTES:
        raise MalformedRequestError(f"content_type has at most {CONTENT_TYPE_MAX_BYTES} characters")
    if _PRINTABLE_ASCII.fullmatch(content_type) is None:
        raise MalformedRequestError("content_type is printable ASCII")
    return content_type


def _encode(value: str) -> str:
    if has_control_characters(value):
        raise MalformedRequestError("metadata values have no control characters")
    plain = (
        _PRINTABLE_ASCII.fullmatch(value) is not None
        and value == value.strip(" ")
        and "=?" not in value
    )
    if plain:
        return value
    try:
        return f"=?utf-8?b?{to_base64(value.encode())}?="
    except UnicodeEncodeError as exc:
        raise MalformedRequestError("metadata values must be valid UTF-8") from exc


def decode_caller_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the caller's own metadata of a stored object, decoded.

    A value that is not valid RFC 2047 is returned unchanged: it is not authenticated, and
    another program may have written it.
    """
    own = {n: v for n, v in metadata.items() if not n.startswith(OWN_PREFIX)}
    return {name: _decode(value) for name, value in own.items()}


def _decode(value: str) -> str:
    # Decoding takes time quadratic in the length; no value of ours is that long.
    if "=?" not in value or len(value) > _DECODED_MAX_CHARACTERS:
        return value
    try:
        return str(make_header(decode_header(value)))
    except (MessageError, LookupError, ValueError):
        return value
