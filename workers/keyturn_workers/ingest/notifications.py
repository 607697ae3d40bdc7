"""Notifications of storage servers: S3 event records, as AWS defines them (SPEC 17.4).

Ceph pushes them over AMQP; for AWS they can be forwarded. They are not signed, so they are hints:
a record only says at which key of which bucket to look. Pure.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_plus

from keyturn.errors import MalformedRequestError
from keyturn.messages import load_json

NOTIFICATION_MAX_BYTES: Final = 1024**2
"""A larger message is not even parsed. A server sends about 1 KiB for each object."""
MAX_RECORDS: Final = 100
"""Records of one message that are read. A listing finds the others."""
_S3_KEY_MAX_BYTES: Final = 1024
_CREATED: Final = "ObjectCreated:"
_EVENT_PREFIX: Final = "s3:"


@dataclass(frozen=True, slots=True)
class Hint:
    """Where an object may have appeared: the bucket's name, and the S3 key as it was sent."""

    bucket: str
    key: str

    def s3_keys(self) -> tuple[str, ...]:
        """The S3 keys that can be meant: the key as it is, and decoded if that differs.

        AWS percent-encodes keys and writes a space as `+`; Ceph sends them as they are. Only an
        object that is there counts, so both may be looked up.
        """
        try:
            decoded = unquote_plus(self.key, errors="strict")
        except UnicodeDecodeError:
            return (self.key,)
        return (self.key,) if decoded == self.key else (self.key, decoded)


def parse_notification(body: bytes) -> tuple[Hint, ...]:
    """The hints in one message. Records of other events, and malformed ones, are left out.

    Raises:
        MalformedRequestError: not S3 event records, or too large.
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
