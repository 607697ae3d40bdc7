"""Examples of every message: valid ones, and invalid ones with the reason (SPEC 6).

Of each type, `{type}.json` has `valid` documents by title, which pass the model and the
schema, and `invalid` bodies by title, which the model refuses with the `code` beside them.
`signed.json` holds the headers of each type's first valid example, over its bytes in compact
form.
It must never hold a real secret: its keys are those of `sealed.json`.
"""

import hashlib
import json
from pathlib import PurePosixPath
from typing import Any, Final

from keyturn.crypto import sealed_size
from keyturn.messages import COUNT_FIELDS, EVENT_MODELS
from tools.generate import console_examples, invalid_examples
from tools.generate.sealed_secrets import (
    AT,
    AUDIT_ID,
    DELETE_ID,
    ENROLL_ID,
    INTAKE_KEY_ID,
    KEY,
    PLAINTEXT,
    PROJECT,
    RECOVERY_ID,
    REQUESTED_AT,
    ROTATION_ID,
    STATUS_ID,
    SWEEP_ID,
    UPLOAD_ID,
    headers,
)

_STAGED_PLAINTEXT_BYTES: Final = 64 * 1024 * 1024
Document = dict[str, Any]


def examples(sealed: Document) -> dict[PurePosixPath, str]:
    """Every file below `examples/` but `sealed.json`, by its path."""
    valid = requests(sealed) | events() | audit_records() | console_examples.worker_reports()
    valid |= marks()
    files = {
        f"{name}.json": {
            "valid": documents,
            "invalid": _invalid(name, next(iter(documents.values()))),
        }
        for name, documents in valid.items()
    }
    files["signed.json"] = _signed(sealed, valid)
    return {PurePosixPath(name): _pretty(document) for name, document in files.items()}


def _invalid(name: str, valid: Document) -> Document:
    return {
        title: {"code": "malformed_request", "reason": reason, "body": body}
        for title, body, reason in invalid_examples.cases(name, valid)
    }


def marks() -> dict[str, dict[str, Document]]:
    """Marks of keyrings, by title."""
    mark: Document = {
        "type": "keyring.marked",
        "project": PROJECT,
        "serial": 7,
        "digest": "5f" * 32,
        "generation": 4,
        "kek_id": "9f86d081884c7d65",
        "master_key": "2027",
        "at": REQUESTED_AT,
    }
    first = mark | {"serial": 0, "generation": 1}
    return {"keyring.marked": {"changed": mark, "first-use": first}}


def requests(sealed: Document) -> dict[str, dict[str, Document]]:
    """Valid requests by type and title."""

    def secret(name: str) -> Document:
        return {"intake_key": INTAKE_KEY_ID, "ciphertext": sealed[name]}

    upload: Document = {
        "type": "upload.requested",
        "upload_id": UPLOAD_ID,
        "project": PROJECT,
        "key": KEY,
        "requested_at": REQUESTED_AT,
        "sealed_key": secret("upload_sealed_key"),
        "body": {"inline": sealed["inline"]},
    }
    described = {
        "content_type": "application/pdf",
        "metadata": {"author": "kim", "title": "Übersicht"},
    }
    staged = {"body": {"staged": {"size": sealed_size(_STAGED_PLAINTEXT_BYTES)}}}
    enroll: Document = {
        "type": "enroll.requested",
        "request_id": ENROLL_ID,
        "project": PROJECT,
        "requested_at": REQUESTED_AT,
        "sealed_kek": secret("enroll_sealed_kek"),
    }
    adopting = {
        "plaintext": "allowed",
        "v0": "allowed",
        "sealed_v0_kek": secret("enroll_sealed_v0_kek"),
        "adopt": True,
    }
    return {
        "upload.requested": {
            "inline": upload | described,
            "minimal": upload,
            "staged": upload | staged,
        },
        "enroll.requested": {"minimal": enroll, "adopting": enroll | adopting},
        **_control_requests(secret("rotation_sealed_kek")),
    }


