"""Every rule of `tools.manifests.policies` holds for both overlays, and refuses what breaks it."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import pytest

from tools.manifests.documents import Manifests, container_of, name_of, pod_of
from tools.manifests.policies import POLICIES, violations

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.manifests.documents import Document

    Break = Callable[[Manifests], object]


def _deployment(manifests: Manifests, name: str = "worker-upload") -> Document:
    return manifests.find("Deployment", name)


def _container(manifests: Manifests, name: str = "worker-upload") -> Document:
    return container_of(_deployment(manifests, name))


def _pod(manifests: Manifests, name: str = "worker-upload") -> Document:
    return pod_of(_deployment(manifests, name))


def _config(manifests: Manifests, prefix: str) -> dict[str, str]:
    (found,) = [
        one
        for one in manifests.of("ConfigMap")
        if re.fullmatch(rf"{prefix}-(?!publishers)[a-z0-9]{{10}}", name_of(one))
    ]
    data: dict[str, str] = found["data"]
    return data


def _policy(manifests: Manifests, name: str) -> Document:
    spec: Document = manifests.find("NetworkPolicy", name)["spec"]
    return spec


def _without(manifests: Manifests, kind: str, name: str) -> None:
    manifests.documents.remove(manifests.find(kind, name))


def _add(items: list[Any], item: Any) -> None:
    items.append(item)


def _share_a_budget(manifests: Manifests) -> None:
    _without(manifests, "PodDisruptionBudget", "gateway")
    both = {
        "key": "app.kubernetes.io/component",
        "operator": "In",
        "values": ["gateway", "console"],
    }
    spec = manifests.find("PodDisruptionBudget", "console")["spec"]
    spec["selector"] = {"matchExpressions": [both]}


# By rule: what is done to the overlay `production`, and what the rule says then.
BROKEN: dict[str, list[tuple[Break, str]]] = {
    "restricted": [
        (lambda m: _pod(m)["securityContext"].pop("seccompProfile"), "no seccomp profile"),
        (lambda m: _pod(m)["securityContext"].pop("runAsNonRoot"), "may run as root"),
        (lambda m: _pod(m)["securityContext"].update(runAsUser=0), "runAsUser is not 10001"),
        (lambda m: _pod(m)["securityContext"].update(runAsGroup=0), "runAsGroup is not 10001"),
        (lambda m: _pod(m).update(hostNetwork=True), "has hostNetwork"),
        (
            lambda m: _container(m)["securityContext"].update(readOnlyRootFilesystem=False),
            "can be written",
        ),
        (
            lambda m: _container(m)["securityContext"].pop("allowPrivilegeEscalation"),
            "privileges can be gained",
        ),
        (
            lambda m: _container(m)["securityContext"].update(
                capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]}
            ),
            "capabilities are kept",
        ),
        (lambda m: _container(m)["securityContext"].update(privileged=True), "is privileged"),
        (
            lambda m: _container(m)["securityContext"].update(runAsUser=0),
            "overrides runAsUser",
        ),
        (
            lambda m: _pod(m).update(initContainers=[{"name": "init", "image": "keyturn"}]),
            "can be written",
        ),
    ],
    "no-token": [
        (lambda m: _pod(m).pop("automountServiceAccountToken"), "mounts a token"),
        (
            lambda m: _pod(m)["volumes"].append(
                {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}
            ),
            "a token of the cluster's own audience",
        ),
        (lambda m: _pod(m).pop("enableServiceLinks"), "gets the variables of Services"),
        (lambda m: _pod(m).update(serviceAccountName="default"), "no service account"),
        (
            lambda m: m.find("ServiceAccount", "gateway").pop("automountServiceAccountToken"),
            "the account gateway mounts its token",
        ),
    ],
    "image": [
        (lambda m: _container(m).update(image="example.com/other:1"), "several images"),
        (
            lambda m: [
                container_of(one).update(image="example.com:443/keyturn") for one in m.deployments
            ],
            "has no version",
        ),
    ],
    "resources": [
        (lambda m: _container(m)["resources"]["requests"].pop("cpu"), "requests no CPU"),
        (lambda m: _container(m)["resources"]["limits"].pop("memory"), "no limit on memory"),
        (lambda m: _container(m)["resources"]["limits"].update(cpu="1"), "is throttled"),
    ],
    "probes": [
        (lambda m: _container(m).pop("startupProbe"), "has no startupProbe"),
        (lambda m: _container(m).pop("livenessProbe"), "has no livenessProbe"),
        (
            lambda m: _container(m, "console")["readinessProbe"]["httpGet"].update(path="/readyz"),
            "asks for /readyz",
        ),
        (
            lambda m: _container(m)["readinessProbe"]["httpGet"].update(port=8080),
            "another port than KEYTURN_HEALTH_PORT",
        ),
        (
            lambda m: _container(m, "gateway")["readinessProbe"]["httpGet"].pop("scheme"),
            "does not speak HTTPS",
        ),
        (
            lambda m: _container(m)["env"].remove(
                {"name": "KEYTURN_HEALTH_HOST", "value": "0.0.0.0"}  # noqa: S104
            ),
            "listens where no probe comes from",
        ),
    ],
    "grace": [
        (
            lambda m: _pod(m).update(terminationGracePeriodSeconds=80),
            "worker-upload is killed before its 80 seconds",
        ),
        (lambda m: _pod(m, "gateway").pop("terminationGracePeriodSeconds"), "gateway is killed"),
        (
            lambda m: _config(m, "keyturn").update(KEYTURN_SHUTDOWN_GRACE_S="600"),
            "console is killed before its 600 seconds",
        ),
    ],
    "spread": [
        (lambda m: _pod(m).pop("topologySpreadConstraints"), "is not spread"),
        (
            lambda m: _pod(m)["topologySpreadConstraints"][0].pop("matchLabelKeys"),
            "counts other pods",
        ),
    ],
    "settings": [
        (
            lambda m: _config(m, "keyturn-worker").update(KEYTURN_LEASES="15"),
            "worker-upload reads no KEYTURN_LEASES",
        ),
        (
            lambda m: _config(m, "keyturn").update(KEYTURN_GATEWAY_PORT="8080"),
            "console reads no KEYTURN_GATEWAY_PORT",
        ),
    ],
    "secrets": [
        (
            lambda m: _config(m, "keyturn").update(KEYTURN_AMQP_URL="amqp://a:b@c/"),
            "KEYTURN_AMQP_URL is in the ConfigMap",
        ),
        (
            lambda m: _add(_container(m)["env"], {"name": "KEYTURN_MASTER_KEYS", "value": "{}"}),
            "the secret KEYTURN_MASTER_KEYS as a variable",
        ),
        (
            lambda m: _add(
                _container(m)["env"],
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
            ),
            "the secret X as a variable",
        ),
        (
            lambda m: _add(_container(m)["envFrom"], {"secretRef": {"name": "keyturn-worker"}}),
            "a Secret as variables",
        ),
        (
            lambda m: _add(
                m.documents, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
            ),
            "the Secret s is written here",
        ),
    ],
    "mounts": [
        (lambda m: _container(m)["volumeMounts"][0].pop("readOnly"), "can be written"),
        (lambda m: _container(m)["volumeMounts"].pop(), "does not mount"),
        (lambda m: _container(m)["volumeMounts"][0].update(name="none"), "no volume none"),
        (lambda m: _container(m)["volumeMounts"][0].update(subPath="x"), "is a single file"),
        (
            lambda m: [
                one["secret"].pop("defaultMode", None)
                for one in _pod(m)["volumes"]
                if "secret" in one
            ],
            "every user reads secrets",
        ),
        (
            lambda m: _pod(m)["volumes"][0].update(hostPath={"path": "/etc"}),
            "is a folder of the node",
        ),
        (
            lambda m: _config(m, "keyturn-worker").update(KEYTURN_PUBLISHERS="/etc/publishers"),
            "no volume has KEYTURN_PUBLISHERS",
        ),
    ],
    "disruption": [
        (
            lambda m: _without(m, "PodDisruptionBudget", "worker-sweep"),
            "worker-sweep has 0 budgets",
        ),
        (
            lambda m: m.find("PodDisruptionBudget", "gateway")["spec"].update(maxUnavailable=0),
            "gateway lets no node be drained",
        ),
        (
            _share_a_budget,
            "gateway shares its budget",
        ),
    ],
    "default-deny": [
        (lambda m: _without(m, "NetworkPolicy", "default-deny"), "console is open by default"),
        (
            lambda m: _policy(m, "default-deny").update(policyTypes=["Ingress"]),
            "console is open by default",
        ),
        (
            lambda m: _policy(m, "console").update(podSelector={"matchLabels": {"no": "pod"}}),
            "the policy console selects no pod",
        ),
    ],
    "egress": [
        (
            lambda m: _policy(m, "storage").update(podSelector={}),
            "console reaches port 443 by the policy storage",
        ),
        (lambda m: _policy(m, "broker")["egress"][0].pop("ports"), "console reaches port any"),
        (lambda m: _policy(m, "broker")["egress"][0].pop("to"), "reaches every address"),
        (
            lambda m: _policy(m, "storage")["egress"][1]["to"][0]["ipBlock"].pop("except"),
            "reaches the metadata service",
        ),
        (
            lambda m: _add(
                _policy(m, "dns")["egress"][0]["to"], {"ipBlock": {"cidr": "169.254.0.0/16"}}
            ),
            "reaches the metadata service",
        ),
        (
            lambda m: _policy(m, "storage")["egress"][1].update(ports=[{"port": 80}]),
            "reaches port 80 by the policy storage",
        ),
        (
            lambda m: _policy(m, "storage")["egress"][1].pop("ports"),
            "reaches every port of addresses outside",
        ),
    ],
    "ingress": [
        (
            lambda m: _policy(m, "worker-metrics")["ingress"][0].pop("from"),
            "worker-upload is reached from everywhere",
        ),
        (
            lambda m: _policy(m, "worker-metrics")["ingress"][0].update(
                ports=[{"protocol": "TCP", "port": 22}]
            ),
            "worker-upload is reached on 22",
        ),
        (lambda m: _without(m, "NetworkPolicy", "gateway"), "nothing reaches gateway on api"),
        (lambda m: _container(m)["ports"][0].update(name="http"), "has no port health"),
    ],
    "services": [
        (
            lambda m: m.find("Service", "gateway")["spec"]["ports"][0].update(targetPort="http"),
            "the Service gateway leads nowhere",
        ),
        (
            lambda m: m.find("Service", "gateway")["spec"].update(selector={"no": "pod"}),
            "leads to 0 deployments",
        ),
    ],
    "scaling": [
        (lambda m: _deployment(m)["spec"].update(replicas=2), "sets its replicas itself"),
        (
            lambda m: m.find("ScaledObject", "gateway")["spec"].pop("fallback"),
            "gateway has no fallback",
        ),
        (
            lambda m: m.find("ScaledObject", "worker-sweep")["spec"].update(minReplicaCount=0),
            "scales to nothing",
        ),
        (
            lambda m: m.find("ScaledObject", "gateway")["spec"]["scaleTargetRef"].update(name="x"),
            "gateway scales nothing",
        ),
        (
            lambda m: _add(
                m.documents, {**m.find("ScaledObject", "gateway"), "metadata": {"name": "again"}}
            ),
            "again is scaled twice",
        ),
        (
            lambda m: m.find("ScaledObject", "gateway")["spec"]["triggers"][0].update(
                type="rabbitmq"
            ),
            "not by Prometheus",
        ),
        (
            lambda m: m.find("ScaledObject", "gateway")["spec"]["triggers"][0]["metadata"].pop(
                "ignoreNullValues"
            ),
            "takes a missing metric for 0",
        ),
    ],
}
_CASES = [
    pytest.param(rule, change, says, id=f"{rule}-{number}")
    for rule, cases in BROKEN.items()
    for number, (change, says) in enumerate(cases)
]


def test_every_rule_has_broken_variants() -> None:
    assert BROKEN.keys() == POLICIES.keys()


def test_the_small_overlay_keeps_every_rule(small: Manifests) -> None:
    assert violations(small) == []
    assert {name_of(one) for one in small.deployments} == {"worker-all", "gateway", "console"}


def test_the_production_overlay_keeps_every_rule(production: Manifests) -> None:
    assert violations(production) == []
    workers = {f"worker-{role}" for role in ("upload", "control", "sweep", "ingest")}
    assert {name_of(one) for one in production.deployments} == workers | {"gateway", "console"}


@pytest.mark.parametrize(("rule", "change", "says"), _CASES)
def test_a_rule_refuses_what_breaks_it(
    production: Manifests, rule: str, change: Break, says: str
) -> None:
    broken = Manifests(copy.deepcopy(production.documents))
    change(broken)
    found = list(POLICIES[rule](broken))
    assert any(says in line for line in found), found
