"""The ways in which bytes show in a log or a file: each search for secrets is tried with all."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Final

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

ENCODINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "hex": lambda value: value.hex().encode(),
    "HEX": lambda value: value.hex().upper().encode(),
    "base64": base64.b64encode,
    "urlsafe": base64.urlsafe_b64encode,
    "repr": lambda value: repr(value).encode(),
    "repr in JSON": lambda value: json.dumps(repr(value)).encode(),
    "JSON": lambda value: json.dumps(value.decode("latin-1")).encode(),
    "orjson": lambda value: orjson.dumps(value.decode("latin-1")),
    "repr in orjson": lambda value: orjson.dumps(repr(value)),
}
