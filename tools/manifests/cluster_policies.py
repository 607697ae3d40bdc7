"""Rules about what surrounds the pods: budgets, network, services, scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.manifests.documents import (
    Document,
    Manifests,
    container_of,
    labels_of,
    name_of,
    port_of,
    process_of,
    selects,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tools.manifests.documents import Process

    Port = int | str

ANY: Final = "any"
_COMMON_EGRESS: Final[frozenset[Port]] = frozenset({53, 5671, 5672, 4318})
EGRESS: Final[Mapping[Process, frozenset[Port]]] = {
    "worker": _COMMON_EGRESS | {443, ANY},
    "gateway": _COMMON_EGRESS | {443, ANY},
    "console": _COMMON_EGRESS,
}
"""Names, broker and traces for all; storage and key providers for those that open objects."""
INGRESS: Final[Mapping[Process, frozenset[Port]]] = {
    "worker": frozenset({"health"}),
    "gateway": frozenset({"api"}),
    "console": frozenset({"web"}),
}
_METADATA_SERVICE: Final = "169.254.0.0/16"
_SCALER_KEYS: Final = frozenset(
    {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues", "unsafeSsl"}
)


def _selecting(manifests: Manifests, kind: str, field: str, deployment: Document) -> list[Document]:
    labels = labels_of(deployment)
    return [one for one in manifests.of(kind) if selects(one["spec"].get(field, {}), labels)]


def disruption(manifests: Manifests) -> Iterator[str]:
    """One budget for each deployment, of its own pods, which lets a node be drained."""
    for deployment in manifests.deployments:
        name = name_of(deployment)
        budgets = _selecting(manifests, "PodDisruptionBudget", "selector", deployment)
        if len(budgets) != 1:
            yield f"{name} has {len(budgets)} budgets"
            continue
        (budget,) = budgets
        if budget["spec"].get("maxUnavailable", 0) == 0:
            yield f"{name} lets no node be drained"
        others = [
            one
            for one in manifests.deployments
            if one is not deployment and selects(budget["spec"]["selector"], labels_of(one))
        ]
        if others:
            yield f"{name} shares its budget"


def default_deny(manifests: Manifests) -> Iterator[str]:
    """Every pod is closed in both directions but for what other policies open."""
    for deployment in manifests.deployments:
        policies = _selecting(manifests, "NetworkPolicy", "podSelector", deployment)
        if not any(_denies_all(one["spec"]) for one in policies):
            yield f"{name_of(deployment)} is open by default"
    for policy in manifests.of("NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        if not any(selects(selector, labels_of(one)) for one in manifests.deployments):
            yield f"the policy {name_of(policy)} selects no pod"


def _denies_all(spec: Document) -> bool:
    is_closed = not spec.get("egress") and not spec.get("ingress")
    return is_closed and set(spec["policyTypes"]) == {"Ingress", "Egress"}


def egress(manifests: Manifests) -> Iterator[str]:
    """A process reaches the ports that it needs, and never the cloud's metadata service."""
    for deployment in manifests.deployments:
        name, process = name_of(deployment), process_of(deployment)
        for policy in _selecting(manifests, "NetworkPolicy", "podSelector", deployment):
            for rule in policy["spec"].get("egress", ()):
                for port in sorted(map(str, _ports(rule) - EGRESS[process])):
                    yield f"{name} reaches port {port} by the policy {name_of(policy)}"
                yield from (f"{name} {line}" for line in _destinations(rule))


def _destinations(rule: Document) -> Iterator[str]:
    if not rule.get("to"):
        yield "reaches every address"
    for peer in rule.get("to", ()):
        block = peer.get("ipBlock")
        if block is not None:
            if block["cidr"] == "0.0.0.0/0" and _METADATA_SERVICE not in block.get("except", ()):
                yield "reaches the metadata service"
            if not rule.get("ports"):
                yield "reaches every port of addresses outside the cluster"


def _ports(rule: Document) -> frozenset[Port]:
    return frozenset(one["port"] for one in rule.get("ports", ())) or frozenset({ANY})


def ingress(manifests: Manifests) -> Iterator[str]:
    """A process is reached on its one port, from namespaces that were chosen, and it is reached."""
    for deployment in manifests.deployments:
        name, allowed = name_of(deployment), INGRESS[process_of(deployment)]
        seen: set[Port] = set()
        for policy in _selecting(manifests, "NetworkPolicy", "podSelector", deployment):
            for rule in policy["spec"].get("ingress", ()):
                seen |= _ports(rule)
                if not rule.get("from") or {} in rule["from"]:
                    yield f"{name} is reached from everywhere"
        yield from (f"{name} is reached on {one}" for one in sorted(map(str, seen - allowed)))
        yield from (f"nothing reaches {name} on {one}" for one in sorted(map(str, allowed - seen)))
        for one in sorted(map(str, seen & allowed)):
            if not any(port.get("name") == one for port in container_of(deployment)["ports"]):
                yield f"{name} has no port {one}"


def services(manifests: Manifests) -> Iterator[str]:
    """Every Service has pods, with the port that it leads to."""
    for service in manifests.of("Service"):
        selector = {"matchLabels": service["spec"]["selector"]}
        found = [one for one in manifests.deployments if selects(selector, labels_of(one))]
        if len(found) != 1:
            yield f"the Service {name_of(service)} leads to {len(found)} deployments"
        for deployment in found:
            for port in service["spec"]["ports"]:
                try:
                    port_of(container_of(deployment), port["targetPort"])
                except LookupError as error:
                    yield f"the Service {name_of(service)} leads nowhere: {error}"


def scaling(manifests: Manifests) -> Iterator[str]:
    """What KEDA scales has no replicas of its own, and no lost metric takes workers away."""
    for scaled in manifests.of("ScaledObject"):
        name, spec = name_of(scaled), scaled["spec"]
        targets = [
            one for one in manifests.deployments if name_of(one) == spec["scaleTargetRef"]["name"]
        ]
        if not targets:
            yield f"{name} scales nothing"
        if any("replicas" in one["spec"] for one in targets):
            yield f"{name}: the deployment sets its replicas itself"
        # A sweep worker looks for lost sweeps, so there is always one.
        if spec.get("minReplicaCount", 0) < 1:
            yield f"{name} scales to nothing"
        if "fallback" not in spec:
            yield f"{name} has no fallback"
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            if trigger["type"] != "prometheus" or metadata.keys() - _SCALER_KEYS:
                yield f"{name} has a trigger that is not by Prometheus"
            if metadata.get("ignoreNullValues") != "false":
                yield f"{name} takes a missing metric for 0"
