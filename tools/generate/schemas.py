"""JSON Schemas (2020-12) of every message, out of the models (SPEC 6, 15.3, 16).

A schema is what a validator in any language can check; what it cannot say (a key's
segments, base64's one spelling, a real date) the models check in addition, so a schema
accepts everything that a model accepts and a little more.
It must never refuse what a model accepts.
"""

from typing import Any, Final

from keyturn.messages import (
    AUDIT_MODELS,
    EVENT_MODELS,
    MARK_MODELS,
    REQUEST_MODELS,
    WORKER_REPORT_MODELS,
)

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"


def schemas() -> dict[str, dict[str, Any]]:
    """Every message type with its schema."""
    models = {
        **REQUEST_MODELS,
        **EVENT_MODELS,
        **AUDIT_MODELS,
        **WORKER_REPORT_MODELS,
        **MARK_MODELS,
    }
    return {name: _schema(name, model) for name, model in models.items()}


def _schema(name: str, model: Any) -> dict[str, Any]:
    schema: dict[str, Any] = model.model_json_schema(mode="validation")
    # The models fill in `type`, so that code need not repeat it; on the wire it is required.
    required = ["type", *(field for field in schema.get("required", []) if field != "type")]
    return {"$schema": _DIALECT, "$id": f"{name}.json"} | schema | {"required": required}
