"""Links: what is requested, and what a response may hold (SPEC 9.3). Pure.

A link is a secret: it opens its object without the API key. So it must never be in a repr, in
an exception, or in the variables of a frame that an exception passes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from keyturn.errors import MalformedRequestError
from keyturn.gateway.responses import is_web_address
from keyturn.identifiers import parse_time
from keyturn.metadata import ALGO, COBBLESTONE, OWN_PREFIX

LINK_MAX_S: Final = 7 * 24 * 3600
CIPHERTEXT_LINK_MAX_S: Final = 900
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Link:
    """A URL that opens one object, by GET and HEAD, without the API key.

    Attributes:
        url: The URL. Anyone who has it can read the object, so it is not in the repr.
        expires_at: When it ends, in UTC; a rotation ends it earlier.
    """

    url: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class CiphertextLink:
    """A URL of an encrypted object's stored bytes, and the metadata that is needed to open them.

    Attributes:
        url: A presigned URL of the storage. Not in the repr.
        expires_at: When it ends, in UTC; a rotation does not end it earlier.
        metadata: The object's `enc-` metadata as stored, with its sealed keys. Not in the repr.
    """

    url: str = field(repr=False)
    expires_at: datetime
    metadata: Mapping[str, str] = field(repr=False)


def link_request(expires_s: int, *, inline: bool) -> bytes:
    """The body of a request for a link.

    Raises:
        MalformedRequestError: it would not be valid for 1 second to 7 days.
    """
    _check_expires(expires_s, LINK_MAX_S)
    return orjson.dumps({"expires_s": expires_s, "inline": inline})


def ciphertext_link_request(expires_s: int) -> bytes:
    """The body of a request for a link to an object's stored bytes.

    Raises:
        MalformedRequestError: it would not be valid for 1 to 900 seconds.
    """
    _check_expires(expires_s, CIPHERTEXT_LINK_MAX_S)
    return orjson.dumps({"kind": "ciphertext", "expires_s": expires_s})


def _check_expires(expires_s: int, max_s: int) -> None:
    if type(expires_s) is not int or not 1 <= expires_s <= max_s:
        raise MalformedRequestError(f"a link is valid for 1 to {max_s} seconds")


def parse_link(
    document: Mapping[str, Any], project: str, object_key: str, *, inline: bool
) -> Link | None:
    """The link in a response; None if there is none, or it is not the link that was requested.

    The host is not compared: a gateway's public address may differ from the one in use.
    """
    url, expires_at = _url(document), _expiry(document)
    if url is None or expires_at is None or expires_at.microsecond:
        return None
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    token = dict(parameters).get("token", "")
    expected = {"expires": str(int(expires_at.timestamp())), "token": token}
    if inline:
        expected["inline"] = "1"
    is_as_requested = (
        unquote(parts.path).endswith(f"/v1/projects/{project}/objects/{object_key}")
        and sorted(parameters) == sorted(expected.items())
        and _TOKEN.fullmatch(token) is not None
    )
    return Link(url, expires_at) if is_as_requested else None


def parse_ciphertext_link(document: Mapping[str, Any]) -> CiphertextLink | None:
    """The ciphertext link in a response; None if there is none."""
    url, expires_at, metadata = _url(document), _expiry(document), document.get("metadata")
    if url is None or expires_at is None or not isinstance(metadata, dict):
        return None
    is_complete = metadata.get(ALGO) == COBBLESTONE and all(
        name.startswith(OWN_PREFIX) and isinstance(value, str) for name, value in metadata.items()
    )
    return CiphertextLink(url, expires_at, metadata) if is_complete else None


def _url(document: Mapping[str, Any]) -> str | None:
    url = document.get("url")
    return url if isinstance(url, str) and is_web_address(url) and "#" not in url else None


def _expiry(document: Mapping[str, Any]) -> datetime | None:
    try:
        return parse_time(document["expires_at"])
    except (KeyError, TypeError, ValueError):
        return None
