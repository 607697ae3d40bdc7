"""The common steps of acceptance tests: publish, run workers, inspect bucket and broker."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keyturn import topology
from tools.harness import requests as rq
from tools.harness import stored_objects
from tools.harness.canaries import MARKER, Canaries
from tools.harness.marks import mark_keyrings
from tools.harness.process import worker
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.harness.deployment import Deployment
    from tools.harness.process import WorkerProcess
    from tools.harness.wire import Wire

CRASHING = "tests.acceptance.crash_worker"


@dataclass
class Scene:
    """A deployment with an enrolled project, on a test's own broker.

    `environ` are further variables of its workers, such as those of OpenTelemetry.
    """

    deployment: Deployment
    project: str
    plaintexts: dict[str, bytes] = field(default_factory=dict, repr=False)
    logs: list[list[str]] = field(default_factory=list, repr=False)
    canaries: Canaries = field(init=False, repr=False)
    environ: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.canaries = Canaries.of(self.deployment, self.project)

    async def on(self, amqp_url: str, *projects: str) -> Scene:
        """The same deployment on another broker, which knows the keyrings of these projects too."""
        deployment = replace(self.deployment, amqp_url=amqp_url)
        await mark_keyrings(deployment, self.project, *projects)
        return Scene(deployment, self.project)

    @asynccontextmanager
    async def worker(
        self,
        role: str = "all",
        *,
        point: str | None = None,
        **settings: str,
    ) -> AsyncIterator[WorkerProcess]:
        """A worker with debug logs; with `point`, one that kills itself there."""
        env = self.deployment.worker_env(**{"LOG_LEVEL": "debug", **settings}) | self.environ
        arguments: tuple[str, ...] = ()
        module = "keyturn_workers"
        if point is not None:
            module, arguments = CRASHING, ("--point", point)
            if self.deployment.s3.kind == "moto":
                arguments += ("--conditional-completion",)
        async with worker(env, role, module=module, arguments=arguments) as running:
            self.logs.append(running.lines)
            yield running

    async def upload(
        self, wire: Wire, key: str, plaintext: bytes, *, staged: bool = False, times: int = 1
    ) -> rq.Upload:
        """Publish an upload of `MARKER` followed by `plaintext`; stage its body first if needed."""
        plaintext = MARKER + plaintext
        made = rq.upload(self.deployment, self.project, key, plaintext, staged=staged)
        self.canaries.secrets[f"transport key of {key}"] = made.transport_key
        self.canaries.secrets[f"sealed body of {key}"] = made.sealed_body
        self.plaintexts.setdefault(key, plaintext)
        if staged:
            await asyncio.to_thread(
                stored_objects.s3_client(self.deployment).put_object,
                Bucket=self.deployment.bucket,
                Key=staging_s3_key(made),
                Body=made.sealed_body,
            )
        for _ in range(times):
            await self.publish(wire, made.document)
        return made

    async def publish(self, wire: Wire, document: dict[str, Any]) -> None:
        """Sign and publish a request."""
        body = rq.encode(document)
        signed = rq.headers(body, self.deployment.publisher_key)
        await wire.publish(document["type"], body, signed)

    def find_object(self, key: str) -> stored_objects.StoredObject | None:
        """The object, or None if it does not exist."""
        if f"{self.project}/{key}" not in stored_objects.list_keys(
            self.deployment, f"{self.project}/{key}"
        ):
            return None
        return stored_objects.read_object(self.deployment, self.project, key)

    def check_object(self, key: str, upload_id: str | None = None) -> None:
        """Each key by itself decrypts the uploaded plaintext; the DEK becomes a canary."""
        for by in ("user", "admin"):
            opened = stored_objects.decrypt(self.deployment, self.project, key, by)
            assert opened == self.plaintexts[key], (key, by)
        self.canaries.secrets[f"DEK of {key}"] = stored_objects.data_key(
            self.deployment, self.project, key
        )
        if upload_id is not None:
            shown = stored_objects.read_object(self.deployment, self.project, key)
            assert shown.metadata["enc-upload"] == upload_id

    def check_logs(self) -> None:
        """There are logs, and none contains a secret."""
        lines = [line for log in self.logs for line in log]
        assert lines
        assert self.canaries.found(lines) == []

    def check_nothing_left(self) -> None:
        """The bucket has no staged body and no open multipart upload."""
        assert stored_objects.list_keys(self.deployment, ".keyturn/staging/") == []
        assert stored_objects.list_multipart_uploads(self.deployment) == []


async def check_queues_empty(wire: Wire, *but: str) -> None:
    """All queues and dead-letter queues are empty.

    Call this after the workers ended: unacknowledged messages are not counted.
    """
    depths = {
        queue.name: await wire.depth(queue.name)
        for queue in topology.queues()
        if not queue.is_stream
    }
    left = {name: depth for name, depth in depths.items() if depth and name not in but}
    assert left == {}, left


def staging_s3_key(made: rq.Upload) -> str:
    return f".keyturn/staging/api/{made.upload_id}"


def events_of(wire: Wire, request_id: str) -> list[dict[str, Any]]:
    """All verified events of one request so far."""
    return [event for event in wire.events if request_id in event.values()]


def served_uploads(running: WorkerProcess) -> list[dict[str, Any]]:
    """The log lines of uploads that a worker acknowledged."""
    lines = [json.loads(line) for line in running.lines if '"upload.stored"' in line]
    return [line for line in lines if line["event"] == "upload.stored"]


@asynccontextmanager
async def enrolled_scene(deployment: Deployment, project: str) -> AsyncIterator[Scene]:
    """A scene whose project a real worker has enrolled."""
    scene = Scene(deployment, project)
    # The keyring records the longest lease of its writers, and proofs wait two such leases:
    # this lease must not exceed those of the workers that rotate the project later.
    async with (
        scene.worker("control", LEASE_S="2", KEYRING_CACHE_S="0.5") as running,
        open_wire(deployment) as wire,
    ):
        document = rq.enroll(deployment, project)
        await scene.publish(wire, document)
        event = await wire.outcome(document["request_id"])
        assert event["type"] == "project.enrolled"
        assert await running.terminate() == 0
    scene.check_logs()
    yield scene
