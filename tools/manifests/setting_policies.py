"""Rules about what a process is given: settings that exist, secrets as files, paths."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, get_args

from pydantic import SecretStr

from keyturn.crypto import IntakeKey, Secret, SigningKey
from keyturn.settings import PREFIX, SECRETS_DIR_VARIABLE
from tools.manifests.documents import (
    SETTINGS,
    Document,
    Manifests,
    container_of,
    name_of,
    pod_of,
    process_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from keyturn.settings import Settings

_SECRET_TYPES: Final = (SecretStr, Secret, SigningKey, IntakeKey)
_OTHERS_READ: Final = 0o007


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
