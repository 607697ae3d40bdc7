"""A worker of a test is spared the measurement only where its outcome is certain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tools.harness.known_storage import CEPH, known_capabilities
from tools.servers import new_bucket

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers


async def test_a_plain_bucket_on_the_tests_own_ceph_is_known(ceph: S3Server) -> None:
    if ceph.kind != "ceph":
        pytest.skip("a given server is measured by each worker")
    assert await known_capabilities(ceph.environment(new_bucket(ceph))) == CEPH


async def test_anything_else_is_measured(ceph: S3Server, moto: S3Server) -> None:
    plain = ceph.environment(new_bucket(ceph))
    for env in (
        ceph.environment(new_bucket(ceph, versioned=True)),
        {**plain, "KEYTURN_ALLOW_UNSAFE_STORAGE": "true"},
        {**plain, "KEYTURN_S3_ENDPOINT_URL": "http://127.0.0.1:9"},
        moto.environment("bucket"),
        {},
    ):
        assert await known_capabilities(env) is None
