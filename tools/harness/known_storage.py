"""Spares the workers that tests start the measurement of a storage that is known.

A worker measures its bucket when it starts (SPEC 10). On the tests' own Ceph that takes half of the
CPU time of a start, and always gives the same answer. A worker still measures if it is started as
a separate program, uses another address (such as a proxy) or a versioned bucket, allows unsafe
storage, or if its start is what the test is about (`ready=False`).
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from unittest import mock

from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.pipeline.worker import process
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyturn_workers.process.settings import WorkerSettings
    from tools.servers import S3Server

# What `tests/integration/storage/test_probe.py` measures.
CEPH: Final = Capabilities(
    listings_show_overwrites=True, late_writes_refused=True, lists_by_path=False
)

_known: dict[str, S3Server] = {}


@contextmanager
def known_storage(server: S3Server) -> Iterator[None]:
    """While this is open, workers do not measure this server, if it is a Ceph of our own."""
    if server.kind == "ceph":
        _known[server.endpoint_url] = server
    try:
        yield
    finally:
        _known.pop(server.endpoint_url, None)


async def known_capabilities(env: Mapping[str, str]) -> Capabilities | None:
    """The capabilities that a worker with this environment can assume, or None if it must measure.

    Args:
        env: With the address and the bucket.
    """
    server = _known.get(env.get("KEYTURN_S3_ENDPOINT_URL", ""))
    if server is None or "KEYTURN_ALLOW_UNSAFE_STORAGE" in env:
        return None
    bucket = env["KEYTURN_S3_BUCKET"]
    return None if await asyncio.to_thread(_is_versioned, server, bucket) else CEPH


def _is_versioned(server: S3Server, bucket: str) -> bool:
    client = sync_client(server)
    try:
        return "Status" in client.get_bucket_versioning(Bucket=bucket)
    finally:
        client.close()


def assume(capabilities: Capabilities) -> None:
    """Make this process's worker assume these capabilities instead of measuring."""

    async def known(_: WorkerSettings) -> Capabilities:
        return capabilities

    # Fails if the function is renamed.
    mock.patch.object(process, "_measure_storage", known).start()
