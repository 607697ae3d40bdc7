"""The rules that every rendered deployment of Keyturn keeps.

Each rule is a function from manifests to sentences that say what breaks it, and has broken variants
in `tests/integration/deploy/test_policies.py`.
"""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import SecretStr

from keyturn.crypto import IntakeKey, Secret, SigningKey
from keyturn.settings import PREFIX, SECRETS_DIR_VARIABLE
from tools.manifests.documents import (
    PORT_SETTING,
    PROBES,
    SETTINGS,
    Document,
    Manifests,
    container_of,
    labels_of,
    name_of,
    pod_of,
    port_of,
    process_of,
    selects,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from keyturn.settings import Settings
    from tools.manifests.documents import Process

    Policy = Callable[[Manifests], Iterator[str]]
    Port = int | str

USER: Final = 10001
SERVED_PATHS: Final[Mapping[Process, frozenset[str]]] = {
    "worker": frozenset({"/healthz", "/readyz"}),
    "gateway": frozenset({"/healthz", "/readyz"}),
    "console": frozenset({"/healthz"}),
}
"""What each process answers without a key; a test asks real ones."""
_BROKER_S: Final = 20  # how much longer a worker waits for a broker that does not answer
_HOST_ACCESS: Final = ("hostNetwork", "hostPID", "hostIPC")
ANY: Final = "any"
_COMMON_EGRESS: Final[frozenset[Port]] = frozenset({53, 5353, 5671, 5672, 4318})
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
_METADATA_SERVICE: Final = (ip_address("169.254.169.254"), ip_address("fd00:ec2::254"))
_POD_IDENTITY: Final = frozenset({"169.254.170.23/32", "fd00:ec2::23/128"})
"""The agent of EKS, whose port 80 is open to those that open objects."""
_SCALER_KEYS: Final = frozenset(
    {"serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues", "unsafeSsl"}
)
_SECRET_TYPES: Final = (SecretStr, Secret, SigningKey, IntakeKey)
_OTHERS_READ: Final = 0o007


def _containers(deployment: Document) -> list[Document]:
    pod = pod_of(deployment)
    return [*pod["containers"], *pod.get("initContainers", ())]


def restricted(manifests: Manifests) -> Iterator[str]:
    """No privilege: what Pod Security calls restricted, a fixed user and a read-only root."""
    for deployment in manifests.deployments:
        name, pod = name_of(deployment), pod_of(deployment)
        context = pod.get("securityContext", {})
        if context.get("seccompProfile") != {"type": "RuntimeDefault"}:
            yield f"{name} has no seccomp profile RuntimeDefault"
        for key in ("runAsUser", "runAsGroup", "fsGroup"):
            if context.get(key) != USER:
                yield f"{name}: {key} is not {USER}"
        if context.get("runAsNonRoot") is not True:
            yield f"{name} may run as root"
        yield from (f"{name} has {key}" for key in _HOST_ACCESS if pod.get(key))
        for container in _containers(deployment):
            yield from (f"{name}: {line}" for line in _privileges(container, set(context)))


def _privileges(container: Document, pod_context: set[str]) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("readOnlyRootFilesystem") is not True:
        yield "the root file system can be written"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "privileges can be gained"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "capabilities are kept"
    if context.get("privileged"):
        yield "the container is privileged"
    # What the container says wins over the pod.
    yield from (f"the container overrides {key}" for key in sorted(pod_context & set(context)))
    if any("hostPort" in port for port in container.get("ports", ())):
        yield "a port of the host is taken"


def no_token(manifests: Manifests) -> Iterator[str]:
    """No pod can talk to Kubernetes, and none gets variables of Services.

    A Service `keyturn-gateway` would set `KEYTURN_GATEWAY_PORT`, which is a setting.
    """
    for document in manifests.of("ServiceAccount"):
        if document.get("automountServiceAccountToken") is not False:
            yield f"the account {name_of(document)} mounts its token"
    accounts = {name_of(document) for document in manifests.of("ServiceAccount")}
    for deployment in manifests.deployments:
        name, pod = name_of(deployment), pod_of(deployment)
        if pod.get("automountServiceAccountToken") is not False:
            yield f"{name} mounts a token"
        for volume in pod.get("volumes", ()):
            for source in volume.get("projected", {}).get("sources", ()):
                if "serviceAccountToken" in source and not source["serviceAccountToken"].get(
                    "audience"
                ):
                    yield f"{name} mounts a token of the cluster's own audience"
        if pod.get("enableServiceLinks") is not False:
            yield f"{name} gets the variables of Services"
        if pod.get("serviceAccountName") not in accounts:
            yield f"{name} has no service account of its own"


def image(manifests: Manifests) -> Iterator[str]:
    """One image, with a tag that does not move."""
    found = {one["image"] for each in manifests.deployments for one in _containers(each)}
    if len(found) > 1:
        yield f"several images: {', '.join(sorted(found))}"
    for one in sorted(found):
        tag = one.rpartition("/")[2].partition("@")[0].partition(":")[2]
        if "@sha256:" not in one and tag in ("", "latest"):
            yield f"{one} has no version"


def resources(manifests: Manifests) -> Iterator[str]:
    """CPU and memory are requested; memory is limited, CPU is not throttled."""
    for deployment in manifests.deployments:
        found = container_of(deployment).get("resources", {})
        requests, limits = found.get("requests", {}), found.get("limits", {})
        if not {"cpu", "memory"} <= requests.keys():
            yield f"{name_of(deployment)} requests no CPU or no memory"
        if "memory" not in limits:
            yield f"{name_of(deployment)} has no limit on memory"
        if "cpu" in limits:
            yield f"{name_of(deployment)} is throttled"


def probes(manifests: Manifests) -> Iterator[str]:
    """All three probes, on the port that the process listens on, with paths that it serves."""
    for deployment in manifests.deployments:
        name, process = name_of(deployment), process_of(deployment)
        container, environment = container_of(deployment), manifests.environment(deployment)
        setting = PORT_SETTING[process]
        if environment.get(setting.replace("_PORT", "_HOST")) not in ("0.0.0.0", "::"):  # noqa: S104
            yield f"{name} listens where no probe comes from"
        scheme = "HTTPS" if f"KEYTURN_{process.upper()}_TLS_CERT" in environment else "HTTP"
        for kind in PROBES:
            request = container.get(kind, {}).get("httpGet")
            if request is None:
                yield f"{name} has no {kind}"
                continue
            if request["path"] not in SERVED_PATHS[process]:
                yield f"{name}: {kind} asks for {request['path']}"
            if str(_port(container, request["port"])) != environment.get(setting):
                yield f"{name}: {kind} asks another port than {setting}"
            if request.get("scheme", "HTTP") != scheme:
                yield f"{name}: {kind} does not speak {scheme}"


def _port(container: Document, port: str | int) -> int | None:
    try:
        return port_of(container, port)
    except LookupError:
        return None


def grace(manifests: Manifests) -> Iterator[str]:
    """A pod has longer to end than its process takes, with the pause before SIGTERM."""
    for deployment in manifests.deployments:
        name, process = name_of(deployment), process_of(deployment)
        hook = container_of(deployment).get("lifecycle", {}).get("preStop", {})
        pause = hook.get("sleep", {}).get("seconds", 0)
        default = SETTINGS[process].model_fields["shutdown_grace_s"].default
        setting = manifests.environment(deployment).get("KEYTURN_SHUTDOWN_GRACE_S", default)
        needed = pause + float(setting) + (_BROKER_S if process == "worker" else 0)
        if pod_of(deployment).get("terminationGracePeriodSeconds", 30) <= needed:
            yield f"{name} is killed before its {needed:g} seconds are over"


def spread(manifests: Manifests) -> Iterator[str]:
    """Pods of a role are spread over zones and nodes, each rollout by itself."""
    for deployment in manifests.deployments:
        found = pod_of(deployment).get("topologySpreadConstraints", ())
        keys = {one["topologyKey"] for one in found}
        if not {"topology.kubernetes.io/zone", "kubernetes.io/hostname"} <= keys:
            yield f"{name_of(deployment)} is not spread over zones and nodes"
        for one in found:
            own = {"app.kubernetes.io/component", "pod-template-hash"}
            if not own <= set(one.get("matchLabelKeys", ())) or not selects(
                one["labelSelector"], labels_of(deployment)
            ):
                yield f"{name_of(deployment)} counts other pods than its own"


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
                allowed = EGRESS[process]
                if process != "console" and _addresses(rule) == _POD_IDENTITY:
                    allowed |= {80}
                for port in sorted(map(str, _ports(rule) - allowed)):
                    yield f"{name} reaches port {port} by the policy {name_of(policy)}"
                yield from (f"{name} {line}" for line in _destinations(rule))


def _addresses(rule: Document) -> set[str]:
    return {peer.get("ipBlock", {}).get("cidr", ANY) for peer in rule.get("to", ())}


def _destinations(rule: Document) -> Iterator[str]:
    if not rule.get("to"):
        yield "reaches every address"
    for peer in rule.get("to", ()):
        block = peer.get("ipBlock")
        if block is not None:
            for address in _METADATA_SERVICE:
                if address in ip_network(block["cidr"]) and not any(
                    address in ip_network(one) for one in block.get("except", ())
                ):
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
    """What is scaled has no replicas of its own, and no lost metric takes workers away."""
    scalers = [*manifests.of("ScaledObject"), *manifests.of("HorizontalPodAutoscaler")]
    targeted = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    for scaler in scalers:
        name, spec = name_of(scaler), scaler["spec"]
        targets = [
            one for one in manifests.deployments if name_of(one) == spec["scaleTargetRef"]["name"]
        ]
        if not targets:
            yield f"{name} scales nothing"
        if any("replicas" in one["spec"] for one in targets):
            yield f"{name}: the deployment sets its replicas itself"
        if targeted.count(spec["scaleTargetRef"]["name"]) > 1:
            yield f"{name} is scaled twice"
        # A sweep worker looks for lost sweeps, so there is always one.
        if spec.get("minReplicaCount", spec.get("minReplicas", 0)) < 1:
            yield f"{name} scales to nothing"
    yield from _lost_metrics(manifests.of("ScaledObject"))


def _lost_metrics(scaled_objects: list[Document]) -> Iterator[str]:
    for scaled in scaled_objects:
        name, spec = name_of(scaled), scaled["spec"]
        if "fallback" not in spec:
            yield f"{name} has no fallback"
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            if trigger["type"] != "prometheus" or metadata.keys() - _SCALER_KEYS:
                yield f"{name} has a trigger that is not by Prometheus"
            if metadata.get("ignoreNullValues") != "false":
                yield f"{name} takes a missing metric for 0"


def setting_names(kind: type[Settings]) -> frozenset[str]:
    """The variables that a class of settings reads."""
    return frozenset(f"{PREFIX}{name.upper()}" for name in kind.model_fields)


def secret_names(kind: type[Settings]) -> frozenset[str]:
    """Those of them that hold a secret, by the type of their value."""
    return frozenset(
        f"{PREFIX}{name.upper()}"
        for name, field in kind.model_fields.items()
        if _is_secret(field.annotation)
    )


def _is_secret(annotation: Any) -> bool:
    if annotation in _SECRET_TYPES:
        return True
    return any(_is_secret(one) for one in get_args(annotation))


def settings(manifests: Manifests) -> Iterator[str]:
    """Every variable `KEYTURN_…` is a setting of the process: an unknown one would be ignored."""
    for deployment in manifests.deployments:
        known = setting_names(SETTINGS[process_of(deployment)]) | {SECRETS_DIR_VARIABLE}
        for name in sorted(manifests.environment(deployment)):
            if name.startswith(PREFIX) and name not in known:
                yield f"{name_of(deployment)} reads no {name}"


def secrets(manifests: Manifests) -> Iterator[str]:
    """No secret is a variable or a part of these manifests: they are files of Secrets."""
    yield from (f"the Secret {name_of(one)} is written here" for one in manifests.of("Secret"))
    every = frozenset().union(*(secret_names(kind) for kind in SETTINGS.values()))
    for config in manifests.of("ConfigMap"):
        for name in sorted(every & config.get("data", {}).keys()):
            yield f"{name} is in the ConfigMap {name_of(config)}"
    for deployment in manifests.deployments:
        container = container_of(deployment)
        for one in container.get("env", ()):
            if one["name"] in every or "secretKeyRef" in one.get("valueFrom", {}):
                yield f"{name_of(deployment)} has the secret {one['name']} as a variable"
        if any("secretRef" in one for one in container.get("envFrom", ())):
            yield f"{name_of(deployment)} has a Secret as variables"


def mounts(manifests: Manifests) -> Iterator[str]:
    """Volumes are read-only and not for all users, and each path in a setting is in one of them."""
    for deployment in manifests.deployments:
        name = name_of(deployment)
        volumes = {one["name"]: one for one in pod_of(deployment).get("volumes", ())}
        found = container_of(deployment).get("volumeMounts", ())
        for mount in found:
            yield from (f"{name}: {line}" for line in _mount(mount, volumes.get(mount["name"])))
        unused = volumes.keys() - {mount["name"] for mount in found}
        yield from (f"{name} does not mount {one}" for one in sorted(unused))
        environment = manifests.environment(deployment)
        if SECRETS_DIR_VARIABLE not in environment:
            yield f"{name} has no folder of secrets"
        for variable, value in sorted(environment.items()):
            if value.startswith("/") and not _is_below(value, found):
                yield f"{name}: no volume has {variable}"


def _mount(mount: Document, volume: Document | None) -> Iterator[str]:
    if volume is None:
        yield f"there is no volume {mount['name']}"
        return
    if mount.get("readOnly") is not True:
        yield f"{mount['name']} can be written"
    if "subPath" in mount:
        yield f"{mount['name']} is a single file, which never changes in a pod"
    if "hostPath" in volume:
        yield f"{mount['name']} is a folder of the node"
    if "secret" in volume and volume["secret"].get("defaultMode", 0o644) & _OTHERS_READ:
        yield f"every user reads {mount['name']}"


def _is_below(path: str, found: list[Document]) -> bool:
    return any(PurePosixPath(path).is_relative_to(mount["mountPath"]) for mount in found)


POLICIES: Final[Mapping[str, Policy]] = {
    "restricted": restricted,
    "no-token": no_token,
    "image": image,
    "resources": resources,
    "probes": probes,
    "grace": grace,
    "spread": spread,
    "settings": settings,
    "secrets": secrets,
    "mounts": mounts,
    "disruption": disruption,
    "default-deny": default_deny,
    "egress": egress,
    "ingress": ingress,
    "services": services,
    "scaling": scaling,
}


def violations(manifests: Manifests) -> list[str]:
    """What breaks a rule, each line with the rule's name in front."""
    return [f"{name}: {line}" for name, policy in POLICIES.items() for line in policy(manifests)]
