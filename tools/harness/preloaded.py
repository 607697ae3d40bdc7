"""What the fork server imports before it forks: all that a worker, a gateway and a console import.

It also loads what they load lazily, such as AWS's description of S3.
"""

from __future__ import annotations

import asyncio
import gc
from importlib import import_module
from typing import Final

from pydantic import SecretStr

from keyturn.settings import S3Settings
from keyturn_workers.storage.s3 import open_storage

_IMPORTED: Final = (
    "keyturn_workers.cli.app",
    "keyturn_workers.cli.console",
    "keyturn_workers.cli.serve",
    "keyturn_workers.console.server",
    "keyturn_workers.gateway.server",
    "keyturn_workers.pipeline.worker.process",
    "keyturn_workers.pipeline.worker.wiring",
    "tools.harness.fork_server",
)


async def _open_storage() -> None:
    settings = S3Settings(
        s3_endpoint_url="http://127.0.0.1:9",
        s3_access_key_id="none",
        s3_secret_access_key=SecretStr("none"),
        s3_bucket="none",
    )
    async with open_storage(settings):
        pass


for name in _IMPORTED:
    import_module(name)
asyncio.run(_open_storage())
# Otherwise a collection in a child would touch these objects, and copy their pages.
gc.collect()
gc.freeze()
