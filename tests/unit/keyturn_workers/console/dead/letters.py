"""Indexed letters for tests."""

from __future__ import annotations

from typing import Any

from keyturn_workers.console.dead.letters import IndexedLetter

EPOCH_S = 1_764_000_000.0
UPLOADS, CONTROL = "keyturn.upload.dead", "keyturn.control.dead"


def indexed(number: int, **changes: Any) -> IndexedLetter:
    """An upload that was refused; `number` is its digest and its age."""
    values: dict[str, Any] = {
        "queue": UPLOADS,
        "digest": number,
        "message_id": f"id-{number}",
        "type": "upload.requested",
        "project": "acme",
        "code": "bad_seal",
        "detail": "does not open",
        "publisher": "api",
        "requested_at": EPOCH_S - 1000.0 - number,
        "dead_at": EPOCH_S - number,
        "size_bytes": 100 + number,
        "work_queue": "keyturn.upload",
        "obstacle": "",
    }
    return IndexedLetter(**values | changes)
