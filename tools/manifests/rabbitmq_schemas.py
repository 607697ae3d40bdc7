"""The fields of RabbitMQ's operators that `deploy/kubernetes/examples` uses.

As their reference has them (`rabbitmq.com/v1beta1`): there is no package with their schemas.
"""

from __future__ import annotations

from typing import Any, Final

_TEXT: Final = {"type": "string", "minLength": 1}
_METADATA: Final = {"type": "object"}


def _object(required: tuple[str, ...], **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _resource(required: tuple[str, ...], **spec: Any) -> dict[str, Any]:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "rabbitmq.com/v1beta1"},
        kind=_TEXT,
        metadata=_METADATA,
        spec=_object(required, **spec),
    )


_REFERENCE: Final = _object(("name",), name=_TEXT)
_CLUSTER: Final = _object(("name",), name=_TEXT, namespace=_TEXT)
_PATTERN: Final = {"type": "string"}

RABBITMQ_SCHEMAS: Final[dict[tuple[str, str], dict[str, Any]]] = {
    ("rabbitmq.com/v1beta1", kind): schema
    for kind, schema in {
        "RabbitmqCluster": _resource(
            ("replicas",),
            replicas={"type": "integer", "minimum": 0},
            image=_TEXT,
            tls=_object(
                ("secretName",),
                secretName=_TEXT,
                caSecretName=_TEXT,
                disableNonTLSListeners={"type": "boolean"},
            ),
            rabbitmq=_object((), additionalConfig=_TEXT, additionalPlugins={"type": "array"}),
            resources=_object((), requests={"type": "object"}, limits={"type": "object"}),
            persistence=_object((), storage=_TEXT, storageClassName=_TEXT),
            affinity={"type": "object"},
        ),
        "Vhost": _resource(
            ("name", "rabbitmqClusterReference"),
            name=_TEXT,
            deletionPolicy={"enum": ["delete", "retain"]},
            rabbitmqClusterReference=_CLUSTER,
        ),
        "User": _resource(
            ("rabbitmqClusterReference",),
            importCredentialsSecret=_REFERENCE,
            rabbitmqClusterReference=_CLUSTER,
            tags={"type": "array", "items": _TEXT},
        ),
        "Permission": _resource(
            ("vhost", "permissions", "userReference", "rabbitmqClusterReference"),
            vhost=_TEXT,
            userReference=_REFERENCE,
            permissions=_object((), configure=_PATTERN, write=_PATTERN, read=_PATTERN),
            rabbitmqClusterReference=_CLUSTER,
        ),
        "TopicPermission": _resource(
            ("vhost", "permissions", "userReference", "rabbitmqClusterReference"),
            vhost=_TEXT,
            userReference=_REFERENCE,
            permissions=_object(("exchange",), exchange=_TEXT, write=_PATTERN, read=_PATTERN),
            rabbitmqClusterReference=_CLUSTER,
        ),
    }.items()
}
