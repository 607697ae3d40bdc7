"""Parsing of requests: path, query, range, conditions, preferences, JSON body (SPEC 1, 9).

- The raw bytes of a path are parsed, since the server's own decoding replaces invalid UTF-8, and
  one name must not become another. They are decoded once. A `%2F` is then a slash like any other,
  and a key that SPEC 1 does not allow is invalid. No path is ever resolved or joined.
- A query with a `token` is a link, whatever else it has. Each of a link's parameters has one form
  only, and occurs once. Any other parameter has no meaning:

      ?expires=1764151200&token=…              a link: the object is sent as an attachment
      ?expires=1764151200&inline=1&token=…     a link: a browser may show the object
      ?expires=1764151200&max_bytes=1048576&content_type=image%2Fpng&token=…
                                               a link that uploads the object
      ?download=report.pdf                     with an API key: an attachment with this name

- One range of bytes is served (RFC 9110, section 14). Other units, malformed ranges and several
  ranges are ignored: the response is then the whole object.
- Conditions are evaluated in the order of RFC 9110, section 13. For a method that changes the
  object, If-None-Match fails with 412 too, and If-Modified-Since has no meaning.

      If-Match, else If-Unmodified-Since      false: 412
      If-None-Match, else If-Modified-Since   false: 304
      If-Range                                false: the whole object in place of the range
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from ipaddress import AddressValueError, IPv6Address
from typing import Final, Literal, TypeVar
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.types import Receive

from keyturn.crypto.links import LinkClaims, UploadLinkClaims
from keyturn.errors import BodyTooLargeError, MalformedRequestError
from keyturn.identifiers import has_control_characters, is_object_key
from keyturn.messages.json_text import load_json, problems
from keyturn_workers.process.http_server.client_connection import read_body

META_PREFIX: Final = "x-keyturn-meta-"
"""The prefix of headers with the caller's metadata."""

_PROJECTS: Final = b"/v1/projects/"
_OBJECTS: Final = b"/objects/"
_LINKS: Final = "/links"
_UNRESERVED: Final = "/-_.~"


def parse_object_path(raw_path: bytes) -> tuple[str, str | None]:
    """Return the project and the object key of an object's path.

    The project is as sent, and may be invalid; the key is None if SPEC 1 does not allow it.
    """
    project, decoded = _split(raw_path)
    return project, _valid(decoded)


def parse_links_path(raw_path: bytes) -> tuple[str, str | None]:
    """Return the project and the object key of the path of an object's links.

    The last `/links` is not part of the key; any before it is.
    """
    project, decoded = _split(raw_path)
    if decoded is None or not decoded.endswith(_LINKS):
        return project, None
    return project, _valid(decoded.removesuffix(_LINKS))


def object_path(project: str, key: str) -> str:
    """Return the path of an object."""
    return f"/v1/projects/{project}/objects/{quote(key, safe=_UNRESERVED)}"


def parse_project(raw_path: bytes) -> str:
    """Return the project of a path, as sent."""
    project, _, _ = raw_path.removeprefix(_PROJECTS).partition(b"/")
    return _decode(project) or ""


def _split(raw_path: bytes) -> tuple[str, str | None]:
    project, _, key = raw_path.removeprefix(_PROJECTS).partition(_OBJECTS)
    return _decode(project) or "", _decode(key)


def _valid(object_key: str | None) -> str | None:
    return object_key if object_key is not None and is_object_key(object_key) else None


def _decode(raw: bytes) -> str | None:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None


