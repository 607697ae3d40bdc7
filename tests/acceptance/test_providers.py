"""The whole system on master keys that are held elsewhere (SPEC 2.2): moving, importing, losses."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.crypto import to_base64
from tests.acceptance.providers import NAMES, Provider, keyturn, provider
from tests.integration.sweep.scene import Project, Scene
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.process import gateway, worker
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import WorkerUnderTest
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(400)]

SETTINGS: Final = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}
# Under load, a process that must find the end of the marks within 2 s sometimes waits instead.
LEASE_UNDER_LOAD_S: Final = 8
AWAY_S: Final = 60
COLD_S: Final = 10
"""Cold requests wait at least so long: three attempts. The fourth comes 36 s after the first."""
Keys = dict[str, str]
"""Master keys by id: base64 or a URI, as in `KEYTURN_MASTER_KEYS`."""


@pytest.fixture
def deployment(vhost_url: str, ceph: S3Server) -> Deployment:
    return Deployment(vhost_url, ceph, new_bucket(ceph))


@pytest.fixture(scope="module")
def providers() -> Iterator[dict[str, Provider]]:
    """One of each that can be had here."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(provider(name)) for name in NAMES}


def _settings(keys: Keys, active: str) -> dict[str, str]:
    return {**SETTINGS, "MASTER_KEYS": json.dumps(keys), "ACTIVE_MASTER_KEY": active}


def _env(running: Iterable[Provider]) -> dict[str, str]:
    return {name: value for each in running for name, value in each.env.items()}


@asynccontextmanager
async def _served(
    deployment: Deployment, keys: Keys, active: str, running: Iterable[Provider], **more: str
) -> AsyncIterator[Scene]:
    """A worker with these master keys, stopped in order.

    A worker that is killed here may leave messages whose events were published, but which it did
    not acknowledge yet. They would make projects warm for the next worker.
    """
    env = deployment.worker_env(**{**_settings(keys, active), **more}) | _env(running)
    async with worker(env) as process, open_wire(deployment) as wire:
        yield Scene(WorkerUnderTest(deployment, process, wire))
        assert await process.terminate() == 0


async def _assert_gateway_opens(
    deployment: Deployment, keys: Keys, running: Iterable[Provider], projects: Iterable[Project]
) -> None:
    """A gateway with these master keys alone serves every object of the projects."""
    env = deployment.gateway_env(MASTER_KEYS=json.dumps(keys)) | _env(running)
    async with gateway(env) as process:
        for project in projects:
            client = Client(process, project.api_keys[-1])
            for key in ("first", "second"):
                answer = await client.request(project.name, key)
                assert (answer.status, answer.body) == (200, _plaintext(project, key))


def _plaintext(project: Project, key: str) -> bytes:
    return f"{project.name} {key}".encode()


async def _upload(project: Project, key: str) -> None:
    await project.upload(key, _plaintext(project, key))


def _on(scene: Scene, project: Project) -> Project:
    """The project as this scene's worker serves it."""
    return Project(scene, project.name, project.api_keys)


async def test_from_a_local_key_through_every_provider(
    deployment: Deployment, providers: dict[str, Provider]
) -> None:
    """Each leg moves everything by a sweep of `*`, and then drops the key before it."""
    local = to_base64(deployment.master_key)
    legs = [("m1", local), *((f"in-{name}", providers[name].uri) for name in NAMES)]
    running = list(providers.values())
    async with _served(deployment, {"m1": local}, "m1", running) as scene:
        projects = [await scene.enrolled(f"p{number}") for number in range(2)]
        await asyncio.gather(*(_upload(each, "first") for each in projects))
        await asyncio.gather(*(_upload(each, "second") for each in projects))
    for (before, before_uri), (name, uri) in itertools.pairwise(legs):
        both = {before: before_uri, name: uri}
        async with _served(deployment, both, name, running) as scene:
            projects = [_on(scene, project) for project in projects]
            end = await scene.swept("*", master_key=name)
            assert end["clean"], end
        async with _served(deployment, {name: uri}, name, running) as scene:
            projects = [_on(scene, project) for project in projects]
            assert (await projects[0].rotated())["clean"]
            fresh = await scene.enrolled(f"born-{name}")
            await asyncio.gather(_upload(fresh, "first"), _upload(fresh, "second"))
            projects.append(fresh)
        await _assert_gateway_opens(deployment, {name: uri}, running, projects)
        worker_env = deployment.worker_env(**_settings({name: uri}, name))
        env = deployment.publisher_env() | worker_env | _env(running)
        status, output = await keyturn(env, "status", "--json")
        assert status == 0, output
        report = json.loads(output)
        assert {row["master_key"] for row in report["keyrings"]} == {name}
        assert {row["master_key"] for row in report["objects"]} == {name}


