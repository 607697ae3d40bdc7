"""Valid examples of the messages that exist for consoles (SPEC 16). Pure."""

import hashlib
from typing import Any, Final

from tools.generate.sealed_secrets import (
    AT,
    AUDIT_ID,
    KEY,
    PROJECT,
    REQUESTED_AT,
    ROTATION_ID,
    STATUS_ID,
    SWEEP_ID,
    UPLOAD_ID,
)

Document = dict[str, Any]

_EVIDENCE: Final = hashlib.sha256(b"the file of evidence").hexdigest()
_LETTER: Final = hashlib.sha256(b"the body of a dead letter").hexdigest()
_NEXT: Final = "eyJhZnRlciI6ImFjbWUifQ"
_COUNTS: Final = {"objects": 1502, "rewrapped": 1495, "current": 1500, "deleted": 2}


def requests() -> dict[str, dict[str, Document]]:
    """Requests for reports and for records, by type and title."""
    common = {"requested_at": REQUESTED_AT}
    status = common | {"type": "status.requested", "request_id": STATUS_ID, "project": PROJECT}
    everything = status | {"project": "*", "actor": "Kim Doe"}
    letter = {
        "request": _LETTER,
        "request_type": "upload.requested",
        "request_id": UPLOAD_ID,
        "project": PROJECT,
    }
    audit = common | {
        "type": "audit.requested",
        "request_id": AUDIT_ID,
        "project": "*",
        "actor": "Kim Doe",
        "action": "dead_letter.replayed",
        "queue": "keyturn.upload.dead",
        "letters": [letter],
    }
    dead = common | {
        "type": "dead_letters.requested",
        "request_id": AUDIT_ID,
        "project": "*",
        "actor": "Kim Doe",
        "action": "replay",
        "queue": "keyturn.upload.dead",
    }
    return {
        "status.requested": {
            "one-project": status | {"view": "projects"},
            "second-page": everything
            | {
                "view": "projects",
                "filter": {"text": "acme", "state": "earlier_keks"},
                "order": "-last_proof_at",
                "page": 2,
                "limit": 1000,
            },
            "objects": everything | {"view": "objects", "after": _NEXT, "limit": 500},
            "audit": everything
            | {"view": "audit", "filter": {"outcome": "not_ok", "since": REQUESTED_AT}, "page": 1},
            "one-sweep": status | {"view": "sweep", "sweep_id": SWEEP_ID},
            "evidence": status | {"view": "evidence"},
            "master-keys": everything | {"view": "master_keys"},
        },
        "audit.requested": {
            "replay": audit | {"reason": "ticket 4711: the bucket was full"},
            "unreadable-letter": audit
            | {"action": "dead_letter.discarded", "letters": [{"request": _LETTER}]},
            "failed": audit | {"outcome": "request_expired"},
        },
        "dead_letters.requested": {
            "by-code": dead | {"code": "storage_unavailable", "reason": "the bucket was full"},
            "single-letters": dead | {"action": "discard", "letters": [_LETTER]},
        },
    }


