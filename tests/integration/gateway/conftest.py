"""A gateway for a module: only for reads, on keyrings and objects made by hand, or live.

Reads need no broker and no worker: the gateway must serve them without. At a module's end the
gateway's log must not contain a secret or plaintext.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest_asyncio

from tests.integration.gateway.scene import OTHER_KEY, Live, Scene, canaries
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.process import gateway
from tools.harness.worker_under_test import run_worker
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tools.servers import S3Server, Servers

NO_BROKER = "amqp://guest:no-such-password@127.0.0.1:1/"


@asynccontextmanager
async def reading(deployment: Deployment, **env: str) -> AsyncIterator[Scene]:
    """A gateway for this deployment; its log is searched at the end."""
    async with gateway(deployment.gateway_env(**env)) as process:
        bucket = Bucket(deployment)
        scene = Scene(deployment, bucket, process, Client(process, deployment.api_key))
        yield scene
        assert process.process.returncode is None, process.lines[-20:]
    searched = canaries(deployment)
    searched.secrets |= scene.given
    assert searched.found(process.lines) == []
    assert not [line for line in process.lines if "unexpected failure" in line]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(request: pytest.FixtureRequest, ceph: S3Server) -> AsyncIterator[Scene]:
    """A gateway without a broker, with the projects `acme` and `other` enrolled by hand.

    The module's `GATEWAY_ENV` are further settings of it, its `DEPLOYMENT` further fields.
    """
    env: dict[str, str] = getattr(request.module, "GATEWAY_ENV", {})
    deployment = Deployment(
        NO_BROKER, ceph, new_bucket(ceph), **getattr(request.module, "DEPLOYMENT", {})
    )
    bucket = Bucket(deployment)
    bucket.put_keyring("acme")
    bucket.put_keyring("other", OTHER_KEY)
    async with reading(deployment, **env) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(
    request: pytest.FixtureRequest, broker: Servers, ceph: S3Server
) -> AsyncIterator[Live]:
    """A gateway, a broker and a worker, with the project `acme` enrolled.

    The module's `GATEWAY_ENV` and `WORKER_ENV` are further settings of theirs.
    """
    worker_env: dict[str, str] = getattr(request.module, "WORKER_ENV", {})
    env: dict[str, str] = getattr(request.module, "GATEWAY_ENV", {})
    async with (
        run_worker(broker, ceph, **worker_env) as served,
        reading(served.deployment, **env) as scene,
    ):
        yield Live(scene, served)
