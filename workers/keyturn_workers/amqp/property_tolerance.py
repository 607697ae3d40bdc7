"""Reading AMQP properties that nobody should have sent, and writing back what was read.

FACTS of pamqp 3 and 4 and of aio-pika 10. The decoder raises on a timestamp beyond the year
9999 (which is what microseconds look like), on a short string that is not UTF-8, and on
header tables that it cannot read. It raises in the connection's reader, so one such message,
unsigned, cuts the connection; the broker gives it again, and so on. An unknown delivery mode
or expiration raises where aio-pika makes its message: nobody is ever given that one, and it
holds a place of the prefetch for good. Here such a value is read as something harmless: a
message whose headers cannot be read has no signature, and is refused like any other.

The encoder refuses or changes some of what the decoder reads (strings that are not UTF-8,
doubles, names above 128 bytes), so that a message could not be passed on as it was sent.
Here it writes them as they were.

Called once at a process's door; it changes both libraries for the whole process.
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from aio_pika import DeliveryMode
from aio_pika.abc import MILLISECONDS
from aio_pika.message import decode_expiration
from pamqp import decode, encode

_Decoder = Callable[[bytes], tuple[int, Any]]
_TIMESTAMP_BYTES: Final = 8
_LENGTH: Final = struct.Struct(">I")
_DOUBLE: Final = struct.Struct(">d")
_NAME_MAX_BYTES: Final = 255


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
        text = value[1 : length + 1].decode("utf-8", "replace")
        # Longer than what it stands for otherwise: what is read must fit where it came from.
        return length + 1, text.replace("\N{REPLACEMENT CHARACTER}", "?")


def _table(value: bytes) -> tuple[int, Any]:
    try:
        return _strict_table(value)
    except Exception:  # noqa: BLE001  # whatever it is made of, it must not end the connection
        length = _LENGTH.unpack_from(value)[0] if len(value) >= _LENGTH.size else 0
        return _LENGTH.size + min(length, len(value) - _LENGTH.size), {}


def _write_table(value: Mapping[str, Any] | None) -> bytes:
    written = b"".join(_write_entry(name, item) for name, item in (value or {}).items())
    return _LENGTH.pack(len(written)) + written


def _write_entry(name: str, value: Any) -> bytes:
    raw = name.encode()
    if len(raw) > _NAME_MAX_BYTES:
        raise ValueError(f"a header's name has at most {_NAME_MAX_BYTES} bytes")
    return bytes([len(raw)]) + raw + _write_value(value)


def _write_value(value: Any) -> bytes:
    match value:
        case bytes():
            return b"S" + _LENGTH.pack(len(value)) + value
        case float():
            return b"d" + _DOUBLE.pack(value)
    return _strict_value(value)


_strict_timestamp: Final[_Decoder] = decode.timestamp
_strict_short_string: Final[_Decoder] = decode.short_str
_strict_table: Final[_Decoder] = decode.field_table
_strict_value: Final[Callable[[Any], bytes]] = encode.encode_table_value


def _expiration(text: str) -> float | None:
    try:
        return float(text) / MILLISECONDS
    except ValueError:
        return None


def _other_mode(mode: object) -> DeliveryMode:
    del mode
    return DeliveryMode.NOT_PERSISTENT


def tolerate_odd_properties() -> None:
    """Let properties that cannot be decoded cost no more than themselves."""
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["table"] = _table
    decode.TABLE_MAPPING[b"T"] = _timestamp
    encode.METHODS["table"] = encode.field_table = _write_table
    encode.encode_table_value = _write_value
    decode_expiration.register(str, _expiration)
    DeliveryMode._missing_ = _other_mode  # type: ignore[method-assign,assignment]