def _control_requests(rotation_kek: Document) -> dict[str, dict[str, Document]]:
    rotation: Document = {
        "type": "rotation.requested",
        "rotation_id": ROTATION_ID,
        "project": PROJECT,
        "requested_at": REQUESTED_AT,
        "sealed_kek": rotation_kek,
    }
    sweep: Document = {
        "type": "sweep.requested",
        "sweep_id": SWEEP_ID,
        "project": PROJECT,
        "requested_at": REQUESTED_AT,
    }
    all_projects = {"project": "*", "master_key": "2027", "repair": True}
    delete: Document = {
        "type": "delete.requested",
        "request_id": DELETE_ID,
        "project": PROJECT,
        "key": KEY,
        "requested_at": REQUESTED_AT,
    }
    recovery: Document = {
        "type": "recover.requested",
        "request_id": RECOVERY_ID,
        "project": PROJECT,
        "requested_at": REQUESTED_AT,
        "reason": "ticket 4711: the bucket was restored from a backup",
        "digest": "a8" * 32,
    }
    return {
        "rotation.requested": {
            "minimal": rotation,
            "from-generation": rotation | {"expected_generation": 3},
        },
        "sweep.requested": {"minimal": sweep, "all-projects": sweep | all_projects},
        "delete.requested": {"minimal": delete, "for-a-person": delete | {"actor": "Kim Doe"}},
        **console_examples.requests(),
        "recover.requested": {
            "rolled-back": recovery | {"serial": 7, "mark": "5f" * 32},
            "without-a-mark": recovery | {"actor": "Kim Doe"},
        },
    }


_PUBLISHER: Final = "api"
_REQUEST: Final = hashlib.sha256(b"the body of a request, as signed").hexdigest()
_ORIGIN: Final[Document] = {"publisher": _PUBLISHER, "request": _REQUEST}


def events() -> dict[str, dict[str, Document]]:
    """Valid events by type and title."""
    enrolled: Document = {"request_id": ENROLL_ID, "project": PROJECT, "generation": 1, "at": AT}
    stored: Document = {
        "upload_id": UPLOAD_ID,
        "project": PROJECT,
        "key": KEY,
        "size": len(PLAINTEXT),
        "generation": 1,
        "at": AT,
    }
    examples: dict[str, dict[str, Document]] = {
        "project.enrolled": {"enrolled": enrolled},
        "upload.stored": {"stored": stored, "with-a-later-field": stored | {"region": "eu"}},
        "enroll.rejected": _rejected("request_id", ENROLL_ID, "already_enrolled"),
        "upload.rejected": _rejected("upload_id", UPLOAD_ID, "already_exists"),
        **_control_events(),
    }
    return {
        name: {
            title: {"type": name} | document | _ORIGIN for title, document in examples[name].items()
        }
        for name in EVENT_MODELS
    }


_EVIDENCE: Final = hashlib.sha256(b"the file of evidence").hexdigest()


