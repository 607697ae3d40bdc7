"""Reads AMQP properties that pamqp and aio-pika reject, and writes them as they were (ADR 0013).

THE ONLY MODULE THAT PATCHES OTHER LIBRARIES, for the whole process. Called once at the start of
a worker, a gateway or a command; `keyturn`, which services install, never calls it.

The decoder of pamqp 4 raises on a timestamp after the year 9999 (as microseconds appear), on a
short string that is not UTF-8, and on a header table that it cannot decode. It raises in the
connection's reader: one such message, unsigned, costs the connection, is redelivered, and costs
the next one. An unknown delivery mode or expiration raises where aio-pika creates its message: no
handler ever gets that delivery, and it keeps its place in the prefetch. The patches read such a
value as a harmless one. A message whose headers cannot be decoded has no signature, and is
refused like any other unsigned message.

The encoder rejects or changes some values that the decoder reads (strings that are not UTF-8,
doubles, names above 128 bytes), so that a message could not be copied unchanged. The patched one
writes them unchanged. The decoder also treats a timestamp after 2106 as milliseconds, which the
encoder writes as seconds, so that a copy had another time. With the patches all timestamps are
seconds, as AMQP defines.

`tests/unit/keyturn_workers/pipeline/amqp/test_property_tolerance.py` fails when a release of pamqp
or aio-pika no longer needs one of these patches.
"""

import struct
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from aio_pika import DeliveryMode
from aio_pika.abc import MILLISECONDS
from aio_pika.message import decode_expiration
from pamqp import decode, encode

_Decoder = Callable[[bytes], tuple[int, Any]]
_TIMESTAMP: Final = struct.Struct(">Q")
_LENGTH: Final = struct.Struct(">I")
_DOUBLE: Final = struct.Struct(">d")
_NAME_MAX_BYTES: Final = 255


def _timestamp(value: bytes) -> tuple[int, Any]:
    try:
        (seconds,) = _TIMESTAMP.unpack_from(value)
        return _TIMESTAMP.size, datetime.fromtimestamp(seconds, UTC)
    except (struct.error, ValueError, OverflowError, OSError):
        return _TIMESTAMP.size, None


def _short_string(value: bytes) -> tuple[int, Any]:
    try:
        return _strict_short_string(value)
    except ValueError:
        length = value[0] if value else 0
        text = value[1 : length + 1].decode("utf-8", "replace")
        # The replacement character takes more bytes than it replaces: the string must still fit.
        return length + 1, text.replace("\N{REPLACEMENT CHARACTER}", "?")


def _table(value: bytes) -> tuple[int, Any]:
    try:
        return _strict_table(value)
    except Exception:  # noqa: BLE001  # whatever it contains, it must not cost the connection
        length = _LENGTH.unpack_from(value)[0] if len(value) >= _LENGTH.size else 0
        return _LENGTH.size + min(length, len(value) - _LENGTH.size), {}


def _write_table(value: Mapping[str, Any] | None) -> bytes:
    written = b"".join(_write_entry(name, item) for name, item in (value or {}).items())
    return _LENGTH.pack(len(written)) + written


def _write_entry(name: str, value: Any) -> bytes:
    encoded = name.encode()
    if len(encoded) > _NAME_MAX_BYTES:
        raise ValueError(f"a header's name has at most {_NAME_MAX_BYTES} bytes")
    return bytes([len(encoded)]) + encoded + _write_value(value)


def _write_value(value: Any) -> bytes:
    match value:
        case bytes():
            return b"S" + _LENGTH.pack(len(value)) + value
        case float():
            return b"d" + _DOUBLE.pack(value)
    return _strict_value(value)


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
    """Patch pamqp and aio-pika, so that only an undecodable property itself is lost."""
    decode.METHODS["timestamp"] = _timestamp
    decode.METHODS["shortstr"] = _short_string
    decode.METHODS["table"] = _table
    decode.TABLE_MAPPING[b"T"] = _timestamp
    encode.METHODS["table"] = encode.field_table = _write_table
    encode.encode_table_value = _write_value
    decode_expiration.register(str, _expiration)
    DeliveryMode._missing_ = _other_mode  # type: ignore[method-assign,assignment]
