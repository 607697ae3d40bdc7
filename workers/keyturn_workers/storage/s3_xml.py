"""Read the elements of S3's XML documents (SPEC 8.2, 8.5, 10). Pure.

These documents are rows of elements that hold text, without attributes. Any writer of the bucket
can put any character into a key, and servers repeat some keys as they are. A parser for XML 1.0
refuses a document with such a character. So elements are found by their tags.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_plus

_REFERENCE: Final = re.compile(r"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(lt|gt|quot|apos|amp));")
_ENTITIES: Final = {"lt": "<", "gt": ">", "quot": '"', "apos": "'", "amp": "&"}


def find_text(name: str, body: bytes) -> str | None:
    """The text of the first element with this name; None if there is none.

    Raises:
        ValueError: the text is not valid.
    """
    match = _element(name).search(body)
    return None if match is None else _unescape((match[1] or b"").decode())


def find_rows(name: str, body: bytes) -> Sequence[bytes]:
    """What each element with this name contains.

    Raises:
        ValueError: one of them has no end.
    """
    _, *rows = body.split(f"<{name}>".encode())
    end = f"</{name}>".encode()
    if not all(end in row for row in rows):
        raise ValueError("an element without an end")
    return [row.partition(end)[0] for row in rows]


def find_columns(rows: Sequence[bytes], *names: str) -> Sequence[Sequence[str]]:
    """For each name, the texts of the elements with this name, one in each row.

    Raises:
        ValueError: a row lacks one, or its text is not valid.
    """
    # All rows at once: a page has a thousand, and some are read several times a second.
    joined = b"\n".join(rows)
    columns = [_element(name).findall(joined) for name in names]
    if any(len(column) != len(rows) for column in columns):
        raise ValueError("a row lacks an element")
    return [_change_all(b"\n".join(column).decode(), column, _unescape) for column in columns]


def decode_names(names: Sequence[str]) -> Sequence[str]:
    """Undo the percent-encoding of names."""
    return _change_all("\n".join(names), [name.encode() for name in names], _decode)


def _change_all(joined: str, texts: Sequence[bytes], change: Callable[[str], str]) -> Sequence[str]:
    """Change all texts at once, unless one of them has a line break then."""
    changed = change(joined).split("\n") if texts else []
    return changed if len(changed) == len(texts) else [change(text.decode()) for text in texts]


def _decode(text: str) -> str:
    text = text.replace("%2F", "/")  # in most names, nothing else is encoded
    return unquote_plus(text) if "%" in text or "+" in text else text


def _unescape(text: str) -> str:
    """Replace references by their characters.

    Raises:
        ValueError: a reference to what is no character.
    """
    if "&" not in text:
        return text
    text = text.replace("&quot;", '"').replace("&#34;", '"')  # around each ETag
    return _REFERENCE.sub(_character, text) if "&" in text else text


def _character(reference: re.Match[str]) -> str:
    decimal, hexadecimal, entity = reference.groups()
    if entity is not None:
        return _ENTITIES[entity]
    character = chr(int(hexadecimal, 16) if decimal is None else int(decimal))
    character.encode()  # a surrogate is none
    return character


@lru_cache(maxsize=64)
def _element(name: str) -> re.Pattern[bytes]:
    return re.compile(rb"<%b(?:\s*/>|>([^<]*)</%b>)" % (name.encode(), name.encode()))
