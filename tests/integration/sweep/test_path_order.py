"""A sweep on SeaweedFS, which lists by paths: pages are ranges of that order (SPEC 8.5)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.integration.sweep.scene import WORKER_ENV, Project, Scene, counts
from tools.harness.deployment import Deployment
from tools.harness.worker_under_test import fresh_amqp_url, run_worker_for
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server, Servers

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

OBJECTS = 30


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def project(broker: Servers, seaweedfs: S3Server) -> AsyncIterator[Project]:
    """A worker and a project with objects in a folder, with its name, and with names beside it.

    Pages have seven keys, so they end at each of these.
    """
    deployment = Deployment(await fresh_amqp_url(broker), seaweedfs, new_bucket(seaweedfs))
    async with run_worker_for(deployment, **WORKER_ENV) as running:
        project = await Scene(running).enrolled("paths")
        first, *others = plaintexts().items()
        # Before those below it: afterwards the server takes it for existing.
        await project.upload(*first)
        await asyncio.gather(*(project.upload(key, data) for key, data in others))
        yield project


def plaintexts() -> dict[str, bytes]:
    """By bytes, `report-02` sorts before `report/01.pdf`; the server lists it behind it."""
    below = [f"report/{n:02}.pdf" for n in range(1, OBJECTS, 2)]
    beside = [f"report-{n:02}" for n in range(2, OBJECTS, 2)]
    return {name: name.encode() for name in ("report", *below, *beside)}


async def test_a_rotation_covers_every_key_once(project: Project) -> None:
    for _ in range(2):
        # A page that is attempted again finds what its first attempt has rewrapped.
        assert counts(await project.rotated()) | {"rewrapped": 0} == {
            "objects": OBJECTS,
            "rewrapped": 0,
            "current": OBJECTS,
            "clean": True,
        }
        project.assert_opens_as(plaintexts())