def events() -> dict[str, dict[str, Document]]:
    """Reports and acceptances by type and title."""
    report: Document = {"request_id": STATUS_ID, "project": PROJECT, "at": AT}
    everything = report | {"project": "*"}
    moved = {
        "request_id": AUDIT_ID,
        "project": "*",
        "at": AT,
        "queue": "keyturn.upload.dead",
        "action": "replay",
    }
    whole: Document = {"page": 1, "total": 1, "of_all": 1, "is_complete": True}
    return {
        "status.reported": {
            "one-project": report | {"view": "projects"} | whole | {"projects": [_project()]},
            "page": everything
            | {
                "view": "projects",
                "page": 2,
                "total": 403,
                "of_all": 9127,
                "is_complete": True,
                "projects": [
                    _project(),
                    {"project": "bob", "code": "unknown_master_key", "detail": "2025"},
                    {"project": "carol", "mark": "removed"},
                ],
            },
            "not-read": everything
            | {"view": "sweeps", "page": 1, "code": "storage_unavailable", "detail": "no answer"},
            "sweeps": everything | {"view": "sweeps"} | whole | {"sweeps": [_sweep()]},
            "failures": report
            | {"view": "failures", "sweep_id": SWEEP_ID}
            | whole
            | {
                "failures": [{"project": PROJECT, "key": KEY, "code": "corrupt_object"}],
                "codes": [{"code": "corrupt_object", "count": 1}],
            },
            "evidence": report | {"view": "evidence"} | whole | {"evidence_files": [_evidence()]},
            "master-keys": everything
            | {"view": "master_keys"}
            | whole
            | {"total": 2, "of_all": 2, "master_keys": _master_keys()},
            "objects": everything | {"view": "objects", "next": _NEXT, "objects": _objects()},
            "workers": everything | {"view": "workers"} | whole | {"workers": [_worker()]},
            "queues": everything | {"view": "queues"} | whole | {"queues": [_queue()]},
            "totals": everything | {"view": "totals"} | whole | {"totals": [_totals()]},
            "attention": everything | {"view": "attention"} | whole | {"attention": [_item()]},
            "audit": everything | {"view": "audit"} | whole | {"audit_records": [_record()]},
            "dead-letters": everything
            | {"view": "dead_letters"}
            | whole
            | {
                "dead_letters": [_letter()],
                "dead_queues": [{"queue": "keyturn.upload.dead", "depth": 1, "read": 1}],
                "codes": [{"queue": "keyturn.upload.dead", "code": "request_expired", "count": 1}],
            },
        },
        "audit.accepted": {
            "recorded": {"request_id": AUDIT_ID, "project": "*", "at": AT},
        },
        "dead_letters.moved": {
            "all": moved | {"moved": 2500, "left": 0},
            "some-left": moved
            | {
                "moved": 2499,
                "left": 1,
                "code": "malformed_request",
                "detail": "cannot be replayed: with already_exists the body is not kept",
            },
        },
    }


def _project() -> Document:
    return {
        "project": PROJECT,
        "generation": 4,
        "kek_id": "9f86d081884c7d65",
        "master_key": "2027",
        "plaintext": False,
        "v0": False,
        "earlier_keks": 1,
        "enrolled_at": "2026-01-12T08:30:00.000000Z",
        "rotated_at": "2026-11-24T09:58:11.000000Z",
        "evidence": _EVIDENCE,
        "mark": "current",
        "key_since": "2026-11-24T09:58:11.000000Z",
        "last_proof_at": AT,
        "last_proof_sweep": ROTATION_ID,
        "last_end_sweep": ROTATION_ID,
        "last_end_clean": True,
        "running_sweeps": [SWEEP_ID],
    }


def _sweep() -> Document:
    return {
        "sweep_id": ROTATION_ID,
        "project": PROJECT,
        "kind": "rotation",
        "status": "done",
        "clean": True,
        "counts": _COUNTS,
        "requested_at": REQUESTED_AT,
        "started_at": REQUESTED_AT,
        "ended_at": AT,
        "publisher": "api",
        "generation": 4,
        "evidence": _EVIDENCE,
        "rate_per_s": 812.5,
        "pages": 4,
        "pages_open": 0,
        "progress": {
            "phase": "ended",
            "done": 1502,
            "total": 1502,
            "first_rewrap_at": "2026-11-24T10:00:02.000000Z",
            "all_rewrapped_at": "2026-11-24T10:00:04.000000Z",
            "proof_possible_at": "2026-11-24T10:00:31.000000Z",
        },
    }


def _evidence() -> Document:
    return {
        "project": PROJECT,
        "generation": 4,
        "sweep_id": ROTATION_ID,
        "at": AT,
        "digest": _EVIDENCE,
        "envelope": '{"payloadType":"application/vnd.in-toto+json","payload":"","signatures":[]}',
    }


