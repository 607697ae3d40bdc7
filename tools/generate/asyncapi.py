"""The AsyncAPI 3.0 document: exchange, routing keys, queues, headers (SPEC 6, 15.3, 16).

It describes the workers: they receive requests and send events. Queues and their
arguments are in `x-queues`, because AsyncAPI's own bindings have no place for them.
It must never say what `keyturn.topology` does not.
"""

from typing import Any, Final

from keyturn.messages import (
    AUDIT_MODELS,
    EVENT_BATCH_MAX,
    EVENT_MODELS,
    MARK_MODELS,
    REQUEST_MODELS,
    WORKER_REPORT_MODELS,
)
from keyturn.topology import (
    AUDIT_STREAM,
    EVENT_KEY_HEADER,
    EVENTS,
    EVENTS_STREAM,
    EXCHANGE,
    MARKS_STREAM,
    NOTIFICATIONS,
    PUBLISHER_EVENTS,
    PUBLISHER_EVENTS_EXCHANGE,
    PUBLISHER_HEADER,
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
    WORKERS_STREAM,
    audit_queue,
    publisher_binding,
    publisher_queue,
    queues,
)

_B64_ED25519: Final = {"type": "string", "contentEncoding": "base64", "minLength": 88}
_TRACEPARENT: Final = {
    "type": "string",
    "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
    "description": "The span that sent the message, for traces: unsigned, and ignored by all else",
}
_REQUEST_HEADERS: Final[dict[str, Any]] = {
    "type": "object",
    "required": [PUBLISHER_HEADER, SIGNATURE_HEADER],
    "properties": {
        PUBLISHER_HEADER: {"type": "string", "pattern": "^[a-z0-9-]{1,32}$"},
        SIGNATURE_HEADER: _B64_ED25519
        | {
            "description": "Ed25519 over 'keyturn/v1/request', the deployment, the publisher "
            "and the body's bytes, joined by one zero byte each"
        },
        TRACEPARENT_HEADER: _TRACEPARENT,
    },
}
_EVENT_HEADERS: Final[dict[str, Any]] = {
    "type": "object",
    "required": [SIGNATURE_HEADER],
    "properties": {
        SIGNATURE_HEADER: _B64_ED25519
        | {
            "description": "Ed25519 over 'keyturn/v1/event', or of a batch 'keyturn/v1/events', "
            "the deployment and the body's bytes, joined by one zero byte each"
        },
        EVENT_KEY_HEADER: {
            "type": "string",
            "pattern": "^[0-9a-f]{16}$",
            "description": "The id of the key that signed: a hint, unsigned",
        },
        PUBLISHER_HEADER: {
            "type": "string",
            "pattern": "^[a-z0-9-]{1,32}$",
            "description": "Whose request it answers: the broker feeds the publisher's stream by "
            "it. Unsigned; readers trust only the body",
        },
    },
}
# Of what no request begins.
_OWN_HEADERS: Final = _EVENT_HEADERS | {
    "required": [SIGNATURE_HEADER, EVENT_KEY_HEADER],
    "properties": {
        name: schema
        for name, schema in _EVENT_HEADERS["properties"].items()
        if name != PUBLISHER_HEADER
    },
}
_MARK_HEADERS: Final = _OWN_HEADERS | {
    "properties": _OWN_HEADERS["properties"]
    | {
        SIGNATURE_HEADER: _B64_ED25519
        | {
            "description": "Ed25519 over 'keyturn/v1/mark', the deployment and the body's "
            "bytes, joined by one zero byte each"
        }
    },
}
_MODELS: Final = {
    **REQUEST_MODELS,
    **EVENT_MODELS,
    **AUDIT_MODELS,
    **WORKER_REPORT_MODELS,
    **MARK_MODELS,
}


def asyncapi() -> dict[str, Any]:
    """The whole document."""
    types = list(_MODELS)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Keyturn",
            "version": "1.0.0",
            "description": "Requests to Keyturn's workers, and the events that answer them. "
            "Every message is persistent; requests are published with `mandatory` and "
            "publisher confirms. Delivery is at least once on both sides.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {name: _channel(name) for name in types},
        "operations": {name: _operation(name) for name in types},
        "components": {"messages": {name: _message(name) for name in types}},
        "x-queues": [_queue(queue) for queue in (*queues(), audit_queue())],
        "x-publisher-events": {
            "exchange": {"name": PUBLISHER_EVENTS_EXCHANGE, "type": "headers", "internal": True},
            "boundTo": {"exchange": EXCHANGE, "routingKeys": list(PUBLISHER_EVENTS)},
            "queue": _queue(publisher_queue("{publisher}")),
            "binding": publisher_binding("{publisher}"),
        },
    }


def _channel(name: str) -> dict[str, Any]:
    exchange = {"name": EXCHANGE, "type": "topic", "durable": True, "autoDelete": False}
    return {
        "address": name,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, "bindingVersion": "0.3.0"}},
    }


def _operation(name: str) -> dict[str, Any]:
    is_request = name in REQUEST_MODELS
    amqp = {"deliveryMode": 2, "mandatory": is_request, "ack": True, "bindingVersion": "0.3.0"}
    return {
        "action": "receive" if is_request else "send",
        "channel": {"$ref": f"#/channels/{name}"},
        "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        "bindings": {"amqp": amqp},
    }


def _message(name: str) -> dict[str, Any]:
    model = _MODELS[name]
    return {
        "name": name,
        "summary": (model.__doc__ or "").strip().partition("\n")[0],
        "contentType": "application/json",
        "headers": _headers(name),
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": _schema(name),
        },
    }


def _schema(name: str) -> dict[str, Any]:
    """A message's schema: events of most types also come in batches (SPEC 6.7)."""
    one = {"$ref": f"./schemas/{name}.json"}
    if name not in EVENTS:
        return one
    batch = {
        "type": "object",
        "required": ["type", "events"],
        "additionalProperties": False,
        "properties": {
            "type": {"const": name},
            "events": {
                "type": "array",
                "items": one,
                "minItems": 1,
                "maxItems": EVENT_BATCH_MAX,
            },
        },
    }
    return {"oneOf": [one, batch]}


def _headers(name: str) -> dict[str, Any]:
    if name in REQUEST_MODELS:
        return _REQUEST_HEADERS
    if name in MARK_MODELS:
        return _MARK_HEADERS
    return _EVENT_HEADERS if name in EVENT_MODELS else _OWN_HEADERS


def _queue(queue: Any) -> dict[str, Any]:
    description = {"name": queue.name, "durable": True, "arguments": dict(queue.arguments)}
    description["bindings"] = list(queue.bindings)
    if queue.name == AUDIT_STREAM:
        description["description"] = "Its bounds of age and size are settings of the workers"
    if queue.name == WORKERS_STREAM:
        description["description"] = "What workers report about themselves; for consoles"
    if queue.name == MARKS_STREAM:
        description["description"] = "The marks of keyrings, without any bound; for workers"
    if queue.name == NOTIFICATIONS:
        description["description"] = (
            "Notifications of new objects from storage servers; unsigned, so only hints. Fed by "
            "the fanout exchange of the same name; the oldest are dropped first"
        )
    if queue.name == EVENTS_STREAM:
        description["description"] = (
            "Read with the consumer argument x-stream-offset, prefetch and acks"
        )
    return description
