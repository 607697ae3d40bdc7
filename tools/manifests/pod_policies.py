"""Rules about single pods: privilege, image, probes, the time to end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tools.manifests.documents import (
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
    from collections.abc import Iterator, Mapping

    from tools.manifests.documents import Process

USER: Final = 10001
PORT_SETTING: Final[Mapping[Process, str]] = {
    "worker": "KEYTURN_HEALTH_PORT",
    "gateway": "KEYTURN_GATEWAY_PORT",
    "console": "KEYTURN_CONSOLE_PORT",
}
SERVED_PATHS: Final[Mapping[Process, frozenset[str]]] = {
    "worker": frozenset({"/healthz", "/readyz"}),
    "gateway": frozenset({"/healthz", "/readyz"}),
    "console": frozenset({"/healthz"}),
}
"""What each process answers without a key; a test asks real ones."""
PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")
_BROKER_S: Final = 20  # how much longer a worker waits for a broker that does not answer
_HOST_ACCESS: Final = ("hostNetwork", "hostPID", "hostIPC")


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
