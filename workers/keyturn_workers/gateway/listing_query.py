"""The parameters of a list request, and the size of a listed object (SPEC 1, 4, 9.3). Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import parse_qsl

from keyturn import metadata as object_metadata
from keyturn.crypto import V0_OVERHEAD_BYTES, SealError, plaintext_size
from keyturn.errors import CodedError, MalformedRequestError
from keyturn.identifiers import OBJECT_KEY_MAX_BYTES, has_control_characters
from keyturn.metadata import Plaintext, Tombstone, V0Wraps, Wraps
from keyturn_workers.keyring import Keyring

MAX_ENTRIES: Final = 1000
"""The most entries on one page, and the default."""

# A `next` may be the key of a foreign object, which S3 alone limits.
_AFTER_MAX_BYTES: Final = 1024
_LIMIT: Final = re.compile(r"[1-9][0-9]{0,3}")
_MAX_PARAMETERS: Final = 16


@dataclass(frozen=True, slots=True)
class ListingQuery:
    """The parameters of a list request; `prefix` and `after` are relative to the project."""

    prefix: str = ""
    delimiter: str = ""
    after: str = ""
    limit: int = MAX_ENTRIES

    @classmethod
    def parse(cls, query_string: bytes) -> Self:
        """Parse a request's query.

        Raises:
            MalformedRequestError: an unknown, repeated or invalid parameter.
        """
        values = _parameters(query_string)
        limit = values.get("limit", str(MAX_ENTRIES))
        if _LIMIT.fullmatch(limit) is None or int(limit) > MAX_ENTRIES:
            raise MalformedRequestError(f"limit: must be 1 to {MAX_ENTRIES}")
        query = cls(
            prefix=values.get("prefix", ""),
            delimiter=values.get("delimiter", ""),
            after=values.get("after", ""),
            limit=int(limit),
        )
        if query.delimiter not in ("", "/"):
            raise MalformedRequestError("delimiter: must be '/'")
        if len(query.prefix.encode()) > OBJECT_KEY_MAX_BYTES:
            raise MalformedRequestError(f"prefix: at most {OBJECT_KEY_MAX_BYTES} bytes of UTF-8")
        if has_control_characters(query.prefix):
            raise MalformedRequestError("prefix: cannot contain control characters")
        if len(query.after.encode()) > _AFTER_MAX_BYTES:
            raise MalformedRequestError(f"after: at most {_AFTER_MAX_BYTES} bytes of UTF-8")
        return query

    @property
    def is_empty(self) -> bool:
        """Whether no object key of SPEC 1 can begin with the prefix."""
        *folders, _ = self.prefix.split("/")
        return any(folder in ("", ".", "..") for folder in folders)


def _parameters(query_string: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            query_string.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MAX_PARAMETERS,
        )
    except ValueError:
        raise MalformedRequestError("the query is not valid percent-encoded UTF-8") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        raise MalformedRequestError("the query repeats a parameter")
    if not values.keys() <= {"prefix", "delimiter", "after", "limit"}:
        raise MalformedRequestError(
            "unknown parameter: only prefix, delimiter, after and limit are allowed"
        )
    return values


def needs_head(keyring: Keyring, stored_bytes: int) -> bool:
    """Whether only an object's metadata shows what it is.

    An object without stored bytes is a tombstone, unless another writer made it.
    """
    return stored_bytes == 0 or keyring.plaintext_allowed or keyring.v0_allowed


def encrypted_size(stored_bytes: int) -> int | None:
    """The plaintext's size by the stored size; None if no encrypted object has that one."""
    try:
        return plaintext_size(stored_bytes)
    except SealError:
        return None


def is_tombstone(metadata: Mapping[str, str]) -> bool:
    """Whether these are the metadata of a deleted key."""
    return metadata.get(object_metadata.ALGO) == object_metadata.DELETED


def size_by_metadata(
    keyring: Keyring, metadata: Mapping[str, str], stored_bytes: int
) -> int | None:
    """The plaintext's size by metadata and stored size; None if no read would open the object."""
    try:
        envelope = object_metadata.parse(metadata)
    except CodedError:
        return None
    match envelope:
        case Plaintext():
            return stored_bytes if keyring.plaintext_allowed else None
        case Wraps(algorithm=object_metadata.COBBLESTONE):
            return encrypted_size(stored_bytes)
        case Tombstone():
            return None
        case V0Wraps() if not keyring.v0_allowed:
            return None
    return stored_bytes - V0_OVERHEAD_BYTES if stored_bytes >= V0_OVERHEAD_BYTES else None
