"""Reports of workers and records of the audit trail, as a stream has them, for tests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from keyturn.crypto import EventVerifier, SigningKey
from keyturn.identifiers import format_time
from keyturn.messages import (
    AuditRecorded,
    QueueReport,
    WorkerReported,
    body_digest,
    encode_audit,
    encode_worker_report,
)
from keyturn.publisher.event_stream import StreamRecord

T0 = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
DEPLOYMENT = "test"
KEY = SigningKey.from_seed(bytes(range(32)))
SIGNATURES = EventVerifier(DEPLOYMENT, (KEY.verify_key(),))


class Clock:
    """A clock that a test sets, in seconds after `T0`."""

    def __init__(self, at_s: float = 0) -> None:
        self.now = at(at_s)

    def __call__(self) -> datetime:
        return self.now

    def set(self, at_s: float) -> None:
        self.now = at(at_s)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def text(seconds: float) -> str:
    return format_time(at(seconds))


def uid(number: int) -> str:
    return str(UUID(int=number))


def worker(seconds: float, number: int = 1, **fields: Any) -> WorkerReported:
    values: dict[str, Any] = {
        "at": text(seconds),
        "worker_id": uid(number),
        "roles": ("upload",),
        "host": f"node-{number}",
        "version": "0.9.0",
        "started_at": text(-100),
        "interval_s": 15.0,
        "lease_s": 15,
        "is_clock_known": True,
        "active_master_key": "main",
        "master_keys": ("main",),
        "event_keys": ("e1",),
        "intake_keys": ("main",),
        "queues": (queue_report(),),
    }
    return WorkerReported(**(values | fields))


def queue_report(queue: str = "keyturn.upload", **fields: Any) -> QueueReport:
    values: dict[str, Any] = {"served": 0, "refused": 0, "retried": 0, "in_flight": 0}
    return QueueReport(queue=queue, **(values | {"waited_s": 2.0} | fields))


def audit_record(counter: int, **fields: Any) -> AuditRecorded:
    values: dict[str, Any] = {
        "at": text(counter),
        "process": uid(7),
        "counter": counter,
        "previous": None if counter == 1 else "ab" * 32,
        "audit_id": uid(100 + counter),
        "role": "worker control",
        "host": "node-1",
        "action": "request.served",
        "actor": "shop",
        "publisher": "shop",
        "project": "acme",
        "outcome": "done",
    }
    return AuditRecorded(**(values | fields))


def chain(length: int) -> list[StreamRecord]:
    """The records of one process, at the offsets from 0 on."""
    records, previous = list[StreamRecord](), None
    for counter in range(1, length + 1):
        each = audit_record(counter, previous=previous)
        previous = body_digest(encode_audit(each))
        records.append(stream_record(counter - 1, each))
    return records


def stream_record(
    offset: int, message: AuditRecorded | WorkerReported, *, forged: bool = False
) -> StreamRecord:
    """A message as a record of a stream."""
    if isinstance(message, AuditRecorded):
        body = encode_audit(message)
    else:
        body = encode_worker_report(message)
    signature = KEY.sign_event("other" if forged else DEPLOYMENT, body)
    return StreamRecord(offset, body, signature, KEY.id)
