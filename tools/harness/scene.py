"""The common steps of acceptance tests: publish, run workers and sweeps, inspect what is left."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keyturn import topology
from keyturn.crypto import to_base64
from keyturn.identifiers import staging_s3_key
from tools.harness import requests as rq
from tools.harness import stored_objects
from tools.harness.canaries import MARKER, Canaries
from tools.harness.marks import mark_keyrings
from tools.harness.process import worker
from tools.harness.tenants import Tenant
from tools.harness.wire import SignedPublisher, open_wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from tools.harness.deployment import Deployment
    from tools.harness.process import WorkerProcess
    from tools.harness.wire import Wire

CRASHING = "tests.acceptance.crash_worker"
Logs = list[list[str]]
_SHOWN_LINES = 60
# Longer than a message is handled, and shorter than it waits in a retry queue.
_STAYS_EMPTY_S = 1.0


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

    def through(self, amqp_url: str) -> Scene:
        """The scene as a worker sees it that reaches the same broker at another address."""
        return replace(self, deployment=replace(self.deployment, amqp_url=amqp_url))

    @asynccontextmanager
    async def worker(
        self,
        role: str = "all",
        *,
        point: str | None = None,
        **settings: str,
    ) -> AsyncIterator[WorkerProcess]:
        """A worker with debug logs, shown by a failure; with `point`, it kills itself there."""
        env = self.deployment.worker_env(**{"LOG_LEVEL": "debug", **settings}) | self.environ
        arguments: tuple[str, ...] = ()
        module = "keyturn_workers"
        if point is not None:
            module, arguments = CRASHING, ("--point", point)
            if self.deployment.s3.kind == "moto":
                arguments += ("--conditional-completion",)
        async with worker(env, role, module=module, arguments=arguments) as running:
            self.logs.append(running.lines)
            try:
                yield running
            except Exception as exc:
                last = running.lines[-_SHOWN_LINES:]
                exc.add_note("\n".join([f"the log of its worker {role!r} ends:", *last]))
                raise

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
                Key=staging_s3_key("api", made.upload_id),
                Body=made.sealed_body,
            )
        for _ in range(times):
            await self.publish(wire, made.document)
        return made

    async def publish(self, wire: Wire, document: dict[str, Any]) -> None:
        """Sign and publish a request."""
        await SignedPublisher(self.deployment, wire).publish(document)

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
    await enroll_projects(scene, [project])
    scene.check_logs()
    yield scene


def master_keys_setting(masters: dict[str, bytes]) -> str:
    """The value of the setting `MASTER_KEYS`."""
    return json.dumps({name: to_base64(master) for name, master in masters.items()})


def small_plaintexts(count: int, prefix: str = "small") -> dict[str, bytes]:
    """`count` small plaintexts that begin with the canary; the first has nothing else."""
    return {f"{prefix}/{n:03} ü.bin": MARKER + os.urandom(37 * n) for n in range(count)}


async def enroll_projects(scene: Scene, projects: Iterable[str]) -> list[Tenant]:
    """Enroll projects of the scene's deployment with one real worker."""
    tenants = [Tenant(scene.deployment, project) for project in projects]
    # The keyring records the longest lease of its writers, and every proof waits two of them:
    # this lease must not exceed those of later workers.
    async with (
        scene.worker("control", LEASE_S="2", KEYRING_CACHE_S="0.5") as running,
        open_wire(scene.deployment) as wire,
    ):
        await SignedPublisher(scene.deployment, wire).enroll(*(one.project for one in tenants))
        assert await running.terminate() == 0
    return tenants


async def run_concurrently(
    limit: int, cases: Mapping[str, Callable[[Logs], Awaitable[None]]]
) -> None:
    """Run cases, `limit` at a time, and report every failure with the ends of its workers' logs.

    Each case gets a list to which it adds its workers' logs.
    """
    slots = asyncio.Semaphore(limit)

    async def one(name: str, case: Callable[[Logs], Awaitable[None]]) -> Exception | None:
        logs: Logs = []
        async with slots:
            try:
                await case(logs)
            except Exception as exc:  # noqa: BLE001  # the other cases still run
                exc.add_note(f"in the case {name}")
                for log in logs:
                    exc.add_note("\n".join(["its worker:", *log[-_SHOWN_LINES:]]))
                return exc
        return None

    outcomes = await asyncio.gather(*(one(name, case) for name, case in cases.items()))
    failed = [outcome for outcome in outcomes if outcome is not None]
    if failed:
        raise ExceptionGroup(f"{len(failed)} of {len(cases)} cases", failed)


async def wait_for_end(
    wire: Wire, request_id: str, kind: str, *, timeout_s: float = 150
) -> dict[str, Any]:
    """Wait for the event of this kind that ends a request; a rejection fails at once."""
    event = await wire.event(
        lambda event: request_id in event.values() and _ends(event, kind), timeout_s=timeout_s
    )
    assert event["type"] == kind, event
    return event


def _ends(event: dict[str, Any], kind: str) -> bool:
    return event["type"] in {
        kind,
        "rotation.failed",
        "rotation.rejected",
        "sweep.failed",
        "sweep.rejected",
        "delete.rejected",
    }


def check_ends(wire: Wire, request_id: str, kind: str, objects: int) -> None:
    """Every completion event of a sweep is clean and has the right counts."""
    ends = [event for event in events_of(wire, request_id) if event["type"] == kind]
    assert ends
    for event in ends:
        assert event["clean"] is True, event
        assert event["objects"] == event["current"] + event["deleted"] == objects, event
        assert (event["failed"], event["noncurrent_stale"]) == (0, 0), event


async def wait_until_drained(wire: Wire, *, timeout_s: float = 60) -> None:
    """Wait until all queues stay empty; duplicates of steps remain for their retry delays.

    A message that a worker is handling is in no queue, and may go to a retry queue next.
    """
    work = (
        topology.UPLOAD_QUEUE,
        topology.CONTROL_QUEUE,
        topology.PLAN_QUEUE,
        topology.SWEEP_QUEUE,
    )
    waits = [topology.retry_name(queue, s) for queue in work for s in topology.ALL_DELAYS_S]
    clock = asyncio.get_running_loop().time
    async with asyncio.timeout(timeout_s):
        empty_since = clock()
        while clock() - empty_since < _STAYS_EMPTY_S:
            await asyncio.sleep(0.2)
            for queue in (*waits, *work):
                if await wire.depth(queue):
                    empty_since = clock()
                    break
