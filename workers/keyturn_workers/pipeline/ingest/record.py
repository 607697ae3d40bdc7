"""The state of one source, in the bucket (SPEC 5.1, 17.4).

`.keyturn/sources/{name}.json` is sealed like every record: a bucket writer cannot mark objects as
stored. If it is lost, or does not open, the source is listed from its start again; that costs
requests but loses no object, since each object has one upload id.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Any, Final

import structlog

from keyturn.crypto.base64 import from_base64, to_base64
from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn.identifiers import ALL_PROJECTS, format_time, parse_time, source_s3_key
from keyturn_workers.core.errors import MissingError, PreconditionError
from keyturn_workers.core.kek_deriver import KekDeriver
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers, IfAbsent, IfMatch
from keyturn_workers.keys.keyring import sealed_records

DIGEST_BYTES: Final = 12
"""The length of a run's digest. Two runs of a source collide with probability < 1e-18."""
MAX_DIGESTS: Final = 200_000
"""Digests of runs of about 64 objects. Objects of further runs are requested at each poll."""
MAX_REFUSED: Final = 2_000
"""Refused objects that a record and a process remember; the latest, if there are more."""
_RECORD_MAX_BYTES: Final = 32 * 1024**2
_HEADERS: Final = Headers(metadata={}, content_type="application/json")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused object: the id of its upload, the code of SPEC 12, and when it was refused.

    `upload_id` is empty if the name alone was refused.
    """

    upload_id: str
    code: str
    at: datetime


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """The state of a source.

    Attributes:
        polled_at: When the worker that lists the source last wrote this; None if never.
        finished_at: When the source was last listed to its end; None if never.
        objects: How many objects it had then.
        waiting: How many of them had no outcome yet.
        digests: The digests of runs that need not be requested (`poll.digest_of`).
        retried_at: When all refused objects were last due to be requested again.
        refused: By S3 key; at most `MAX_REFUSED` are written.
    """

    polled_at: datetime | None = None
    finished_at: datetime | None = None
    objects: int = 0
    waiting: int = 0
    digests: frozenset[bytes] = frozenset()
    retried_at: datetime | None = None
    refused: Mapping[str, Refusal] = field(default_factory=dict)


def newest(refused: Mapping[str, Refusal]) -> dict[str, Refusal]:
    """The latest refusals, at most `MAX_REFUSED`, in order of time."""
    return dict(sorted(refused.items(), key=lambda item: item[1].at)[-MAX_REFUSED:])


def to_json(record: SourceRecord) -> dict[str, Any]:
    """The sealed part of a record, within its bounds."""
    return {
        "polled_at": _time_text(record.polled_at),
        "finished_at": _time_text(record.finished_at),
        "objects": record.objects,
        "waiting": record.waiting,
        "digests": to_base64(b"".join(islice(record.digests, MAX_DIGESTS))),
        "retried_at": _time_text(record.retried_at),
        "refused": {
            _text(s3_key): [refusal.upload_id, refusal.code, format_time(refusal.at)]
            for s3_key, refusal in newest(record.refused).items()
        },
    }


def from_json(document: Mapping[str, Any]) -> SourceRecord:
    """The record in a sealed part.

    Raises:
        CorruptObjectError: another release wrote it, in an unknown form.
    """
    try:
        return SourceRecord(
            _time(document["polled_at"]),
            _time(document["finished_at"]),
            int(document["objects"]),
            int(document["waiting"]),
            frozenset(_split(from_base64(document["digests"]))),
            _time(document["retried_at"]),
            {
                s3_key: Refusal(upload_id, code, parse_time(at))
                for s3_key, (upload_id, code, at) in document["refused"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise CorruptObjectError("a record of a source in an unknown form") from exc


def _text(s3_key: str) -> str:
    return s3_key.encode(errors="replace").decode()  # a lone surrogate would void the record


def _time_text(moment: datetime | None) -> str | None:
    return None if moment is None else format_time(moment)


def _time(text: str | None) -> datetime | None:
    return None if text is None else parse_time(text)


def _split(digests: bytes) -> Iterable[bytes]:
    if len(digests) % DIGEST_BYTES:
        raise ValueError("digests that are cut off")
    starts = range(0, len(digests), DIGEST_BYTES)
    return (digests[start : start + DIGEST_BYTES] for start in starts)


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record as it was read or written, and its ETag; None before the first write."""

    record: SourceRecord
    etag: str | None


class SourceRecords:
    """The records of sources, in Keyturn's own bucket, sealed under this master key."""

    def __init__(self, storage: Storage, keys: KekDeriver, master_key: str = "") -> None:
        self._storage = storage
        self._keys = keys
        self._master_key = master_key

    async def read(self, name: str) -> StoredRecord:
        """The record of a source; an empty one if it is missing or does not open.

        Raises:
            StorageUnavailableError, StorageResponseError: the record could not be read.
            KmsUnavailableError: the provider of its master key is unavailable.
        """
        s3_key = source_s3_key(name)
        try:
            head, body = await self._storage.read(s3_key, max_bytes=_RECORD_MAX_BYTES)
        except MissingError:
            return StoredRecord(SourceRecord(), None)
        try:
            _, document = await sealed_records.parse(body, s3_key, ALL_PROJECTS, self._keys)
            return StoredRecord(from_json(document), head.etag)
        except (CorruptObjectError, UnknownMasterKeyError) as exc:
            _log.warning("record of a source not used", source=name, detail=exc.detail)
            return StoredRecord(SourceRecord(), head.etag)

    async def write(self, name: str, before: StoredRecord, record: SourceRecord) -> StoredRecord:
        """Replace the record that was read or written before.

        Raises:
            PreconditionError: another worker has written it since.
            StorageUnavailableError, StorageResponseError: the outcome is unknown, or a refusal.
            KmsUnavailableError, UnknownMasterKeyError: the record could not be sealed.
        """
        s3_key = source_s3_key(name)
        body = await sealed_records.build(
            s3_key, ALL_PROJECTS, self._master_key, to_json(record), self._keys
        )
        condition = IfAbsent() if before.etag is None else IfMatch(before.etag)
        try:
            result = await self._storage.put(s3_key, body, _HEADERS, condition=condition)
        except MissingError as exc:
            raise PreconditionError("the record was removed") from exc
        return StoredRecord(record, result.etag)
