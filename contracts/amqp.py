"""Reading AMQP properties that nobody should have sent (FACTS of pamqp 3 and 4).

aio-pika's decoder raises on a timestamp beyond the year 9999 (which is what microseconds
look like), on a short string that is not UTF-8, and on header tables that it cannot read.
It raises in the connection's reader, so one such message, unsigned, cuts the connection;
the broker gives it again, and so on. Here such a value is read as something harmless: a
message whose headers cannot be read has no signature, and is refused like any other.

Called once at a process's door; it changes pamqp for the whole process.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

from pamqp import decode

_Decoder = Callable[[bytes], tuple[int, Any]]
_TIMESTAMP_BYTES: Final = 8
_LENGTH: Final = struct.Struct(">I")


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        return _strict_timestamp(value)
    except (ValueError, OverflowError, OSError):
        return _TIMESTAMP_BYTES, None


def _short_string(value: bytes) -> tuple[int, Any]:
    try:
        return _strict_short_string(value)
    except ValueError:
        length = value[0] if value else 0
        return length + 1, value[1 : length + 1].decode("utf-8", "replace")


def _table(value: bytes) -> tuple[int, Any]:
    try:
        return _strict_table(value)
    except Exception:  # noqa: BLE001  # whatever it is made of, it must not end the connection
        length = _LENGTH.unpack_from(value)[0] if len(value) >= _LENGTH.size else 0
        return _LENGTH.size + min(length, len(value) - _LENGTH.size), {}


_strict_timestamp: Final[_Decoder] = decode.timestamp
_strict_short_string: Final[_Decoder] = decode.short_str
_strict_table: Final[_Decoder] = decode.field_table


def tolerate_odd_properties() -> None:
    """Let properties that cannot be decoded cost no more than themselves."""
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["table"] = _table
    decode.TABLE_MAPPING[b"T"] = _timestamp
