"""Validates manifests: fields that exist, with values of their type.

Kubernetes' own kinds against its published schemas (`kubernetes-validate`); those of KEDA,
cert-manager and the Prometheus Operator against the definitions that `cloudcoil` generates its
models from; those of the Gateway API and of External Secrets against the types that
`kubernetes-models` generates for TypeScript (`npm/`); those of RabbitMQ's operators, for which
there is no package, against the fields of their documentation that are used here
(`RABBITMQ_SCHEMAS`). An unknown field is an error: a cluster would silently drop it.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import kubernetes_validate  # type: ignore[import-untyped]

from tools import typescript

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.manifests.documents import Document, Manifests

_TEXT: Final = {"type": "string", "minLength": 1}
_METADATA: Final = {"type": "object"}
_PATTERN: Final = {"type": "string"}

VERSIONS: Final = ("1.31", "1.37")
"""The oldest and the newest version of Kubernetes that is checked."""
_MODULES: Final = {
    "keda.sh/v1alpha1": "cloudcoil.models.keda.v1alpha1",
    "cert-manager.io/v1": "cloudcoil.models.cert_manager.v1",
    "monitoring.coreos.com/v1": "cloudcoil.models.prometheus_operator.v1",
}
NPM: Final = Path(__file__).with_name("npm")
_TYPES: Final = {
    "gateway.networking.k8s.io/v1": "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1",
    "external-secrets.io/v1": "@kubernetes-models/external-secrets/external-secrets.io/v1",
}


def invalid(manifests: Manifests) -> Iterator[str]:
    """What does not conform, with the object and the place."""
    for document in manifests.documents:
        where = f"{document['kind']} {document['metadata']['name']}"
        text = json.dumps(document, sort_keys=True)
        yield from (f"{where}: {line}" for line in _problems(text))


@cache  # the same object is in several overlays, and a schema takes longer to load than to ask
def _problems(text: str) -> tuple[str, ...]:
    document: Document = json.loads(text)
    group, kind = document["apiVersion"], document["kind"]
    if (group, kind) in RABBITMQ_SCHEMAS:
        return tuple(_jsonschema_problems(document, RABBITMQ_SCHEMAS[group, kind]))
    if group in _MODULES:
        return tuple(_jsonschema_problems(document, _model_schema(group, kind)))
    if group in _TYPES:
        return tuple(_type_problems(text, _TYPES[group], kind))
    return tuple(_kubernetes_problems(document))


def _kubernetes_problems(document: Document) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = "/".join(map(str, error.path))
            yield f"{place}: {error.message} (Kubernetes {version})"
        except kubernetes_validate.SchemaNotFoundError:
            kind = f"{document['apiVersion']} {document['kind']}"
            yield f"there is no {kind} in Kubernetes {version}"


def _jsonschema_problems(document: Document, schema: dict[str, Any]) -> Iterator[str]:
    validator = jsonschema.Draft202012Validator(schema)
    for error in validator.iter_errors(document):
        yield f"{'/'.join(map(str, error.path))}: {error.message}"


def _type_problems(text: str, module: str, kind: str) -> Iterator[str]:
    """Compile the document as a literal of its type, for which an unknown field is an error.

    Raises:
        NpmError: the types cannot be installed.
    """
    typescript.install(NPM)
    with tempfile.TemporaryDirectory(dir=NPM / "node_modules") as folder:
        program = Path(folder) / "document.mts"
        program.write_text(
            f'import type {{ I{kind} }} from "{module}";\n'
            f"export const document: I{kind} = {text};\n"
        )
        done = subprocess.run(
            [
                *(typescript.NODE, NPM / "node_modules/typescript/bin/tsc", "--noEmit", "--strict"),
                *("--skipLibCheck", "--module", "nodenext", "--target", "es2022", program),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    problems = re.findall(r"error (TS\d+: .*)", done.stdout)
    yield from problems or ([done.stdout + done.stderr] if done.returncode else [])


@cache
def _model_schema(group: str, kind: str) -> dict[str, Any]:
    model = getattr(importlib.import_module(_MODULES[group]), kind)
    schema: dict[str, Any] = model.model_json_schema(by_alias=True)
    for part in (schema, *schema.get("$defs", {}).values()):
        if "properties" in part:
            part["additionalProperties"] = False
    return schema


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
        "Policy": _resource(
            ("name", "pattern", "definition", "rabbitmqClusterReference"),
            name=_TEXT,
            vhost=_TEXT,
            pattern=_TEXT,
            applyTo={"enum": ["queues", "exchanges", "all"]},
            definition={"type": "object"},
            rabbitmqClusterReference=_CLUSTER,
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