@pytest.mark.parametrize("name", NAMES)
async def test_an_imported_key_keeps_its_id_and_nothing_is_rewrapped(
    deployment: Deployment, providers: dict[str, Provider], name: str
) -> None:
    used = providers[name]
    local = {"m1": to_base64(deployment.master_key)}
    async with _served(deployment, local, "m1", [used]) as scene:
        project = await scene.enrolled("acme")
        await _upload(project, "first")
        await _upload(project, "second")
    before = {s3_key: scene.bucket.get(s3_key) for s3_key in scene.bucket.keys("acme/")}
    env = deployment.worker_env(**_settings(local, "m1")) | used.env
    status, output = await keyturn(env, "keys", "import", "m1", used.import_uri)
    assert status == 0, output
    assert used.import_uri in output
    assert to_base64(deployment.master_key) not in output
    moved = {"m1": used.import_uri}
    await _assert_gateway_opens(deployment, moved, [used], [project])
    after = {s3_key: scene.bucket.get(s3_key) for s3_key in scene.bucket.keys("acme/")}
    assert {s3_key: body for s3_key, (body, _) in after.items()} == {
        s3_key: body for s3_key, (body, _) in before.items()
    }
    assert [answer["Metadata"] for _, answer in after.values()] == [
        answer["Metadata"] for _, answer in before.values()
    ]
    async with _served(deployment, moved, "m1", [used]) as scene:
        project = _on(scene, project)
        assert (await project.rotated())["clean"]
        project.assert_opens_as({key: _plaintext(project, key) for key in ("first", "second")})


@dataclass
class _Outage:
    """What happened while a provider was away."""

    warm: int = 0
    slowest_s: float = 0.0
    cold: list[asyncio.Task[None]] = field(default_factory=list)


async def _load(project: Project, until_s: float, outage: _Outage) -> None:
    """Upload to a warm project, one after the other."""
    while time.monotonic() < until_s:
        began = time.monotonic()
        await project.upload(f"warm/{outage.warm}", b"warm")
        outage.slowest_s = max(outage.slowest_s, time.monotonic() - began)
        outage.warm += 1


async def _ended(work: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0)
    return work.done()


async def _away(deployment: Deployment, used: Provider) -> None:
    keys = {"held": used.uri}
    lease_s = str(LEASE_UNDER_LOAD_S)
    async with _served(deployment, keys, "held", [used], LEASE_S=lease_s) as scene:
        cold = [await scene.enrolled(f"cold{number}") for number in range(5)]
        await asyncio.gather(*(_upload(project, "first") for project in cold))
    async with _served(deployment, keys, "held", [used], LEASE_S=lease_s) as scene:
        warm, outage = await scene.enrolled("warm"), _Outage()
        await warm.upload("warm/before", b"warm")
        await asyncio.to_thread(used.stop)
        until_s = time.monotonic() + AWAY_S
        loading = asyncio.create_task(_load(warm, until_s, outage))
        await asyncio.sleep(AWAY_S / 3)
        await _assert_cold_gateway_says_so(deployment, keys, used, cold[0], warm)
        rotation = await warm.rotated()
        assert rotation["clean"], rotation
        outage.cold = [
            asyncio.create_task(_upload_patiently(scene, project, "second")) for project in cold
        ]
        new = asyncio.create_task(_enroll_patiently(scene))
        await asyncio.gather(loading, asyncio.sleep(COLD_S))
        assert not any([await _ended(work) for work in (*outage.cold, new)])
        await asyncio.to_thread(used.start)
        async with asyncio.timeout(200):
            await asyncio.gather(*outage.cold, new)
        # A provider that is away costs warm projects nothing that a user would notice.
        assert outage.warm > AWAY_S
        assert outage.slowest_s < 10
        await warm.upload("warm/after", b"warm")
        for queue in ("upload", "control", "sweep"):
            assert await scene.wire.depth(f"keyturn.{queue}.dead") == 0
        assert not [event for event in scene.wire.events if "code" in event]
    await _assert_gateway_opens(deployment, keys, [used], cold)


