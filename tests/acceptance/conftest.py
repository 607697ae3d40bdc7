"""Scenes for acceptance tests: one enrolled project a server, its own vhost a test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tools.harness.deployment import Deployment
from tools.harness.scene import Scene, enrolled_scene
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tools.servers import S3Server, Servers

PROJECT = "acme"


async def _enrolled(broker: Servers, server: S3Server) -> AsyncIterator[Scene]:
    private = broker.rabbitmq
    amqp_url = private.next_vhost_url() if private is not None else broker.amqp_url
    deployment = Deployment(amqp_url, server, new_bucket(server))
    async with enrolled_scene(deployment, PROJECT) as scene:
        yield scene


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ceph_enrolled(broker: Servers, ceph: S3Server) -> AsyncIterator[Scene]:
    """A project that was enrolled on Ceph."""
    async for scene in _enrolled(broker, ceph):
        yield scene


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def moto_enrolled(broker: Servers, moto: S3Server) -> AsyncIterator[Scene]:
    """A project that was enrolled on moto."""
    async for scene in _enrolled(broker, moto):
        yield scene


@pytest.fixture
async def scene(ceph_enrolled: Scene, vhost_url: str) -> Scene:
    """The project on Ceph, on a fresh broker."""
    return await ceph_enrolled.on(vhost_url)


@pytest.fixture
async def moto_scene(moto_enrolled: Scene, vhost_url: str) -> Scene:
    """The project on moto, on a fresh broker."""
    return await moto_enrolled.on(vhost_url)


@pytest.fixture
def vhosts(broker: Servers) -> Callable[[], str]:
    """URLs of unused vhosts."""
    if broker.rabbitmq is None:
        pytest.skip("cases run side by side, each on a vhost that only a private broker gives")
    return broker.rabbitmq.next_vhost_url
