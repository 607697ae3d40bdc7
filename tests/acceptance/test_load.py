"""A rolling deploy during a small drain; `make load` does it with 20,000 (SPEC 6.2, 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.chaos.drain import Uploads, drain, enroll
from tools.harness.deployment import Deployment
from tools.servers import new_bucket

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_UPLOADS = 500
_WORKERS = 2
# Latency alone limits these workers, to about 70 uploads per second.
_DELAY_S = 0.04
_AT_ONCE = 4
_SLOWEST_PER_S = 8
_MOST_MIB = 256


async def test_a_rolling_deploy_stores_and_reports_each_upload_once(
    vhost_url: str, ceph: S3Server
) -> None:
    """Each worker is replaced under load: every object is put once, every event published once."""
    deployment = Deployment(vhost_url, ceph, new_bucket(ceph))
    await enroll(deployment)
    found = await drain(
        deployment,
        Uploads("small-deploy", _UPLOADS),
        "deploy",
        workers=_WORKERS,
        times=1,
        delay_s=_DELAY_S,
        at_once=_AT_ONCE,
    )
    # `drain` raises otherwise; these assertions are for the reader of the test.
    assert (found.created, found.created_again) == (_UPLOADS, 0)
    assert (found.outcome.reported, found.outcome.reported_again, found.outcome.dead) == (
        _UPLOADS,
        0,
        0,
    )
    # SIGTERM interrupted nothing, and workers served what was delivered to them before.
    assert found.unanswered == 0
    assert found.served_again < _WORKERS * _AT_ONCE
    assert found.peak_mib < _MOST_MIB
    assert found.per_s > _SLOWEST_PER_S
