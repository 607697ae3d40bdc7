"""Which project and which key a request's path names (SPEC 1, 9.1). Pure.

Read from the bytes of the path as they were sent: a server's own decoding puts a
replacement in place of what is no UTF-8, and one name must not become another. Decoded
once; a `%2F` is then a slash like any other, and a key that SPEC 1 does not allow (empty
segments, `.` and `..`, control characters) is none. Nothing is ever resolved or joined.
"""

from typing import Final
from urllib.parse import quote, unquote_to_bytes

from keyturn.identifiers import is_object_key

_PROJECTS: Final = b"/v1/projects/"
_OBJECTS: Final = b"/objects/"
_UNRESERVED: Final = "/-_.~"


def parse_object_path(raw_path: bytes) -> tuple[str, str | None]:
    """The project and the key of an object's path.

    The project is as sent (perhaps none that there can be); the key is None where SPEC 1
    does not allow it.
    """
    project, _, key = raw_path.removeprefix(_PROJECTS).partition(_OBJECTS)
    decoded = _text(key)
    return _text(project) or "", decoded if decoded is not None and is_object_key(decoded) else None


def object_path(project: str, key: str) -> str:
    """The path of an object, as it is sent."""
    return f"/v1/projects/{project}/objects/{quote(key, safe=_UNRESERVED)}"


def parse_project(raw_path: bytes) -> str:
    """The project of any path below one, as sent."""
    project, _, _ = raw_path.removeprefix(_PROJECTS).partition(b"/")
    return _text(project) or ""


def _text(raw: bytes) -> str | None:
    try:
        return unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        return None
