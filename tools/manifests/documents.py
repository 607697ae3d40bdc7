"""Rendered manifests as values: what selects a pod, and what its process is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from keyturn_workers.console.settings import ConsoleSettings
from keyturn_workers.settings import GatewaySettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.settings import Settings

Document = dict[str, Any]
Process = Literal["worker", "gateway", "console"]

SETTINGS: Final[Mapping[Process, type[Settings]]] = {
    "worker": WorkerSettings,
    "gateway": GatewaySettings,
    "console": ConsoleSettings,
}
"""What each kind of process reads."""


@dataclass(frozen=True)
class Manifests:
    """All documents of a kustomization."""

    documents: list[Document]

    def of(self, kind: str) -> list[Document]:
        """The documents of a kind."""
        return [document for document in self.documents if document["kind"] == kind]

    def find(self, kind: str, name: str) -> Document:
        """The document of a kind and a name.

        Raises:
            LookupError: there is none.
        """
        for document in self.of(kind):
            if name_of(document) == name:
                return document
        raise LookupError(f"no {kind} {name}")

    @property
    def deployments(self) -> list[Document]:
        """Keyturn's processes."""
        return self.of("Deployment")

    def environment(self, deployment: Document) -> dict[str, str]:
        """The variables of a deployment's container: `env` wins over `envFrom`, the last one first.

        Raises:
            LookupError: a ConfigMap is missing.
        """
        container = container_of(deployment)
        variables: dict[str, str] = {}
        for source in container.get("envFrom", ()):
            if "configMapRef" in source:
                variables |= self.find("ConfigMap", source["configMapRef"]["name"])["data"]
        return variables | {
            one["name"]: one["value"] for one in container.get("env", ()) if "value" in one
        }


def name_of(document: Document) -> str:
    """The name of an object."""
    return cast("str", document["metadata"]["name"])


def pod_of(deployment: Document) -> Document:
    """The specification of a deployment's pods."""
    return cast("Document", deployment["spec"]["template"]["spec"])


def labels_of(deployment: Document) -> Mapping[str, str]:
    """The labels of a deployment's pods."""
    return cast("dict[str, str]", deployment["spec"]["template"]["metadata"]["labels"])


def container_of(deployment: Document) -> Document:
    """The one container of a deployment's pods."""
    (container,) = pod_of(deployment)["containers"]
    return cast("Document", container)


def process_of(deployment: Document) -> Process:
    """Which process a deployment runs."""
    return cast("Process", container_of(deployment)["args"][0])


def port_of(container: Document, port: str | int) -> int:
    """The number of a port that may be a name.

    Raises:
        LookupError: the container has no such port.
    """
    for one in container.get("ports", ()):
        if port in (one.get("name"), one["containerPort"]):
            return cast("int", one["containerPort"])
    raise LookupError(f"no port {port}")


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches all."""
    equal = selector.get("matchLabels", {}).items() <= labels.items()
    return equal and all(_holds(one, labels) for one in selector.get("matchExpressions", ()))


def _holds(expression: Document, labels: Mapping[str, str]) -> bool:
    value, operator = labels.get(expression["key"]), expression["operator"]
    if operator == "In":
        return value in expression["values"]
    if operator == "NotIn":
        return value not in expression["values"]
    return (value is not None) is (operator == "Exists")
