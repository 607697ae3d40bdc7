"""Measures the tests' own storage once, so that not every worker there measures it again.

A worker measures its bucket when it starts (SPEC 10). That is half of the CPU time of a start, for
the same answer each time. `known_storage` names a server whose buckets all behave alike; workers
that tests fork then start with what was measured there. A worker that is started as a program, at
another address (a proxy's, say) or with unsafe storage allowed, and one whose start is itself under
test (`ready=False`, `measures=True`), still measures.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

from pydantic import SecretStr

from keyturn.settings import S3Settings
from keyturn_workers.storage.probe.runner import probe
from keyturn_workers.storage.s3 import open_storage
from keyturn_workers.worker import process
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from keyturn_workers.settings import WorkerSettings
    from keyturn_workers.storage import Capabilities
    from tools.servers import S3Server


@dataclass
class _Measured:
    server: S3Server
    found: Capabilities | None = None


_known: dict[str, _Measured] = {}


@contextmanager
def known_storage(server: S3Server) -> Iterator[None]:
    """While this is open, this server is measured once, when the first worker starts on it."""
    _known[server.endpoint_url] = _Measured(server)
    try:
        yield
    finally:
        del _known[server.endpoint_url]


async def known_capabilities(env: Mapping[str, str]) -> Capabilities | None:
    """What a worker with this environment may take for granted; None if it has to measure."""
    known = _known.get(env.get("KEYTURN_S3_ENDPOINT_URL", ""))
    if known is None or "KEYTURN_ALLOW_UNSAFE_STORAGE" in env:
        return None
    if known.found is None:
        known.found = await _measure(known.server)
    return known.found


async def _measure(server: S3Server) -> Capabilities | None:
    settings = S3Settings(
        s3_endpoint_url=server.endpoint_url,
        s3_access_key_id=server.access_key_id,
        s3_secret_access_key=SecretStr(server.secret_access_key),
        s3_region=server.region,
        s3_bucket=await asyncio.to_thread(new_bucket, server),
    )
    async with open_storage(settings) as storage:
        report = await probe(storage, quick=True)
    return None if report.unsafe or report.undecided else report.capabilities


def assume(capabilities: Capabilities) -> None:
    """Let this process's worker take its storage's capabilities for granted."""

    async def known(_: WorkerSettings) -> Capabilities:
        return capabilities

    # Fails if the function is renamed.
    mock.patch.object(process, "_measure_storage", known).start()
