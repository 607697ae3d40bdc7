"""A worker that starts while the storage fails now and then (SPEC 10): it asks once more."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.chaos.schedule import Action
from tests.chaos.storage import harming
from tests.support.deployment import Deployment
from tests.support.process import worker

if TYPE_CHECKING:
    from tests.servers import S3Server

pytestmark = pytest.mark.servers


@pytest.mark.parametrize("harm", ["500", "503", "answer lost", "answer cut"])
async def test_a_failing_storage_is_no_unsafe_bucket(
    vhost_url: str, ceph: S3Server, ceph_bucket: str, harm: str
) -> None:
    """What failed is tried again; a worker that gave up would call a good bucket unsafe."""
    async with harming(ceph.endpoint_url) as proxy:
        far = replace(ceph, endpoint_url=proxy.url)
        deployment = Deployment(vhost_url, far, ceph_bucket)
        # Not the first request, which is only to see whether anything is there.
        proxy.storm(Action(0, "storm", harm, kind="doctor", every=3, times=8))
        async with worker(deployment.worker_env(), "upload") as running:
            assert proxy.done[harm, "doctor"] == 8
            assert await running.terminate() == 0


async def test_a_storage_that_keeps_failing_is_told_as_that(
    vhost_url: str, ceph: S3Server, ceph_bucket: str
) -> None:
    """It ends after its time, and says what failed, not that the bucket lacks anything."""
    async with harming(ceph.endpoint_url) as proxy:
        far = replace(ceph, endpoint_url=proxy.url)
        deployment = Deployment(vhost_url, far, ceph_bucket)
        proxy.storm(Action(0, "storm", "500", kind="doctor", every=2, times=10**6))
        env = deployment.worker_env(START_TIMEOUT_S="4")
        async with worker(env, "upload", ready=False) as running:
            assert await running.ended() == 1
    assert "could not be tried out" in running.lines[-1]
    assert "InternalError" in running.lines[-1]
    assert not [line for line in running.lines if "lacks" in line]
