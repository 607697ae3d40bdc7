"""The examples of every message, which are written by hand in `contracts/examples` (SPEC 6).

Of each type, `{type}.json` has `valid` documents by title, which pass the model and the schema,
and `invalid` bodies by title, which the model refuses with the `code` beside them. `sealed.json`
holds the keys and secrets of the valid ones: they are public, and must never be used in a
deployment. `signed.json` is made from both: the headers of each type's first valid example, over
its bytes in compact form.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from keyturn.crypto import SigningKey, from_base64
from keyturn.messages import (
    AUDIT_MODELS,
    EVENT_MODELS,
    MARK_MODELS,
    REQUEST_MODELS,
    WORKER_REPORT_MODELS,
)

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "contracts" / "examples"
Document = dict[str, Any]
SEALED: Final[dict[str, str]] = json.loads((EXAMPLES / "sealed.json").read_text(encoding="utf-8"))
DEPLOYMENT: Final = SEALED["deployment"]
PUBLISHER: Final = SEALED["publisher"]
API_KEY: Final = SEALED["api_key"]
PROJECT: Final = "acme"
ROTATION_ID: Final = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
SWEEP_ID: Final = "e0a4c6b8-7d92-4f31-8c55-2b9d0f6e1a74"


def _valid(types: Iterable[str]) -> dict[str, dict[str, Document]]:
    return {
        name: json.loads((EXAMPLES / f"{name}.json").read_text(encoding="utf-8"))["valid"]
        for name in types
    }


def requests() -> dict[str, dict[str, Document]]:
    """Valid requests by type and title."""
    return _valid(REQUEST_MODELS)


def events() -> dict[str, dict[str, Document]]:
    """Valid events by type and title."""
    return _valid(EVENT_MODELS)


def audit_records() -> dict[str, dict[str, Document]]:
    """Valid records of the audit trail by type and title."""
    return _valid(AUDIT_MODELS)


def worker_reports() -> dict[str, dict[str, Document]]:
    """Valid reports of workers by type and title."""
    return _valid(WORKER_REPORT_MODELS)


def marks() -> dict[str, dict[str, Document]]:
    """Valid marks of keyrings by type and title."""
    return _valid(MARK_MODELS)


def compact(document: Document) -> bytes:
    """The bytes over which an example is signed."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def signed() -> Document:
    """The content of `signed.json`; Ed25519 signs the same way each time."""
    valid = requests() | events() | audit_records() | worker_reports() | marks()
    bodies = {name: compact(next(iter(documents.values()))) for name, documents in valid.items()}
    return {
        name: {"body": body.decode(), "headers": _headers(name, body)}
        for name, body in bodies.items()
    }


def _headers(message_type: str, body: bytes) -> dict[str, str]:
    """The headers of an example as it would be sent."""
    if message_type in REQUEST_MODELS:
        key = SigningKey.from_seed(from_base64(SEALED["publisher_seed"]))
        signature = key.sign_request(DEPLOYMENT, PUBLISHER, body)
        return {"keyturn-publisher": PUBLISHER, "keyturn-signature": signature}
    key = SigningKey.from_seed(from_base64(SEALED["event_seed"]))
    sign = key.sign_mark if message_type in MARK_MODELS else key.sign_event
    return {"keyturn-signature": sign(DEPLOYMENT, body)}
