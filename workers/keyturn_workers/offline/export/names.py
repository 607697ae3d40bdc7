"""Names of files for object keys, which every file system can hold (SPEC 1). Pure.

A key that is a valid name everywhere is its own path. Otherwise a segment is escaped, shortened, or
made distinct from another one by a `~` and a part of a digest. Hostile keys are expected: no name
is empty, `.` or `..`, has a separator, or means a device.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from itertools import count
from typing import Final

NAME_MAX_BYTES: Final = 240
"""Below the 255 of common file systems, and of UTF-8, whatever a file system counts in."""
_TAG_DIGITS: Final = 12
_EXTENSION_MAX_BYTES: Final = 16
# Windows allows neither these characters nor a dot or a space at the end of a name. Control
# characters for terminals and for text direction make a name look like another one.
_UNSAFE: Final = re.compile(
    r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]|[. ]\Z'
)
_DEVICE: Final = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL
)


def candidates(segment: str, owner: str) -> Iterator[str]:
    """Yield names for one segment of a key, the best one first, without end.

    `owner` is the key up to this segment, so that each owner has names of its own.
    """
    name = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", segment)
    if _DEVICE.fullmatch(name):
        name = f"_{name}"
    if len(name.encode()) <= NAME_MAX_BYTES:
        yield name
    stem, dot, extension = name.rpartition(".")
    if not stem or len(extension.encode()) > _EXTENSION_MAX_BYTES:
        stem, dot, extension = name, "", ""
    for attempt in count():
        tag = hashlib.sha256(f"{attempt}\0{owner}".encode()).hexdigest()[:_TAG_DIGITS]
        end = f"~{tag}{dot}{extension}"
        kept = stem.encode()[: NAME_MAX_BYTES - len(end.encode())].decode(errors="ignore")
        yield kept + end


def folded(path: str) -> str:
    """Return the same text for all paths that some file system treats as one.

    Some ignore case, and some the difference between composed and decomposed characters.
    """
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def is_path(path: str) -> bool:
    """Check if every part of a path can be the name of a file or folder."""
    parts = path.split("/")
    return "\0" not in path and all(part not in ("", ".", "..") for part in parts)
