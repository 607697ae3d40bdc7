"""A rendered pod as a process of this machine: its arguments, variables, files and probes.

Volumes become folders below one scratch folder, laid out as the kubelet does: a folder of the
moment, a link `..data` to it, and a link for each file. Paths and ports of the pod become those of
this machine; nothing else changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tools.manifests.documents import (
    Document,
    Manifests,
    container_of,
    name_of,
    pod_of,
    port_of,
    process_of,
)
from tools.manifests.pod_policies import PORT_SETTING, PROBES
from tools.servers.process import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Files = Mapping[str, str]

_DATA: Final = "..data"
_MODE: Final = 0o440


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
