"""Parses the project and the object key from a request's path (SPEC 1, 9.1). Pure.

The raw bytes of the path are parsed: the server's own decoding replaces invalid UTF-8, and one
name must not become another. They are decoded once. A `%2F` is then a slash like any other, and
a key that SPEC 1 does not allow (empty segments, `.` and `..`, control characters) is invalid.
Nothing is ever resolved or joined.
"""

from typing import Final
from urllib.parse import quote, unquote_to_bytes

from keyturn.identifiers import is_object_key

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