def _control_events() -> dict[str, dict[str, Document]]:
    rotation: Document = {"rotation_id": ROTATION_ID, "project": PROJECT, "at": AT}
    sweep: Document = {"sweep_id": SWEEP_ID, "project": PROJECT, "at": AT}
    deleted: Document = {"request_id": DELETE_ID, "project": PROJECT, "key": KEY, "at": AT}
    recovered: Document = {
        "request_id": RECOVERY_ID,
        "project": PROJECT,
        "generation": 3,
        "serial": 8,
        "at": AT,
    }
    under_way = _counts(objects=1500, rewrapped=1480, current=20, clean=True)
    clean = _counts(objects=1502, rewrapped=1495, current=1500, deleted=2, clean=True)
    failing = clean | {"current": 1499, "failed": 1, "clean": False}
    proof = {"late_writes_refused": True, "evidence": _EVIDENCE}
    return {
        "rotation.accepted": {"accepted": rotation | {"generation": 4}},
        "rotation.completed": {
            "clean": rotation | clean | proof,
            "failing": rotation | failing,
        },
        "rotation.failed": {"failed": rotation | _failed("unknown_project")},
        "rotation.rejected": _rejected("rotation_id", ROTATION_ID, "generation_mismatch"),
        "sweep.progressed": {
            "under-way": sweep | under_way,
            "of-a-rotation": sweep | under_way | {"sweep_id": ROTATION_ID},
        },
        "sweep.completed": {
            "clean": sweep | clean | proof,
            "late-writes-accepted": sweep | clean | proof | {"late_writes_refused": False},
            "all-projects": sweep | clean | {"project": "*"},
            "stale-versions": sweep | clean | {"noncurrent_stale": 3, "clean": False},
        },
        "sweep.failed": {
            "failed": sweep | _failed("corrupt_object"),
            "all-projects": sweep | _failed("storage_unavailable") | {"project": "*"},
        },
        "sweep.rejected": _rejected("sweep_id", SWEEP_ID, "unknown_project"),
        "object.deleted": {"deleted": deleted},
        "delete.rejected": _rejected("request_id", DELETE_ID, "not_permitted"),
        **console_examples.events(),
        "status.rejected": _rejected("request_id", STATUS_ID, "not_permitted"),
        "audit.rejected": _rejected("request_id", AUDIT_ID, "not_permitted"),
        "dead_letters.rejected": _rejected("request_id", AUDIT_ID, "not_permitted"),
        "project.recovered": {"recovered": recovered},
        "recover.rejected": _rejected("request_id", RECOVERY_ID, "generation_mismatch"),
    }


def audit_records() -> dict[str, dict[str, Document]]:
    """Valid records of the audit trail by type and title."""
    name = "audit.recorded"
    first: Document = {
        "type": name,
        "audit_id": "0d5f3a8e-4b1c-4e7a-9c62-8f1d2b7e6a53",
        "at": AT,
        "process": "5e8a1c70-36d4-4f0b-8b9e-7c2d1f4a6e95",
        "role": "worker control",
        "host": "control-1",
        "counter": 1,
        "previous": None,
        "action": "request.served",
        "actor": "Kim Doe",
        **_ORIGIN,
        "request_type": "rotation.requested",
        "request_id": ROTATION_ID,
        "project": PROJECT,
        "outcome": "done",
    }
    opened = {
        "role": "download",
        "action": "object.opened_as_operator",
        "actor": "kim@bastion",
        "project": PROJECT,
        "object_key": KEY,
        "outcome": "started",
        "reason": "ticket 4711: the customer lost the file",
    }
    derived = {
        "counter": 2,
        "previous": hashlib.sha256(compact(first)).hexdigest(),
        "action": "kek.derived",
        "actor": "worker control",
        "project": PROJECT,
        "master_key": "2027",
        "kind": "admin",
        "provider": "awskms",
        "provider_request_id": "b6a0d2f4-1c3e-4a58-9d7f-0e2c4b6a8d10",
        "outcome": "done",
    }
    process = ("type", "audit_id", "at", "process", "role", "host", "counter", "previous")
    begun = {field: first[field] for field in process}
    return {name: {"served": first, "opened": begun | opened, "derived": begun | derived}}


def _counts(*, clean: bool, **counts: int) -> Document:
    """The counts of SPEC 8.6, zero where not named."""
    return dict.fromkeys(COUNT_FIELDS, 0) | counts | {"clean": clean}


def _failed(code: str) -> Document:
    return {"code": code, "detail": "see the code"}


def _rejected(id_field: str, request_id: str, code: str) -> dict[str, Document]:
    refused = {id_field: request_id, "at": AT}
    return {
        "refused": refused | {"project": PROJECT, "code": code, "detail": "see the code"},
        "project-unreadable": refused
        | {"project": None, "code": "malformed_request", "detail": "project: Field required"},
    }


def compact(document: Document) -> bytes:
    """The bytes over which an example is signed."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _signed(sealed: Document, valid: dict[str, dict[str, Document]]) -> Document:
    def signed(name: str, document: Document) -> Document:
        body = compact(document)
        return {"body": body.decode(), "headers": headers(sealed, name, body)}

    return {name: signed(name, next(iter(documents.values()))) for name, documents in valid.items()}


def _pretty(document: Document) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