DOWNLOAD_NAME_MAX_BYTES: Final = 255
_EXPIRES: Final = re.compile(r"[1-9][0-9]{0,14}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_MAX_BYTES: Final = re.compile(r"0|[1-9][0-9]{0,14}")
LINK_CONTENT_TYPE: Final = r"[!-~](?:[ -~]{0,253}[!-~])?"
"""The content type of an upload link: printable ASCII, without a space at either end."""
# Each byte as one character: invalid UTF-8 is kept as it is.
_BYTES: Final = "latin-1"


@dataclass(frozen=True, slots=True)
class Link:
    """The parameters of a link, well-formed but not verified.

    `expires` is in seconds since 1970. `inline` lets a browser show the object instead of saving
    it. `token` is the MAC over both, the project and the object key.
    """

    expires: int
    inline: bool
    token: str = field(repr=False)

    def claims(self, project: str, object_key: str) -> LinkClaims:
        """Return the claims that the token must prove."""
        return LinkClaims(project, object_key, self.expires, self.inline)

    @property
    def query(self) -> str:
        """The query of the link's URL."""
        inline = {"inline": "1"} if self.inline else {}
        return urlencode({"expires": self.expires, **inline, "token": self.token})


@dataclass(frozen=True, slots=True)
class UploadLink:
    """The parameters of an upload link, well-formed but not verified.

    `expires` is in seconds since 1970; `max_bytes` limits the body. A `content_type` is the only
    one allowed. `token` is the MAC over these, the project and the object key.
    """

    expires: int
    max_bytes: int
    content_type: str | None
    token: str = field(repr=False)

    def claims(self, project: str, object_key: str) -> UploadLinkClaims:
        """Return the claims that the token must prove."""
        return UploadLinkClaims(
            project, object_key, self.expires, self.max_bytes, self.content_type
        )

    @property
    def query(self) -> str:
        """The query of the link's URL."""
        content_type = {"content_type": self.content_type} if self.content_type else {}
        bounds = {"expires": self.expires, "max_bytes": self.max_bytes, **content_type}
        return urlencode({**bounds, "token": self.token})


class Query:
    """A request's query, from the bytes after the `?`."""

    def __init__(self, raw: bytes) -> None:
        text = raw.decode(_BYTES)
        self._parameters = parse_qsl(text, keep_blank_values=True, encoding=_BYTES)

    @property
    def is_link(self) -> bool:
        """True if the link alone decides about the request."""
        return bool(self._values("token"))

    def link(self) -> Link | None:
        """Return the link's parameters, or None if they are malformed."""
        match self._values("expires"), self._values("inline"), self._values("token"):
            case [expires], ([] | ["1"]) as inline, [token]:
                if _EXPIRES.fullmatch(expires) and _TOKEN.fullmatch(token):
                    return Link(int(expires), bool(inline), token)
            case _:
                pass
        return None

    def upload_link(self) -> UploadLink | None:
        """Return the upload link's parameters, or None if they are malformed."""
        names = ("expires", "max_bytes", "content_type", "token")
        match [self._values(name) for name in names]:
            case [[expires], [max_bytes], ([] | [_]) as content_types, [token]]:
                well_formed = (
                    _EXPIRES.fullmatch(expires)
                    and _MAX_BYTES.fullmatch(max_bytes)
                    and all(re.fullmatch(LINK_CONTENT_TYPE, each) for each in content_types)
                    and _TOKEN.fullmatch(token)
                )
                if well_formed:
                    content_type = content_types[0] if content_types else None
                    return UploadLink(int(expires), int(max_bytes), content_type, token)
            case _:
                pass
        return None

    def download_name(self) -> str | None:
        """Return the name that a download is saved under, or None without one.

        Raises:
            MalformedRequestError: the name is not valid for a file.
        """
        values = self._values("download")
        if not values:
            return None
        if len(values) > 1:
            raise MalformedRequestError("download: repeated")
        try:
            name = values[0].encode(_BYTES).decode()
        except UnicodeDecodeError:
            raise MalformedRequestError("download: not UTF-8") from None
        if not 1 <= len(name.encode()) <= DOWNLOAD_NAME_MAX_BYTES:
            raise MalformedRequestError(
                f"download: a name has 1 to {DOWNLOAD_NAME_MAX_BYTES} bytes of UTF-8"
            )
        if has_control_characters(name) or "/" in name or "\\" in name:
            raise MalformedRequestError(
                "download: a name cannot contain control characters, / or \\"
            )
        return name

    def _values(self, name: str) -> list[str]:
        return [value for each, value in self._parameters if each == name]


# More digits than any length has, and fewer than int() refuses.
_SPEC: Final = re.compile(
    r"bytes=[ \t]*(?P<first>[0-9]{0,40})-(?P<last>[0-9]{0,40})[ \t]*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` up to, not including, `end`."""

    first: int
    end: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`first-last`, `first-` (last is None) or, where `first` is None, the last `last` bytes."""

    first: int | None
    last: int | None

    def is_suffix_of_empty(self, size_bytes: int) -> bool:
        """Check if this is a suffix of an empty object, which is the whole object."""
        return self.first is None and bool(self.last) and size_bytes == 0

    def span(self, size_bytes: int) -> Span | None:
        """Return the bytes of an object of that size; None if the range lies outside it."""
        if self.first is None:
            length = min(self.last or 0, size_bytes)
            return Span(size_bytes - length, size_bytes) if length else None
        if self.first >= size_bytes:
            return None
        end = size_bytes if self.last is None else min(self.last + 1, size_bytes)
        return Span(self.first, end)


def parse_range(value: str) -> ByteRange | None:
    """Return the range of a `Range` header, or None if it must be ignored."""
    match = _SPEC.fullmatch(value.strip(" \t"))
    if match is None or not (match["first"] or match["last"]):
        return None
    first = int(match["first"]) if match["first"] else None
    last = int(match["last"]) if match["last"] else None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)


_TAG: Final = re.compile(r'(?P<weak>W/)?(?P<opaque>"[\x21\x23-\x7e\x80-\xff]*")')
_EXPECTATIONS: Final = ("if-match", "if-unmodified-since")
CONDITIONS: Final = (*_EXPECTATIONS, "if-none-match", "if-modified-since")

Outcome = Literal["serve", "not_modified", "failed"]


def has_conditions(headers: Headers) -> bool:
    """Check if the request is conditional on the object's ETag or time."""
    return any(name in headers for name in CONDITIONS)


def evaluate_conditions(headers: Headers, etag: str, last_modified: datetime) -> Outcome:
    """Evaluate the conditions for an object with this ETag (quoted, strong) and time."""
    if not _is_expected(headers, etag, last_modified):
        return "failed"
    if (known := headers.getlist("if-none-match")) != []:
        return "not_modified" if _matches(known, etag, weakly=True) else "serve"
    since = _parse_date(headers.get("if-modified-since"))
    if since is not None and _to_the_second(last_modified) <= since:
        return "not_modified"
    return "serve"


def allow_change(headers: Headers, etag: str | None, last_modified: datetime | None) -> bool:
    """Check if the conditions allow a change of the object.

    Without an ETag (a tombstone, or an object that cannot be read) no expectation is met.
    """
    if etag is None or last_modified is None:
        return not any(name in headers for name in _EXPECTATIONS)
    if not _is_expected(headers, etag, last_modified):
        return False
    return not _matches(headers.getlist("if-none-match"), etag, weakly=True)


def if_range_matches(headers: Headers, etag: str, last_modified: datetime) -> bool:
    """Check if the range is for this version of the object (`If-Range`)."""
    validator = headers.get("if-range")
    if validator is None:
        return True
    if '"' in validator:
        return validator.strip() == etag  # a weak tag never matches
    # A time is a strong validator only if the object cannot have changed twice in that second.
    since = _parse_date(validator)
    return since == _to_the_second(last_modified) and datetime.now(UTC) - last_modified > timedelta(
        seconds=1
    )


def _is_expected(headers: Headers, etag: str, last_modified: datetime) -> bool:
    if (expected := headers.getlist("if-match")) != []:
        return _matches(expected, etag, weakly=False)
    since = _parse_date(headers.get("if-unmodified-since"))
    return since is None or _to_the_second(last_modified) <= since


def format_http_date(instant: datetime) -> str:
    """Format a time for an HTTP header."""
    return format_datetime(instant.astimezone(UTC).replace(microsecond=0), usegmt=True)


def _matches(values: Sequence[str], etag: str, *, weakly: bool) -> bool:
    for value in values:
        if value.strip() == "*":
            return True
        for tag in _TAG.finditer(value):
            if tag["opaque"] == etag and (weakly or not tag["weak"]):
                return True
    return False


def _parse_date(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        parsed = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None  # ignored (RFC 9110, 13.1.3)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _to_the_second(instant: datetime) -> datetime:
    return instant.replace(microsecond=0)


_HOST: Final = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[(?P<v6>[0-9A-Fa-f:.]{2,45})\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_MAX_PORT: Final = 65535


def own_url(scheme: str, hosts: Sequence[str]) -> str:
    """Return the scheme, host and port under which the client reached this gateway.

    `hosts` has the values of all `Host` headers.

    Raises:
        MalformedRequestError: there is not exactly one host, or it is malformed.
    """
    if len(hosts) != 1 or not _is_host(hosts[0]):
        raise MalformedRequestError("the Host header is missing or malformed")
    return f"{scheme}://{hosts[0].lower()}"


def _is_host(text: str) -> bool:
    match = _HOST.fullmatch(text)
    if match is None:
        return False
    if match["v6"] is not None:
        try:
            IPv6Address(match["v6"])
        except AddressValueError:
            return False
    return match["port"] is None or 1 <= int(match["port"]) <= _MAX_PORT


_JSON_TIMEOUT_S: Final = 10.0
_Model = TypeVar("_Model", bound=BaseModel)


async def read_json_body(
    receive: Receive, model: type[_Model], max_bytes: int, idle_timeout_s: float
) -> _Model:
    """Read a JSON body to its end. An absent body counts as an object without fields.

    The client may send nothing for `idle_timeout_s`; for these small bodies at most 10 s.

    Raises:
        BodyTooLargeError: the body is larger than `max_bytes`.
        MalformedRequestError: it is not a JSON document of the model. No value is repeated.
        ClientGoneError: the client disconnected or stopped sending.
    """
    content = bytearray()
    async for piece in read_body(receive, min(idle_timeout_s, _JSON_TIMEOUT_S)):
        content += piece
        if len(content) > max_bytes:
            raise BodyTooLargeError(f"at most {max_bytes} bytes")
    try:
        return model.model_validate(load_json(bytes(content) or b"{}"))
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None  # the cause contains the values


# RFC 7240: preferences with their parameters, either of which may be quoted.
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_PREFERENCE: Final = re.compile(rf'(?:[^,;"]|{_QUOTED})+(?:;(?:[^,;"]|{_QUOTED})*)*')
_WAIT: Final = re.compile(r"\s*wait\s*=\s*\"?(?P<seconds>[0-9]{1,18})\"?\s*(?:;.*)?", re.IGNORECASE)
# Escaped quotes without an end take quadratic time, so longer headers are ignored.
_PREFER_MAX_CHARACTERS: Final = 1024


def requested_wait_s(headers: Headers, max_s: float) -> int | None:
    """Return the seconds of `Prefer: wait=N`, at most `max_s`; None without that preference."""
    preferences = ",".join(headers.getlist("prefer"))
    if len(preferences) > _PREFER_MAX_CHARACTERS:
        return None
    for preference in _PREFERENCE.findall(preferences):
        match = _WAIT.fullmatch(preference)
        if match is not None:
            return int(min(int(match["seconds"]), max_s))
    return None
