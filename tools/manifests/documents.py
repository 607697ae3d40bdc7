"""Rendered manifests as values, and a pod of them as a process of this machine.

`render` runs kubectl, from Debian's package; no cluster is needed. `prepare` turns a pod's volumes
into folders below one scratch folder, laid out as the kubelet does: a folder of the moment, a link
`..data` to it, and a link for each file. Paths and ports of the pod become those of this machine;
nothing else changes.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import yaml

from keyturn_workers.console.settings import ConsoleSettings
from keyturn_workers.process.settings import GatewaySettings, WorkerSettings
from tools.servers import packages
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping

    from keyturn.settings import Settings

    Files = Mapping[str, str]

KUBERNETES: Final = Path(__file__).parents[2] / "deploy" / "kubernetes"
PACKAGE: Final = "kubectl"
_DATA: Final = "..data"
_MODE: Final = 0o440

Document = dict[str, Any]
Process = Literal["worker", "gateway", "console"]

SETTINGS: Final[Mapping[Process, type[Settings]]] = {
    "worker": WorkerSettings,
    "gateway": GatewaySettings,
    "console": ConsoleSettings,
}
"""What each kind of process reads."""
PORT_SETTING: Final[Mapping[Process, str]] = {
    "worker": "KEYTURN_HEALTH_PORT",
    "gateway": "KEYTURN_GATEWAY_PORT",
    "console": "KEYTURN_CONSOLE_PORT",
}
PROBES: Final = ("startupProbe", "livenessProbe", "readinessProbe")


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


class RenderError(Exception):
    """kubectl refused the kustomization; the text is what it printed."""


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Run kubectl with no cluster; return its output.

    Raises:
        RenderError: it failed.
        MissingPackagesError: it cannot be installed here.
    """
    done = subprocess.run(
        [packages.path_of("kubectl", PACKAGE), *arguments],
        # No settings of the user's: nothing of a cluster is read.
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "KUBECONFIG": "/dev/null"},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RenderError(done.stderr.strip())
    return done.stdout


def render(folder: Path) -> Manifests:
    """The manifests of a folder with a `kustomization.yaml`.

    Raises:
        RenderError: kubectl refused it.
        MissingPackagesError: kubectl cannot be installed here.
    """
    text = kubectl("kustomize", str(folder))
    documents: list[Document] = [one for one in yaml.safe_load_all(text) if one is not None]
    return Manifests(documents)


@dataclass(frozen=True)
class PodProcess:
    """What starts a pod's process here."""

    name: str
    arguments: tuple[str, ...]
    environment: dict[str, str]
    probes: dict[str, str]
    """The URL of each probe."""
    grace_s: int
    """Seconds from SIGTERM to SIGKILL, without the pause before SIGTERM."""


def write_volume(folder: Path, files: Files, revision: int = 1) -> None:
    """Write a volume's files, or replace all of them in one step as the kubelet does."""
    data = folder / f"..revision_{revision}"
    data.mkdir(parents=True)
    for name, content in files.items():
        (data / name).write_text(content)
        (data / name).chmod(_MODE)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"{_DATA}/{name}")
    new = folder / "..data_tmp"
    new.symlink_to(data.name)
    new.rename(folder / _DATA)


def prepare(
    manifests: Manifests,
    deployment: Document,
    *,
    secrets: Mapping[str, Files],
    variables: Mapping[str, str],
    folder: Path,
) -> PodProcess:
    """Write a pod's volumes and return its process.

    Args:
        manifests: All that was rendered.
        deployment: One of its deployments.
        secrets: The files of each Secret that the pod mounts.
        variables: Settings of this machine, such as the address of the storage. They replace those
            of the manifests.
        folder: An empty folder for the volumes.

    Raises:
        LookupError: a Secret or a ConfigMap is missing.
    """
    container, pod, process = container_of(deployment), pod_of(deployment), process_of(deployment)
    environment = manifests.environment(deployment) | dict(variables)
    paths = {}
    for mount in container["volumeMounts"]:
        (volume,) = (one for one in pod["volumes"] if one["name"] == mount["name"])
        write_volume(folder / mount["name"], _files(manifests, volume, secrets))
        paths[mount["mountPath"]] = str(folder / mount["name"])
    for name, value in environment.items():
        for path, folder_here in paths.items():
            if value == path or value.startswith(f"{path}/"):
                environment[name] = folder_here + value.removeprefix(path)
    here = free_port()
    probes = _probes(container, int(environment[PORT_SETTING[process]]), here)
    environment[PORT_SETTING[process]] = str(here)
    pause = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace_s = pod["terminationGracePeriodSeconds"] - pause
    arguments = tuple(container["args"])
    return PodProcess(name_of(deployment), arguments, environment, probes, grace_s)


def _probes(container: Document, port: int, here: int) -> dict[str, str]:
    found = {}
    for kind in PROBES:
        request = container[kind]["httpGet"]
        if port_of(container, request["port"]) != port:
            raise LookupError(f"{kind} asks for another port")
        scheme = request.get("scheme", "HTTP").lower()
        found[kind] = f"{scheme}://127.0.0.1:{here}{request['path']}"
    return found


def _files(manifests: Manifests, volume: Document, secrets: Mapping[str, Files]) -> Files:
    if "secret" in volume:
        return secrets[volume["secret"]["secretName"]]
    data: Files = manifests.find("ConfigMap", volume["configMap"]["name"])["data"]
    return data
