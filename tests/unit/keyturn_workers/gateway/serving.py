"""The whole application over a bucket in memory: a fake publisher, a client, and no server."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from keyturn.messages import DeleteRequested
from keyturn.publisher import NotSentHereError, WaitTimeoutError
from keyturn.publisher.requests import build, draft_upload, now
from keyturn.publisher.sessions import SealingSession
from keyturn_workers.gateway.app import Gateway
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.request import object_path
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.process.settings import GatewaySettings
from tests.unit.keyturn.publisher.test_requests import SETTINGS
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.bench import API_KEY, DEPLOYMENT, KEY, Bench
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from pydantic import SecretStr
    from starlette.types import ASGIApp, Message

    from keyturn.messages import Event
    from keyturn.publisher import Publisher
    from keyturn_workers.process.health import Check

BEARER = {"authorization": f"Bearer {API_KEY}"}
PATH = object_path("acme", KEY)
ROTATIONS = "/v1/projects/acme/rotations"
DELETES = "/v1/projects/acme/deletes"


@dataclass
class Connection:
    """One request on a separate connection, and its response.

    A piece of the body that is None never comes. `gone` is set where the client leaves,
    `takes` cleared where it takes nothing.
    """

    body: list[bytes | None] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes = b""
    ended: bool = False
    aborted: bool = False
    began: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.takes.set()

    def document(self) -> Any:
        return json.loads(self.content)

    def abort(self) -> None:
        assert not self.ended, "a complete response must not be reset"
        self.aborted = True

    async def receive(self) -> Message:
        if self.body:
            piece = self.body.pop(0)
            if piece is not None:
                return {"type": "http.request", "body": piece, "more_body": bool(self.body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            assert not self.status, "a response starts once"
            self.status = message["status"]
            for name, value in message["headers"]:
                assert name == name.lower()
                assert name.decode() not in self.headers or name == b"set-cookie"
                self.headers[name.decode()] = value.decode("latin-1")
            return
        assert self.status, "a response begins with its start"
        assert not self.ended, "nothing comes after the end"
        assert not self.aborted, "nothing comes after a reset"
        self.content += bytes(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self.content:
            self.began.set()
        await self.takes.wait()


async def ask(
    app: ASGIApp,
    method: str,
    target: str,
    *,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    body: bytes | Iterable[bytes | None] = b"",
    on: Connection | None = None,
) -> Connection:
    """Send one request on the given connection or a new one, and await its end."""
    connection = on or Connection()
    connection.body = [body] if isinstance(body, bytes) else list(body)
    pairs = headers if isinstance(headers, list | tuple) else dict(headers).items()
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(n.lower().encode(), v.encode("latin-1")) for n, v in pairs],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8080),
        "state": {"keyturn.abort": connection.abort},
    }
    await app(scope, connection.receive, connection.send)
    if connection.ended and method != "HEAD" and "content-length" in connection.headers:
        assert len(connection.content) == int(connection.headers["content-length"])
    return connection


@dataclass
class Upload:
    project: str
    key: str
    body: bytes
    content_type: str | None
    metadata: dict[str, str]
    upload_id: str


@dataclass
class FakePublisher:
    """What the gateway uses of `keyturn.publisher.Publisher`; names are checked as there.

    `fails` is raised in place of publishing. `answer` makes the event of a request's id; where
    it is None there is no event in time.
    """

    uploads: list[Upload] = field(default_factory=list)
    rotations: list[dict[str, Any]] = field(default_factory=list)
    deletes: list[dict[str, str]] = field(default_factory=list)
    many: list[dict[str, Any]] = field(default_factory=list)
    outcomes: dict[str, Any] | None = None
    waits: list[float] = field(default_factory=list)
    fails: Exception | None = None
    answer: Any = None
    wait_fails: Exception | None = None
    telling: asyncio.Event = field(default_factory=asyncio.Event)

    async def upload(
        self,
        project: str,
        key: str,
        body: AsyncIterator[bytes],
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        upload_id: str,
    ) -> str:
        sent = dict(metadata or {})
        draft_upload(
            SealingSession(SETTINGS),
            project,
            key,
            content_type=content_type,
            metadata=sent,
            upload_id=upload_id,
        )
        taken = b"".join([piece async for piece in body])
        if self.fails is not None:
            raise self.fails
        self.uploads.append(Upload(project, key, taken, content_type, sent, upload_id))
        return upload_id

    async def rotate(
        self, project: str, *, api_key: SecretStr, expected_generation: int, rotation_id: str
    ) -> str:
        if self.fails is not None:
            raise self.fails
        rotation = {"api_key": api_key.get_secret_value(), "generation": expected_generation}
        self.rotations.append({"project": project, "id": rotation_id, **rotation})
        return rotation_id

    async def delete(self, project: str, object_key: str, *, request_id: str) -> str:
        build(
            DeleteRequested,
            requested_at=now(),
            project=project,
            key=object_key,
            request_id=request_id,
        )
        if self.fails is not None:
            raise self.fails
        self.deletes.append({"project": project, "key": object_key, "id": request_id})
        return request_id

    async def delete_many(self, project: str, keys: list[str], *, request_id: str) -> str:
        build(
            DeleteRequested,
            requested_at=now(),
            project=project,
            keys=tuple(keys),
            request_id=request_id,
        )
        if self.fails is not None:
            raise self.fails
        self.many.append({"project": project, "keys": keys, "id": request_id})
        return request_id

    def delete_outcomes(self, request_id: str) -> dict[str, Any]:
        if self.outcomes is None:
            raise NotSentHereError(request_id)
        return self.outcomes

    async def wait(
        self, request_id: str, *, timeout_s: float = 60.0, project: str, request_type: str
    ) -> Event:
        sent = {u.upload_id: ("upload.requested", u.project) for u in self.uploads}
        sent |= {r["id"]: ("rotation.requested", r["project"]) for r in self.rotations}
        deletes = (*self.deletes, *self.many)
        sent |= {d["id"]: ("delete.requested", d["project"]) for d in deletes}
        assert sent.get(request_id, (request_type, project)) == (request_type, project)
        self.waits.append(timeout_s)
        if self.wait_fails is not None:
            raise self.wait_fails
        if self.answer is None:
            if timeout_s > 60:  # a listener: until there is an event, or it is closed
                await self.telling.wait()
            if self.answer is None:
                raise WaitTimeoutError
        event: Event = self.answer(request_id)
        return event


async def _holds() -> bool:
    return True


@dataclass
class Serving:
    bench: Bench = field(default_factory=Bench)
    publisher: FakePublisher = field(default_factory=FakePublisher)
    concurrency: int = 64
    idle_timeout_s: float = 30.0
    wait_max_s: float = 20.0
    max_bytes: int = 10**6
    upload_concurrency: int = 4
    project_share: float = 1.0
    staging_max_bytes: int = 2**30
    max_rotations: int = 3
    rotation_allowed: bool = True
    public_url: str | None = None
    max_deletes: int = 3
    max_pending: int = 100
    max_pending_bytes: int = 2**30
    delete_allowed: bool = True
    cors_origins: tuple[str, ...] = ()
    presign_plaintext: bool = False
    checks: Mapping[str, Check] = field(default_factory=lambda: {"storage": _holds})
    permits_writes: bool = True

    def __post_init__(self) -> None:
        self.metrics = GatewayMetrics()
        self.store = SweepStore(self.bench.storage, operator_keys(MASTER_KEYS))
        self.gateway = Gateway(
            self._settings(),
            self.bench.auth,
            self.bench.opener,
            self.bench.storage,
            self.store,
            cast("Publisher", self.publisher),
            self.metrics,
        )
        self.limit = self.gateway.limit
        self.uploads = self.gateway.uploads
        self.ledger = self.uploads.ledger
        self.deletes = self.gateway.deletes
        self.rotations = self.gateway.rotations
        self.app = self.gateway.application(self.checks, lambda: self.permits_writes)

    def _settings(self) -> GatewaySettings:
        return GatewaySettings.model_construct(
            deployment=DEPLOYMENT,
            publisher_name="gateway",
            gateway_concurrency=self.concurrency,
            gateway_idle_timeout_s=self.idle_timeout_s,
            gateway_wait_max_s=self.wait_max_s,
            upload_max_bytes=self.max_bytes,
            gateway_upload_concurrency=self.upload_concurrency,
            gateway_project_share=self.project_share,
            gateway_staging_max_bytes=self.staging_max_bytes,
            gateway_project_rotations=self.max_rotations,
            gateway_rotation="allowed" if self.rotation_allowed else "forbidden",
            gateway_public_url=self.public_url,
            gateway_project_deletes=self.max_deletes,
            gateway_pending=self.max_pending,
            gateway_pending_bytes=self.max_pending_bytes,
            gateway_delete="allowed" if self.delete_allowed else "forbidden",
            gateway_cors_origins=self.cors_origins,
            presign_plaintext=self.presign_plaintext,
        )

    async def ask(
        self, method: str = "GET", target: str = PATH, *, key: str | None = API_KEY, **more: Any
    ) -> Connection:
        """Send one request, with the project's API key by default."""
        headers = dict(more.pop("headers", {}))
        if key is not None:
            headers = {"authorization": f"Bearer {key}", **headers}
        return await ask(self.app, method, target, headers=headers, **more)

    def counted(self, name: str, **labels: str) -> float:
        """Return a counter's value, or 0."""
        full = f"keyturn_gateway_{name}"
        return self.metrics.registry.get_sample_value(full, labels) or 0.0

    def label_values(self, name: str) -> set[str]:
        """Return all values of a label in any sample."""
        return {
            sample.labels[name]
            for family in self.metrics.registry.collect()
            for sample in family.samples
            if name in sample.labels and family.name.startswith("keyturn")
        }
