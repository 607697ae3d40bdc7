"""A worker for a whole module of `control` or `upload`, on its own vhost and bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tools.harness.worker_under_test import WorkerUnderTest, run_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tools.servers import S3Server, Servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(
    request: pytest.FixtureRequest, broker: Servers, ceph: S3Server
) -> AsyncIterator[WorkerUnderTest]:
    """A worker of all roles on Ceph; the module's `WORKER_ENV` are further settings of it."""
    env: dict[str, str] = getattr(request.module, "WORKER_ENV", {})
    async with run_worker(broker, ceph, **env) as running:
        yield running
