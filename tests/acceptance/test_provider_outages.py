"""Master keys whose provider is away, or refuses the worker's token (SPEC 2.2): nothing is lost."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.acceptance.providers import (
    NAMES,
    Keys,
    Provider,
    assert_gateway_opens,
    on,
    plaintext,
    provider,
    served,
    upload_to,
)
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.process import gateway
from tools.servers import new_bucket

if TYPE_CHECKING:
    from tests.integration.sweep.scene import Project, Scene
    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(400)]

# Under load, a process that must find the end of the marks within 2 s sometimes waits instead.
LEASE_UNDER_LOAD_S: Final = 8
AWAY_S: Final = 30
_BETWEEN_UPLOADS_S: Final = 0.1
COLD_S: Final = 4
"""Cold requests wait at least so long: two attempts. The third comes 6 s after the first."""


@dataclass
class _Outage:
    """What happened while a provider was away."""

    warm: int = 0
    slowest_s: float = 0.0
    cold: list[asyncio.Task[None]] = field(default_factory=list)


async def _load(project: Project, until_s: float, outage: _Outage) -> None:
    """Upload to a warm project, one after the other, a few each second."""
    while time.monotonic() < until_s:
        began = time.monotonic()
        await project.upload(f"warm/{outage.warm}", b"warm")
        outage.slowest_s = max(outage.slowest_s, time.monotonic() - began)
        outage.warm += 1
        await asyncio.sleep(_BETWEEN_UPLOADS_S)


async def _ended(work: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0)
    return work.done()


async def _away(deployment: Deployment, used: Provider) -> None:
    keys = {"held": used.uri}
    lease_s = str(LEASE_UNDER_LOAD_S)
    async with served(deployment, keys, "held", [used], LEASE_S=lease_s) as scene:
        cold = [await scene.enrolled(f"cold{number}") for number in range(5)]
        await asyncio.gather(*(upload_to(project, "first") for project in cold))
    async with served(deployment, keys, "held", [used], LEASE_S=lease_s) as scene:
        warm, outage = await scene.enrolled("warm"), _Outage()
        await warm.upload("warm/before", b"warm")
        await asyncio.to_thread(used.stop)
        until_s = time.monotonic() + AWAY_S
        loading = asyncio.create_task(_load(warm, until_s, outage))
        async with asyncio.TaskGroup() as both:
            both.create_task(_assert_cold_gateway_says_so(deployment, keys, used, cold[0], warm))
            rotated = both.create_task(warm.rotated())
        assert rotated.result()["clean"], rotated.result()
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
    await assert_gateway_opens(deployment, keys, [used], cold)


async def _upload_patiently(scene: Scene, project: Project, key: str) -> None:
    body = plaintext(project, key)
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


def _retries(scene: Scene) -> int:
    return sum('"retry scheduled"' in line for line in scene.served.process.lines)


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


async def test_a_provider_that_is_away_under_load(broker: Servers, ceph: S3Server) -> None:
    """Warm projects go on, cold ones wait; nothing is lost, and nothing is refused for good.

    The providers are away at the same time: each serves a deployment of its own.
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
    vhost_url: str, ceph: S3Server
) -> None:
    """One clear line in the log; a token that is put in place is used without a restart."""
    deployment = Deployment(vhost_url, ceph, new_bucket(ceph))
    with provider("vault") as used:
        keys = {"held": used.uri}
        async with served(deployment, keys, "held", [used]) as scene:
            projects = [await scene.enrolled(f"p{number}") for number in range(5)]
            await asyncio.gather(*(upload_to(project, "first") for project in projects))
        file = Path(used.env["KEYTURN_VAULT_TOKEN_FILE"])
        good = await asyncio.to_thread(file.read_text)
        await asyncio.to_thread(file.write_text, "s.a-token-that-has-expired")
        proxy = f"transit/hmac/{used.uri.split('/')[-1].split('?')[0]}/sha2-256"
        assert used.requests is not None
        before = used.requests(proxy)
        async with served(deployment, keys, "held", [used]) as scene:
            await scene.served.process.logged("master key not available")
            waiting = [
                asyncio.create_task(_upload_patiently(scene, on(scene, project), f"k{number}"))
                for project in projects
                for number in range(10)
            ]
            async with asyncio.timeout(30):
                while _retries(scene) < 2 * len(waiting):  # noqa: ASYNC110  # of a process's log
                    await asyncio.sleep(0.1)
            assert not any(work.done() for work in waiting)
            # 50 messages of 5 projects, two attempts each so far: the probes of one process alone.
            assert used.requests(proxy) - before <= 8
            lines = [line for line in scene.served.process.lines if "token" in line]
            assert any("refuses the token" in line for line in lines), lines[:3]
            assert not any("s.a-token" in line or good.strip() in line for line in lines)
            await asyncio.to_thread(file.write_text, good)
            async with asyncio.timeout(200):
                await asyncio.gather(*waiting)
            assert await scene.wire.depth("keyturn.upload.dead") == 0
