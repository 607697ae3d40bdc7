"""Three sides of one object: the gateway, the server that passes bytes through, the storage.

Gateway and passing server are separate processes, started with the same settings. The storage
itself is read by presigned URLs, so that no side's client has to sign.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from keyturn.crypto import to_base64
from keyturn.identifiers import object_s3_key
from tools.bench.processes import printed, serving
from tools.bench.rotation.world import MASTER_KEY
from tools.harness import stored_objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.bench.rotation.world import World

_STARTED = "gateway started"
_PRESIGNED_S = 3600
_UNRESERVED = "/-_.~"


@dataclass(frozen=True)
class Sides:
    """Where each side serves the objects of one project."""

    world: World
    project: str
    gateway: Running
    passing: Running

    def ours(self, key: str, **headers: str) -> dict[str, Any]:
        """The object from the gateway."""
        return self._ours(f"/{quote(key, safe=_UNRESERVED)}", headers)

    def our_page(self, after: str, limit: int) -> dict[str, Any]:
        """The page of a listing that follows this key, from the gateway."""
        return self._ours(f"?after={quote(after, safe='')}&limit={limit}", {})

    def _ours(self, rest: str, headers: dict[str, str]) -> dict[str, Any]:
        sent = {"authorization": f"Bearer {self.world.api_keys[self.project]}", **headers}
        url = f"{_address(self.gateway)}/v1/projects/{self.project}/objects{rest}"
        return {"url": url, "headers": sent}

    def passed(self, key: str) -> dict[str, Any]:
        """Its stored bytes from the server that passes them through."""
        path = quote(object_s3_key(self.project, key), safe=_UNRESERVED)
        return {"url": f"{_address(self.passing)}/{path}", "headers": {}}

    def bare(self, key: str, **headers: str) -> dict[str, Any]:
        """Its stored bytes from the storage."""
        return self._bare("get_object", {"Key": object_s3_key(self.project, key)}, headers)

    def bare_page(self, after: str, limit: int) -> dict[str, Any]:
        """The page of a listing that follows this key, from the storage."""
        parameters: dict[str, Any] = {"Prefix": object_s3_key(self.project, ""), "MaxKeys": limit}
        if after:
            parameters["StartAfter"] = object_s3_key(self.project, after)
        return self._bare("list_objects_v2", parameters, {})

    def _bare(
        self, operation: str, parameters: dict[str, Any], headers: dict[str, str]
    ) -> dict[str, Any]:
        # Ceph's gateway refuses a listing that is signed by version 2.
        version = "s3v4" if operation == "list_objects_v2" else None
        client = stored_objects.s3_client(self.world.deployment, signature_version=version)
        url = client.generate_presigned_url(
            operation,
            Params={"Bucket": self.world.deployment.bucket, **parameters},
            ExpiresIn=_PRESIGNED_S,
        )
        return {"url": url, "headers": headers}


def _address(running: Running) -> str:
    """The log's line that says where it listens."""
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    report = next(line for line in lines if line["event"] == _STARTED)
    return f"http://{report['host']}:{report['port']}"


@asynccontextmanager
async def opened(
    world: World,
    project: str,
    scratch: Path,
    name: str,
    *,
    samples: Path | None = None,
    **env: str,
) -> AsyncIterator[Sides]:
    """Both servers, fresh; `env` is further settings of both, without their prefix.

    Where `samples` is given the gateway samples its own stack, and writes there at its end.
    """
    module = (
        ["keyturn_workers", "gateway"]
        if samples is None
        else ["tools.bench.stack_sampler", str(samples), "gateway"]
    )
    deployment = world.deployment
    job = {
        **deployment.publisher_env(),
        "KEYTURN_MASTER_KEYS": json.dumps({MASTER_KEY: to_base64(deployment.master_key)}),
        "KEYTURN_GATEWAY_PORT": "0",
        "KEYTURN_LOG_FORMAT": "json",
        **{f"KEYTURN_{setting}": value for setting, value in env.items()},
    }
    async with (
        serving(job, scratch / f"{name}-gateway.log", module, ready=_STARTED) as a,
        serving(
            job,
            scratch / f"{name}-passing.log",
            ["tools.bench.gateway.passthrough_server"],
            ready=_STARTED,
        ) as b,
    ):
        yield Sides(world, project, a, b)


async def run_job(what: str, targets: list[dict[str, Any]], **more: float) -> dict[str, Any]:
    """Do one job of `tools.bench.gateway.load_client`; errors as `printed`."""
    job = json.dumps({"what": what, "targets": targets, **more})
    report: dict[str, Any] = await printed({}, "tools.bench.gateway.load_client", stdin_text=job)
    return report
