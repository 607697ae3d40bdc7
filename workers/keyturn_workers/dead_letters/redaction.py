"""A letter as JSON, without what may be secret (SPEC 12). Pure."""

import json
from collections.abc import Mapping
from typing import Any, Final

from keyturn.errors import MalformedRequestError
from keyturn.messages import load_json

# Fields without a secret in a well-formed request; of all others only the length is shown.
_SAFE_FIELDS: Final = frozenset(
    {
        "type",
        "upload_id",
        "request_id",
        "rotation_id",
        "sweep_id",
        "project",
        "key",
        "requested_at",
        "content_type",
        "expected_generation",
        "plaintext",
        "v0",
        "adopt",
        "master_key",
        "encrypt_plaintext",
        "repair",
        "actor",
        "view",
        "limit",
        "action",
        "queue",
        "outcome",
    }
)
_SAFE_NESTED_FIELDS: Final = {
    "sealed_key": ("intake_key",),
    "sealed_kek": ("intake_key",),
    "sealed_v0_kek": ("intake_key",),
    "body": ("staged", "sha256", "bytes"),
}


def redacted_body(body: bytes) -> dict[str, Any]:
    """A request's fields; only the lengths of sealed and unknown ones."""
    try:
        document = load_json(body)
    except MalformedRequestError as exc:
        return {"unreadable": exc.detail, "bytes": len(body)}
    try:
        return {name: _redact(name, value) for name, value in document.items()}
    except RecursionError:
        return {"unreadable": "nested too deep", "bytes": len(body)}


def _redact(name: str, value: object) -> object:
    if name in _SAFE_FIELDS and not isinstance(value, dict | list):
        return value
    if name == "metadata" and isinstance(value, dict):
        return value
    if name in _SAFE_NESTED_FIELDS and isinstance(value, dict):
        safe = _SAFE_NESTED_FIELDS[name]
        return {part: v if part in safe else _elide(v) for part, v in value.items()}
    return _elide(value)


def _elide(value: object) -> str:
    if isinstance(value, str):
        return f"<{len(value)} characters>"
    return f"<{len(json.dumps(value))} characters of JSON>"


def json_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Headers as JSON values; of one that is nested too deep only its name."""
    return {name: _json_value(value) for name, value in headers.items()}


def _json_value(value: object) -> Any:
    try:
        return json.loads(json.dumps(value, default=str))
    except (ValueError, TypeError, RecursionError):
        return "<not readable as JSON>"