def _master_keys() -> list[Document]:
    return [
        {"master_key": "2026", "provider": "local", "active": False},
        {
            "master_key": "2027",
            "provider": "awskms",
            "active": True,
            "code": "kms_unavailable",
        },
    ]


def _objects() -> list[Document]:
    return [
        {"kind": "encrypted", "count": 187, "generation": 4, "master_key": "2027"},
        {"kind": "unreadable", "count": 1, "code": "no_usable_wrap"},
        {"kind": "foreign", "count": 2},
    ]


def _worker() -> Document:
    report = dict(worker_reports()["worker.reported"]["running"])
    del report["type"]
    return report | {"as_of": report.pop("at"), "is_stopping": False, "is_missing": False}


def _queue() -> Document:
    return {
        "queue": "keyturn.upload",
        "depth": 812,
        "consumers": 2,
        "retrying": 3,
        "dead": 1,
        "served_per_s": 96.5,
        "refused_per_s": 0.0,
        "oldest_s": 8.5,
    }


def _totals() -> Document:
    return {
        "at": "2026-11-24T09:59:00.000000Z",
        "uploads": 5790,
        "uploads_refused": 2,
        "control": 14,
        "control_refused": 0,
        "pages": 120,
        "retried": 1,
    }


def _item() -> Document:
    return {
        "rule": "queue_unserved",
        "severity": "act",
        "title": "Nothing consumes keyturn.upload",
        "detail": "812 messages wait.",
        "link": {"page": "queues"},
        "remedy": "Start a worker with this role.",
        "command": "keyturn worker upload",
        "as_of": AT,
    }


def _record() -> Document:
    return {
        "audit_id": "c1e3a5b7-9d2f-4b60-8c4e-6a8b0d2f4c61",
        "at": AT,
        "process": "8b0d2f4a-6c8e-4a1b-9d3f-5e7a9c1b3d52",
        "counter": 12,
        "role": "worker control",
        "host": "worker-1",
        "action": "request.served",
        "actor": "Kim Doe",
        "publisher": "console",
        "request": _LETTER,
        "request_type": "rotation.requested",
        "request_id": ROTATION_ID,
        "project": PROJECT,
        "outcome": "done",
        "offset": 4711,
        "findings": ["MISSING: record 11 is missing before record 12"],
    }


def _letter() -> Document:
    return {
        "queue": "keyturn.upload.dead",
        "letter": _LETTER,
        "message_id": UPLOAD_ID,
        "type": "upload.requested",
        "project": PROJECT,
        "code": "request_expired",
        "publisher": "api",
        "requested_at": REQUESTED_AT,
        "dead_at": AT,
        "size_bytes": 2048,
        "work_queue": "keyturn.upload",
        "obstacle": "expired",
    }


def worker_reports() -> dict[str, dict[str, Document]]:
    """Reports of workers about themselves, by title."""
    name = "worker.reported"
    idle = {"queue": "keyturn.plan", "served": 0, "refused": 0, "retried": 0, "in_flight": 0}
    busy = idle | {
        "queue": "keyturn.upload",
        "served": 48210,
        "refused": 3,
        "retried": 12,
        "in_flight": 17,
        "oldest_s": 0.8,
        "waited_s": 2.5,
    }
    report: Document = {
        "type": name,
        "at": AT,
        "worker_id": "8b0d2f4a-6c8e-4a1b-9d3f-5e7a9c1b3d52",
        "roles": ["sweep", "upload"],
        "host": "worker-1",
        "version": "0.9.0",
        "started_at": "2026-11-24T06:00:00.000000Z",
        "interval_s": 15,
        "lease_s": 15,
        "is_clock_known": True,
        "active_master_key": "2027",
        "master_keys": ["2026", "2027"],
        "event_keys": ["1f3a5c7e9b0d2f4a"],
        "intake_keys": ["main"],
        "queues": [busy, idle],
    }
    stopping = {"is_stopping": True, "queues": [busy | {"is_consuming": False, "in_flight": 0}]}
    return {name: {"running": report, "stopping": report | stopping}}
