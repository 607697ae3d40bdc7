"""The query of an object's URL: a link's parameters, and the name of a download (SPEC 9.3). Pure.

    ?expires=1764151200&token=…              a link: the object is sent as an attachment
    ?expires=1764151200&inline=1&token=…     a link: a browser may show the object
    ?download=report.pdf                     with an API key: an attachment with this name

A query with a `token` is a link, whatever else it has. Each of a link's parameters has one
form only, and occurs once. Any other parameter has no meaning.
"""

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qsl, urlencode

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import has_control_characters

DOWNLOAD_NAME_MAX_BYTES: Final = 255
_EXPIRES: Final = re.compile(r"[1-9][0-9]{0,14}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
# Each byte as one character: what is not UTF-8 is kept as it is.
_BYTES: Final = "latin-1"


@dataclass(frozen=True, slots=True)
class Link:
    """The parameters of a link, well-formed but not verified.

    Attributes:
        expires: When it ends, in seconds since 1970.
        inline: Whether a browser may show the object instead of saving it.
        token: The MAC over these, the project and the object key.
    """

    expires: int
    inline: bool
    token: str = field(repr=False)


class Query:
    """A request's query.

    Args:
        raw: The bytes after the `?`.
    """

    def __init__(self, raw: bytes) -> None:
        text = raw.decode(_BYTES)
        self._parameters = parse_qsl(text, keep_blank_values=True, encoding=_BYTES)

    @property
    def is_link(self) -> bool:
        """Whether the link alone decides about the request."""
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

    def download_name(self) -> str | None:
        """Return the name that a download is saved under, or None without one.

        Raises:
            MalformedRequestError: it cannot be a file's name.
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


def link_query(link: Link) -> str:
    """Return the query of a link's URL."""
    inline = {"inline": "1"} if link.inline else {}
    return urlencode({"expires": link.expires, **inline, "token": link.token})
