"""The `Content-Disposition` header: RFC 6266, with names as in RFC 8187. Pure."""

import re
from typing import Final, Literal
from urllib.parse import quote

Disposition = Literal["attachment", "inline"]

# RFC 8187, 3.2.1: attr-char, besides letters and digits.
_ATTR_CHARS: Final = "!#$&+-.^_`|~"
# RFC 6266, appendix D: some clients decode a `%` in `filename`, or take a `\` for an escape.
_NOT_PLAIN: Final = re.compile(r"[^ !#-$&-\[\]-~]")


def content_disposition(disposition: Disposition, filename: str) -> str:
    """Return the header's value. Clients that do not know `filename*` get an ASCII name."""
    plain = _NOT_PLAIN.sub("_", filename)
    value = f'{disposition}; filename="{plain}"'
    if plain == filename:
        return value
    return f"{value}; filename*=UTF-8''{quote(filename, safe=_ATTR_CHARS)}"


def filename_of(object_key: str) -> str:
    r"""Return the name to save an object under: its key's last segment, without a `\`."""
    return object_key.rpartition("/")[2].replace("\\", "_")
