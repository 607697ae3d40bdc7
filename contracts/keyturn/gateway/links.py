"""Links: their requests, and the check of the responses (SPEC 9.3). Pure.

A link is a secret: it opens its object, or stores it, without the API key. So it must never be in a
repr, in an exception, or in the variables of a frame that an exception passes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import orjson

from keyturn.errors import MalformedRequestError
from keyturn.gateway.responses import is_web_address
from keyturn.identifiers import parse_time
from keyturn.metadata import ALGO, COBBLESTONE, OWN_PREFIX

LINK_MAX_S: Final = 7 * 24 * 3600
CIPHERTEXT_LINK_MAX_S: Final = 900
_CONTENT_TYPE: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class Link:
    """A URL that opens one object, by GET and HEAD, without the API key.

    Attributes:
        url: The URL. Anyone who has it can read the object, so it is not in the repr.
        expires_at: Its end, in UTC; a rotation ends it earlier.
    """

    url: str = field(repr=False)
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class CiphertextLink:
    """A URL of an encrypted object's stored bytes, and the metadata needed to open them.

    Attributes:
        url: A presigned URL of the storage. Not in the repr.
        expires_at: Its end, in UTC; a rotation does not end it earlier.
        metadata: The object's `enc-` metadata as stored, with its sealed keys. Not in the repr.
    """

    url: str = field(repr=False)
    expires_at: datetime
    metadata: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True, slots=True)
class UploadLink:
    """A URL that accepts one body for one object, by PUT, without the API key (`upload_to`).

    Attributes:
        url: The URL. Anyone who has it can store the object, so it is not in the repr.
        expires_at: Its end, in UTC; a rotation ends it earlier.
    """

    url: str = field(repr=False)
    expires_at: datetime


def link_request(expires_s: int, *, inline: bool) -> bytes:
    """Return the body of a request for a link.

    Raises:
        MalformedRequestError: it would not be valid for 1 second to 7 days.
    """
    _check_expires(expires_s, LINK_MAX_S)
    return orjson.dumps({"expires_s": expires_s, "inline": inline})


def ciphertext_link_request(expires_s: int) -> bytes:
    """Return the body of a request for a link to an object's stored bytes.

    Raises:
        MalformedRequestError: it would not be valid for 1 to 900 seconds.
    """
    _check_expires(expires_s, CIPHERTEXT_LINK_MAX_S)
    return orjson.dumps({"kind": "ciphertext", "expires_s": expires_s})


def upload_link_request(expires_s: int, max_bytes: int, content_type: str | None) -> bytes:
    """Return the body of a request for an upload link.

    Raises:
        MalformedRequestError: it is not for 1 second to 7 days, or a bound is not valid.
    """
    _check_expires(expires_s, LINK_MAX_S)
    if type(max_bytes) is not int or max_bytes < 0:
        raise MalformedRequestError("max_bytes must be 0 or more")
    if content_type is not None and _CONTENT_TYPE.fullmatch(content_type) is None:
        raise MalformedRequestError(
            "content_type must be 1 to 255 printable ASCII characters, with no space at either end"
        )
    bounds = {"max_bytes": max_bytes, "content_type": content_type}
    return orjson.dumps({"method": "PUT", "expires_s": expires_s, **bounds})


def _check_expires(expires_s: int, max_s: int) -> None:
    if type(expires_s) is not int or not 1 <= expires_s <= max_s:
        raise MalformedRequestError(f"a link is valid for 1 to {max_s} seconds")


def parse_link(
    document: Mapping[str, Any], project: str, object_key: str, *, inline: bool
) -> Link | None:
    """Return the link in a response; None if there is none, or it is not the requested link.

    The host is not compared: a gateway's public address may differ from the one in use.
    """
    found = _requested_url(document, project, object_key, {"inline": "1"} if inline else {})
    return None if found is None else Link(*found)


def parse_upload_link(
    document: Mapping[str, Any],
    project: str,
    object_key: str,
    max_bytes: int,
    content_type: str | None,
) -> UploadLink | None:
    """Return the upload link in a response; None as for `parse_link`."""
    bounds = {"max_bytes": str(max_bytes)}
    if content_type is not None:
        bounds["content_type"] = content_type
    found = _requested_url(document, project, object_key, bounds)
    return None if found is None else UploadLink(*found)


def is_upload_link(url: str) -> bool:
    """Return whether this has the form of an upload link."""
    names = {name for name, _ in parse_qsl(urlsplit(url).query)} if is_web_address(url) else set()
    return {"expires", "max_bytes", "token"} <= names and "#" not in url


def link_parameter(url: str, name: Literal["content_type", "token"]) -> str:
    """Return a parameter of an upload link; "" if it has none of this name."""
    return dict(parse_qsl(urlsplit(url).query)).get(name, "")


def _requested_url(
    document: Mapping[str, Any], project: str, object_key: str, terms: Mapping[str, str]
) -> tuple[str, datetime] | None:
    """Return the URL and its end, if it is the object's and has only these parameters."""
    url, expires_at = _url(document), _expiry(document)
    if url is None or expires_at is None or expires_at.microsecond:
        return None
    parts = urlsplit(url)
    parameters = parse_qsl(parts.query, keep_blank_values=True)
    token = dict(parameters).get("token", "")
    expected = {"expires": str(int(expires_at.timestamp())), **terms, "token": token}
    is_as_requested = (
        unquote(parts.path).endswith(f"/v1/projects/{project}/objects/{object_key}")
        and sorted(parameters) == sorted(expected.items())
        and _TOKEN.fullmatch(token) is not None
    )
    return (url, expires_at) if is_as_requested else None


def parse_ciphertext_link(document: Mapping[str, Any]) -> CiphertextLink | None:
    """Return the ciphertext link in a response; None if there is none."""
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
