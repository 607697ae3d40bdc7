"""Notifications of storage servers: S3 event records, as AWS defines them (SPEC 17.4).

Ceph pushes them over AMQP; for AWS they can be forwarded. They are not signed, so they are hints:
a record only names a bucket and a key to look at. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_plus

from keyturn.errors import MalformedRequestError
from keyturn.messages.json_text import load_json

NOTIFICATION_MAX_BYTES: Final = 1024**2
"""A larger message is not parsed. A server sends about 1 KiB for each object."""
MAX_RECORDS: Final = 100
"""How many records of one message are read; a listing finds the other objects."""
_S3_KEY_MAX_BYTES: Final = 1024
_CREATED: Final = "ObjectCreated:"
_EVENT_PREFIX: Final = "s3:"


@dataclass(frozen=True, slots=True)
class Hint:
    """The place of a possible new object: the bucket's name, and the S3 key as sent."""

    bucket: str
    key: str

    def s3_keys(self) -> tuple[str, ...]:
        """The possible S3 keys: the key as sent, and decoded if that differs.

        AWS percent-encodes keys and writes a space as `+`; Ceph sends them as they are. Only an
        existing object counts, so both may be looked up.
        """
        try:
            decoded = unquote_plus(self.key, errors="strict")
        except UnicodeDecodeError:
            return (self.key,)
        return (self.key,) if decoded == self.key else (self.key, decoded)


def parse_notification(body: bytes) -> tuple[Hint, ...]:
    """The hints in one message, without records of other events and malformed records.

    Raises:
        MalformedRequestError: the message has no S3 event records, or is too large.
    """
    if len(body) > NOTIFICATION_MAX_BYTES:
        raise MalformedRequestError(f"a notification above {NOTIFICATION_MAX_BYTES} bytes")
    records = load_json(body).get("Records")
    if not isinstance(records, list):
        raise MalformedRequestError("a notification without Records")
    # A record may occur twice.
    return tuple(dict.fromkeys(_hints(records[:MAX_RECORDS])))


def _hints(records: list[Any]) -> Iterator[Hint]:
    for record in records:
        if not isinstance(record, dict) or not _is_creation(record.get("eventName")):
            continue
        bucket = _member(record, "s3", "bucket", "name")
        key = _member(record, "s3", "object", "key")
        # Percent-encoded, a key has up to three characters for each byte.
        if bucket and key and len(key.encode()) <= 3 * _S3_KEY_MAX_BYTES:
            yield Hint(bucket, key)


def _is_creation(event: object) -> bool:
    return isinstance(event, str) and event.removeprefix(_EVENT_PREFIX).startswith(_CREATED)


def _member(record: dict[str, Any], *path: str) -> str:
    value: object = record
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else ""
