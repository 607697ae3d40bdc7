"""Mutated events, reports and records through what readers of the streams use (SPEC 6.7, 15.3, 16).

A reader gets what it reads for or nothing: whatever is on the stream, `Verifier` and `AuditChains`
raise nothing, and what they give is signed, of one kind, and comes back as it was read. Only of
what is signed as a batch they give several events.
"""

from __future__ import annotations

import logging
import random
from typing import Any, Final

from keyturn.audit import AuditChains
from keyturn.crypto import EventVerifier
from keyturn.messages import (
    EVENT_BATCH_MAX,
    EVENT_MODELS,
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
_BATCH_SHARE: Final = 0.3
_DEPLOYMENT: Final = valid_messages.deployment()


def run(seed: int, count: int) -> Report:
    """`count` mutated events from this seed."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    watch, key, verifier = Watch("events", seed), _DEPLOYMENT.event_key, _verifier()
    examples = valid_messages.on_streams()
    for number in range(count):
        if number == int(count * _WARM_SHARE):
            watch.warmed_up()
        is_batch = rng.random() < _BATCH_SHARE
        document = _batch(rng, examples) if is_batch else rng.choice(examples)
        body = _body(rng, document, examples, huge=number % _HUGE_EVERY == 1)
        if rng.random() < _BADLY_SIGNED_SHARE:
            is_batch = not is_batch
        sign = key.sign_events if is_batch else key.sign_event
        signature = sign(_DEPLOYMENT.name, body)
        if rng.random() < _BADLY_SIGNED_SHARE:
            signature = rng.choice((odd_values.text(rng), "", signature[:-1], signature[::-1]))
        _one(watch, verifier, StreamRecord(number, body, signature), is_batch=is_batch)
        if watch.over:
            break
    return watch.finish()


def replay(body: bytes) -> Report:
    """One event again, signed; and as a batch."""
    watch, key = Watch("events", 0), _DEPLOYMENT.event_key
    for is_batch, sign in ((False, key.sign_event), (True, key.sign_events)):
        record = StreamRecord(0, body, sign(_DEPLOYMENT.name, body))
        _one(watch, _verifier(), record, is_batch=is_batch)
    return watch.finish()


def _verifier() -> Verifier:
    logging.getLogger("keyturn.publisher.event_stream").setLevel(logging.ERROR)
    return Verifier(_DEPLOYMENT.name, [_DEPLOYMENT.event_key.verify_key()])


def _audit_record(record: StreamRecord) -> AuditRecorded | None:
    chains = AuditChains(EventVerifier(_DEPLOYMENT.name, [_DEPLOYMENT.event_key.verify_key()]))
    return chains.add(record.body, record.signature).record


def _batch(rng: random.Random, examples: list[valid_messages.Document]) -> valid_messages.Document:
    """Events of one type, for the most part; some of them are changed."""
    kind = rng.choice(sorted(EVENT_MODELS))
    alike = [example for example in examples if example["type"] == kind]
    count = rng.choice((0, 1, 2, 3, 5, EVENT_BATCH_MAX, EVENT_BATCH_MAX + 1))
    events = [rng.choice(alike if rng.random() < 0.9 else examples) for _ in range(count)]
    changed = [
        documents.mutated(rng, event, examples) if rng.random() < 0.3 else event for event in events
    ]
    return {"type": kind, "events": changed}


def _body(
    rng: random.Random,
    document: valid_messages.Document,
    examples: list[valid_messages.Document],
    *,
    huge: bool,
) -> bytes:
    if rng.random() < (0.3 if "events" in document else 0.9):
        document = documents.mutated(rng, document, examples)
    if huge:
        document = document | {rng.choice(sorted(document)): odd_values.nested(rng, 100_000 // 4)}
    try:
        body = documents.encoded(rng, document)
    except RecursionError:
        body = b'{"type":' + rng.choice((b"[", b'{"a":')) * 100_000
    return documents.broken(rng, body) if rng.random() < 0.12 else body


def _one(watch: Watch, verifier: Verifier, record: StreamRecord, *, is_batch: bool) -> None:
    clock = Clock()
    try:
        events = verifier.events(record)
        others = (verifier.worker_report(record), _audit_record(record))
        found: list[Any] = [*events, *filter(None, others)]
        cpu_s = clock.passed_s()
        if len({event.type for event in found}) > 1 or (events and len(found) > len(events)):
            watch.found("one message that is read as two kinds", record.body)
        if len(found) > (EVENT_BATCH_MAX if is_batch else 1):
            watch.found("one message that is read as too many", record.body)
        for message in found:
            if _again(message) != message:
                watch.found("a message that does not come back as it was read", record.body)
    except Exception as exc:  # noqa: BLE001  # whatever it is, it is the finding
        watch.found(f"raised {exc!r}"[:300], record.body)
        return
    if cpu_s > MAX_CPU_S:
        watch.found(f"{cpu_s * 1000:.0f} ms of CPU for one event", record.body)
    batch = "a batch of " if is_batch else ""
    watch.outcome(batch + found[0].type if found else "nothing", cpu_s)


def _again(message: Any) -> Any:
    match message:
        case WorkerReported():
            return parse_worker_report(as_text(message))
        case AuditRecorded():
            return parse_audit(as_text(message))
    return parse_event(as_text(message))
