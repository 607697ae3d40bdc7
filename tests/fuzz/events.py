"""Mutated events, reports and records through what readers of the streams use (SPEC 6.7, 15.3, 16).

A reader gets what it reads for or nothing: whatever is on the stream, `Verifier` raises nothing,
and what it gives is signed, of one kind, and comes back as it was read.
"""

from __future__ import annotations

import logging
import random
from typing import Any, Final

from keyturn.crypto import VerifyKey
from keyturn.messages import (
    AuditRecorded,
    WorkerReported,
    parse_audit,
    parse_event,
    parse_worker_report,
)
from keyturn.publisher.event_stream import StreamRecord, Verifier
from tests.fuzz import documents, odd_values, valid_messages
from tests.fuzz.harness import as_text
from tests.fuzz.watch import MAX_CPU_S, Clock, Report, Watch

_WARM_SHARE: Final = 0.3
_HUGE_EVERY: Final = 1000
_BADLY_SIGNED_SHARE: Final = 0.1
_DEPLOYMENT: Final = valid_messages.deployment()


def run(seed: int, count: int) -> Report:
    """`count` mutated events from this seed."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    watch, key, verifier = Watch("events", seed), _DEPLOYMENT.event_key, _verifier()
    examples = valid_messages.on_streams()
    for number in range(count):
        if number == int(count * _WARM_SHARE):
            watch.warmed_up()
        body = _body(rng, examples, huge=number % _HUGE_EVERY == 1)
        signature = key.sign_event(_DEPLOYMENT.name, body)
        if rng.random() < _BADLY_SIGNED_SHARE:
            signature = rng.choice((odd_values.text(rng), "", signature[:-1], signature[::-1]))
        _one(watch, verifier, StreamRecord(number, body, signature))
        if watch.over:
            break
    return watch.finish()


def replay(body: bytes) -> Report:
    """One event again, signed."""
    watch = Watch("events", 0)
    signature = _DEPLOYMENT.event_key.sign_event(_DEPLOYMENT.name, body)
    _one(watch, _verifier(), StreamRecord(0, body, signature))
    return watch.finish()


def _verifier() -> Verifier:
    logging.getLogger("keyturn.publisher.event_stream").setLevel(logging.ERROR)
    key = VerifyKey.from_bytes(_DEPLOYMENT.event_key.public_bytes)
    return Verifier(_DEPLOYMENT.name, [key])


def _body(rng: random.Random, examples: list[valid_messages.Document], *, huge: bool) -> bytes:
    document = rng.choice(examples)
    if rng.random() < 0.9:
        document = documents.mutated(rng, document, examples)
    if huge:
        document = document | {rng.choice(sorted(document)): odd_values.nested(rng, 100_000 // 4)}
    try:
        body = documents.encoded(rng, document)
    except RecursionError:
        body = b'{"type":' + rng.choice((b"[", b'{"a":')) * 100_000
    return documents.broken(rng, body) if rng.random() < 0.12 else body


def _one(watch: Watch, verifier: Verifier, record: StreamRecord) -> None:
    clock = Clock()
    try:
        read = (*verifier.events(record), verifier.worker_report(record))
        found = [message for message in (*read, verifier.audit_record(record)) if message]
        cpu_s = clock.passed_s()
        if len(found) > 1:
            watch.found("one message that is read as two kinds", record.body)
        for message in found:
            if _again(message) != message:
                watch.found("a message that does not come back as it was read", record.body)
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is the finding
        watch.found(f"raised {exc!r}"[:300], record.body)
        return
    if cpu_s > MAX_CPU_S:
        watch.found(f"{cpu_s * 1000:.0f} ms of CPU for one event", record.body)
    watch.outcome(found[0].type if found else "nothing", cpu_s)


def _again(message: Any) -> Any:
    match message:
        case WorkerReported():
            return parse_worker_report(as_text(message))
        case AuditRecorded():
            return parse_audit(as_text(message))
    return parse_event(as_text(message))