async def _upload_patiently(scene: Scene, project: Project, key: str) -> None:
    body = _plaintext(project, key)
    document = requests.upload(scene.deployment, project.name, key, body).document
    sent = await scene.send(document)
    event = await scene.wire.outcome(sent.request_id, timeout_s=200)
    assert event["type"] == "upload.stored", event


async def _enroll_patiently(scene: Scene) -> None:
    """A project that is born while the provider is away: it waits, and is not refused."""
    document = requests.enroll(scene.deployment, "newborn")
    sent = await scene.send(document)
    event = await scene.wire.outcome(sent.request_id, timeout_s=200)
    assert event["type"] == "project.enrolled", event


async def _assert_cold_gateway_says_so(
    deployment: Deployment, keys: Keys, used: Provider, cold: Project, warm: Project
) -> None:
    """503 with `Retry-After`, and not a word that would be final."""
    env = deployment.gateway_env(MASTER_KEYS=json.dumps(keys)) | used.env
    async with gateway(env) as process:
        for project in (cold, warm):
            answer = await Client(process, project.api_keys[-1]).request(project.name, "first")
            assert (answer.status, answer.code) == (503, "kms_unavailable")
            assert int(answer.headers["retry-after"]) >= 1


async def test_a_provider_that_is_away_for_a_minute_under_load(
    broker: Servers, ceph: S3Server
) -> None:
    """Warm projects go on, cold ones wait; nothing is lost, and nothing is refused for good.

    The providers are away in the same minute: each serves a deployment of its own.
    """
    private = broker.rabbitmq
    with ExitStack() as stack:
        used = [stack.enter_context(provider(name)) for name in NAMES]
        if private is None:  # a given broker has one vhost for all
            for each in used:
                await _away(Deployment(broker.amqp_url, ceph, new_bucket(ceph)), each)
            return
        deployments = [Deployment(private.next_vhost_url(), ceph, new_bucket(ceph)) for _ in used]
        async with asyncio.TaskGroup() as group:
            for deployment, each in zip(deployments, used, strict=True):
                group.create_task(_away(deployment, each), name=each.name)


async def test_an_expired_token_makes_cold_projects_wait_and_storms_nobody(
    deployment: Deployment,
) -> None:
    """One clear line in the log; a token that is put in place is used without a restart."""
    with provider("vault") as used:
        keys = {"held": used.uri}
        async with _served(deployment, keys, "held", [used]) as scene:
            projects = [await scene.enrolled(f"p{number}") for number in range(5)]
            await asyncio.gather(*(_upload(project, "first") for project in projects))
        file = Path(used.env["KEYTURN_VAULT_TOKEN_FILE"])
        good = await asyncio.to_thread(file.read_text)
        await asyncio.to_thread(file.write_text, "s.a-token-that-has-expired")
        proxy = f"transit/hmac/{used.uri.split('/')[-1].split('?')[0]}/sha2-256"
        assert used.requests is not None
        before = used.requests(proxy)
        async with _served(deployment, keys, "held", [used]) as scene:
            await scene.served.process.logged("master key not available")
            waiting = [
                asyncio.create_task(_upload_patiently(scene, _on(scene, project), f"k{number}"))
                for project in projects
                for number in range(10)
            ]
            await asyncio.sleep(15)
            assert not any(work.done() for work in waiting)
            # 50 messages, three attempts each so far, and the probes of one process.
            assert used.requests(proxy) - before <= 20
            lines = [line for line in scene.served.process.lines if "token" in line]
            assert any("refuses the token" in line for line in lines), lines[:3]
            assert not any("s.a-token" in line or good.strip() in line for line in lines)
            await asyncio.to_thread(file.write_text, good)
            async with asyncio.timeout(200):
                await asyncio.gather(*waiting)
            assert await scene.wire.depth("keyturn.upload.dead") == 0
