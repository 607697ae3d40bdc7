"""Requests to the storage in a trace: operation, kind and status; no name, no URL, no signature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from opentelemetry.trace import SpanKind

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import PreconditionError
from keyturn_workers.storage import Headers, IfAbsent
from keyturn_workers.storage.s3 import S3Storage, open_storage
from keyturn_workers.tracing.s3 import TracedS3HttpClient, kind_of
from keyturn_workers.tracing.scope import begin, recorded
from tests.unit.keyturn_workers.storage.scripted_server import (
    DROP,
    Reply,
    ScriptedServer,
    scripted_server,
)
from tests.unit.keyturn_workers.tracing.recorder import Recorder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

from tests.unit.keyturn_workers.storage.test_s3 import error

KEY = "secret-project/secret name.pdf"
PLAIN = Headers({}, None)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest_asyncio.fixture
async def storage(server: ScriptedServer) -> AsyncIterator[S3Storage]:
    async with open_storage(server.settings(), http_client=TracedS3HttpClient) as storage:
        yield storage


async def _traced(*calls: Awaitable[object]) -> Recorder:
    recorder = Recorder()
    with recorded(recorder.tracer, begin(recorder.tracer, "root", SpanKind.CONSUMER)):
        for call in calls:
            await call
    return recorder


async def _streamed(storage: S3Storage) -> None:
    async with storage.stream(KEY) as stream:
        async for _ in stream.chunks(None):
            pass


async def test_each_request_is_a_span(storage: S3Storage) -> None:
    recorder = await _traced(
        storage.put(KEY, b"body", PLAIN),
        storage.read(KEY),
        _streamed(storage),
        storage.delete(KEY),
    )
    assert [span.name for span in recorder.spans] == [
        "S3.PutObject",
        "S3.GetObject",
        "S3.GetObject",
        "S3.DeleteObject",
        "root",
    ]
    assert recorder.span("S3.PutObject").kind is SpanKind.CLIENT
    assert recorder.attributes("S3.PutObject") == {
        "rpc.system.name": "aws-api",
        "rpc.method": "PutObject",
        "keyturn.storage.kind": "object",
        "http.request.body.size": 4,
        "http.response.status_code": 200,
    }
    assert "secret" not in recorder.shown()
    assert "127.0.0.1" not in recorder.shown()


@pytest.mark.parametrize(
    ("reply", "expected", "error_type"),
    [
        (Reply(412, error("PreconditionFailed")), PreconditionError, "PreconditionError"),
        (DROP, StorageUnavailableError, "storage_unavailable"),
    ],
)
async def test_of_a_failure_the_kind_is_recorded(
    storage: S3Storage, server: ScriptedServer, reply: Reply, expected: type[Exception],
    error_type: str,
) -> None:  # fmt: skip
    server.script = [reply]
    recorder = Recorder()
    with (
        pytest.raises(expected),
        recorded(recorder.tracer, begin(recorder.tracer, "root", SpanKind.CONSUMER)),
    ):
        await storage.put(KEY, b"body", PLAIN, condition=IfAbsent())
    assert recorder.attributes("S3.PutObject")["error.type"] == error_type
    assert "secret" not in recorder.shown()


async def test_outside_a_trace_nothing_is_recorded(storage: S3Storage) -> None:
    recorder = Recorder()
    await storage.put(KEY, b"body", PLAIN)
    await storage.delete(KEY)
    assert recorder.spans == ()


@pytest.mark.parametrize(
    ("s3_key", "kind"),
    [
        ("acme/reports/q3.pdf", "object"),
        (".keyturn/keyrings/acme.json", "keyring"),
        (".keyturn/staging/api/1", "staged body"),
        (".keyturn/sweeps/acme.json", "record"),
        (".keyturn/evidence/acme/1.json", "evidence"),
        (".keyturn/keys/m1.json", "known text"),
        (".keyturn/of-a-later-release", "record"),
        ("", "bucket"),
    ],
)
def test_a_key_is_known_by_its_kind(s3_key: str, kind: str) -> None:
    assert kind_of(s3_key) == kind
