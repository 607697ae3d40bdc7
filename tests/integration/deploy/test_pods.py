"""The pods of both overlays as processes of this machine: each becomes ready, works, and ends.

Arguments, variables, files and probes are those of the rendered manifests; secrets are files, laid
out as the kubelet lays them out. What an operator sets is set: the bucket, the publishers.
"""

from __future__ import annotations

import asyncio
import copy
import json
import time
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import pytest

from keyturn.errors import MarksUnavailableError
from keyturn.gateway import Client
from keyturn.messages import ProjectEnrolled
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from tools.harness.console import Account, ConsoleDeployment, write_passwords
from tools.harness.process import WorkerProcess, console, gateway, worker
from tools.manifests.documents import PROBES, Manifests, PodProcess, name_of, prepare, write_volume
from tools.servers import RabbitMQ, packages
from tools.servers.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.servers import S3Server
    from tools.servers.certificates import Certificate

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(600)]

_BODY = b"through the gateway of the overlay"
_READY_S = 150


@dataclass(frozen=True)
class Site:
    """An overlay with what its operator fills in, on servers of the test."""

    manifests: Manifests
    keys: ConsoleDeployment
    folder: Path
    certificates: Certificate | None = None
    """Of servers and clients, where the overlay has TLS."""

    def secrets(self) -> dict[str, dict[str, str]]:
        """The files of each Secret: every setting that the manifests leave out."""
        passwords = self.folder / "passwords"
        write_passwords(passwords, [Account("kim", "view")])
        console_env = self.keys.console_env(passwords)
        given = {
            "keyturn-worker": self.keys.worker_env(),
            "keyturn-gateway": self.keys.gateway_env(),
            "keyturn-console": console_env,
        }
        files = {
            secret: {name: value for name, value in env.items() if name not in self.variables()}
            for secret, env in given.items()
        }
        files["keyturn-console-passwords"] = {"passwords": passwords.read_text()}
        if self.certificates is not None:
            parts = {
                "tls.crt": self.certificates.certificate,
                "tls.key": self.certificates.key,
                "ca.crt": self.certificates.ca,
            }
            made = {name: path.read_text() for name, path in parts.items()}
            files |= dict.fromkeys(("gateway-tls", "console-tls", "broker-client"), made)
        return files

    def variables(self) -> dict[str, str]:
        """What differs from the placeholders in the manifests."""
        env = self.keys.s3_env()
        names = ("KEYTURN_S3_ENDPOINT_URL", "KEYTURN_S3_REGION", "KEYTURN_S3_BUCKET")
        return {name: env[name] for name in names} | {
            "KEYTURN_DEPLOYMENT": self.keys.name,
            "KEYTURN_ACTIVE_MASTER_KEY": "m1",
            # A lease is waited for twice at the start of a sweep, and not needed here.
            "KEYTURN_LEASE_S": "3",
        }

    def pods(self) -> list[PodProcess]:
        """One process for each deployment, its volumes written."""
        secrets = self.secrets()
        return [
            prepare(
                self.manifests,
                one,
                secrets=secrets,
                variables=self.variables(),
                folder=self.folder / name_of(one),
            )
            for one in self.manifests.deployments
        ]


@asynccontextmanager
async def _running(pod: PodProcess) -> AsyncIterator[WorkerProcess]:
    command, *rest = pod.arguments
    if command == "worker":
        (role,) = rest
        starting = worker(pod.environment, role, ready=False)
    else:
        starting = {"gateway": gateway, "console": console}[command](pod.environment, ready=False)
    async with starting as process:
        yield process


async def _is_up(session: aiohttp.ClientSession, url: str) -> bool:
    """As the kubelet asks: any certificate is taken."""
    try:
        async with session.get(url, ssl=False) as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False


async def _becomes_ready(pod: PodProcess, process: WorkerProcess) -> None:
    async with aiohttp.ClientSession() as session:
        for kind in PROBES:
            try:
                async with asyncio.timeout(_READY_S):
                    while not await _is_up(session, pod.probes[kind]):
                        assert process.process.returncode is None, (pod.name, process.lines[-20:])
                        await asyncio.sleep(0.1)
            except TimeoutError:
                raise AssertionError((pod.name, kind, process.lines[-20:])) from None


async def _upload(client: Client) -> None:
    """Upload once the gateway reads the marks: it was started before there was a stream of them."""
    async with asyncio.timeout(_READY_S):
        while True:
            try:
                await client.upload("acme", "a", _BODY, wait_s=60)
            except MarksUnavailableError:
                await asyncio.sleep(0.5)
            else:
                return


async def _ends(pod: PodProcess, process: WorkerProcess) -> None:
    began = time.monotonic()
    assert await process.terminate() == 0, pod.name
    assert time.monotonic() - began < pod.grace_s


async def test_the_small_overlay_stores_and_reads(
    small: Manifests,
    vhost_url: str,
    moto: S3Server,
    moto_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And a publisher that is added to the ConfigMap is admitted without a restart."""
    site = Site(small, ConsoleDeployment(vhost_url, moto, moto_bucket), tmp_path)
    pods = {pod.name: pod for pod in site.pods()}
    for name, value in site.keys.publisher_env().items():
        monkeypatch.setenv(name, value)
    async with AsyncExitStack() as stack:
        running = {
            name: await stack.enter_async_context(_running(pod)) for name, pod in pods.items()
        }
        await _becomes_ready(pods["worker-all"], running["worker-all"])
        grants = {"publishers.json": json.dumps(site.keys.publishers())}
        write_volume(tmp_path / "worker-all" / "publishers", grants, revision=2)
        await running["worker-all"].logged("publishers changed")
        for name, pod in pods.items():
            await _becomes_ready(pod, running[name])
        publisher = await stack.enter_async_context(Publisher.open(PublisherSettings.read()))
        enrolled = await publisher.enroll("acme", api_key=site.keys.api_key)
        assert isinstance(await publisher.wait(enrolled), ProjectEnrolled)
        url = pods["gateway"].probes["livenessProbe"].removesuffix("/healthz")
        async with Client.connect(url, site.keys.api_key) as client:
            await _upload(client)
            async with client.open("acme", "a") as stream:
                assert b"".join([chunk async for chunk in stream.chunks()]) == _BODY
        for name, pod in pods.items():
            await _ends(pod, running[name])


async def test_the_production_overlay_runs_with_tls(
    production: Manifests, moto: S3Server, moto_bucket: str, tmp_path: Path
) -> None:
    """With a broker that refuses clients without a certificate, and HTTPS on the probes."""
    certificates = Authority(tmp_path / "certificates").issue()
    packages.ensure(packages.RABBITMQ_PACKAGES)
    broker = RabbitMQ(tls=certificates)
    broker.start()
    try:
        # An operator's file of publishers, from the start.
        manifests = Manifests(copy.deepcopy(production.documents))
        keys = ConsoleDeployment(broker.tls_url, moto, moto_bucket)
        grants = manifests.find("ConfigMap", "keyturn-publishers")["data"]
        grants["publishers.json"] = json.dumps(keys.publishers())
        site = Site(manifests, keys, tmp_path, certificates)
        async with AsyncExitStack() as stack:
            running = [(pod, await stack.enter_async_context(_running(pod))) for pod in site.pods()]
            for pod, process in running:
                await _becomes_ready(pod, process)
                is_plain = pod.probes["readinessProbe"].startswith("http:")
                assert is_plain is pod.name.startswith("worker-")
            for pod, process in running:
                await _ends(pod, process)
    finally:
        broker.stop()
