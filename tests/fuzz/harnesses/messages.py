"""Messages as bytes: all that crosses the broker (SPEC 6, 8.5, 15.3, 16)."""

from __future__ import annotations

import json
from typing import Any, Final

from keyturn.errors import MalformedRequestError
from keyturn.identifiers import check_object_key, is_object_key, parse_time
from keyturn.messages import (
    RequestOrigin,
    encode,
    identity,
    parse_audit,
    parse_batch,
    parse_event,
    parse_request,
    parse_worker_report,
    rejection,
)
from keyturn_workers.pipeline.sweep import messages
from tests.fuzz import documents, valid_messages
from tests.fuzz.harness import Harness, as_text, check
from tests.unit.keyturn_workers.factories import AT

_ERROR: Final = MalformedRequestError("a reason")
_PARSERS: Final = (parse_request, parse_event, parse_worker_report, parse_audit, messages.parse)


def run(data: bytes) -> str:
    """Read it as each kind of message."""
    claimed = identity(data)
    if claimed is not None:
        refusal = rejection(*claimed, _ERROR, AT, RequestOrigin.of("api", data))
        check(parse_event(encode(refusal)) == refusal, "a refusal that no reader can read")
    _check_names(data)
    _check_batch(data)
    read = [kind for parse in _PARSERS for kind in _read(data, parse)]
    check(len(read) <= 1, "one message that is read as two kinds")
    return "+".join(read) or "malformed_request"


def _read(data: bytes, parse: Any) -> list[str]:
    try:
        message = parse(data)
    except MalformedRequestError as exc:
        check(len(exc.detail) < 1000, "an error that repeats what was sent")
        return []
    again = parse(as_text(message))
    check(again == message, "a message that does not come back as it was read")
    return [message.type]


def _check_batch(data: bytes) -> None:
    try:
        events = parse_batch(data)
    except MalformedRequestError as exc:
        check(len(exc.detail) < 1000, "an error that repeats what was sent")
        return
    for one in events:
        again = parse_event(as_text(one.event))
        check(again == one.event, "an event of a batch that does not come back as it was read")


def _check_names(data: bytes) -> None:
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    if is_object_key(text):
        check(check_object_key(text) == text, "a key that is not itself")
        check(len(text.encode()) <= 900, "a key that is too long")
    try:
        parse_time(text)
    except ValueError:
        return


def _seeds() -> list[bytes]:
    pool = valid_messages.Pool()
    valid_messages.add_examples(pool)
    step = {"type": "sweep.step", "project": "*", "step": 7}
    page = {"type": "sweep.page", "project": "acme", "page": 2, "attempt": 3}
    page["round"] = "e0a4c6b8-7d92-4f31-8c55-2b9d0f6e1a74"
    on_streams = valid_messages.on_streams()
    stored = [each for each in on_streams if each["type"] == "upload.stored"]
    batch = {"type": "upload.stored", "events": stored}
    found = [*pool.all, *on_streams, batch, step, page]
    return [json.dumps(document).encode() for document in found] + [AT.encode(), b"a/b.pdf"]


HARNESS: Final = Harness(
    "messages",
    run,
    _seeds,
    (
        *(f'"{name}":' for name in documents.NAMES),
        '"\\ud800"',
        '"\\u0000"',
        "NaN",
        "1e999",
        "-0",
        "null",
        "true",
        "{}",
        "[]",
        "[[[[[[[[[[",
        '"sweep.requested"',
        '"delete.requested"',
        '"upload.requested"',
        '"enroll.requested"',
        '"rotation.requested"',
        '"status.requested"',
        '"dead_letters.requested"',
        '"recover.requested"',
        '"erase.requested"',
    ),
)
