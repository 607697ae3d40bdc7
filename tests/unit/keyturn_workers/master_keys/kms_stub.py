"""A KMS over HTTP that answers as a test says: errors of AWS, and answers that AWS never gives."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiohttp import web

from keyturn_workers.key_uris import AwsKmsUri
from keyturn_workers.settings import KmsSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
URI = AwsKmsUri(f"awskms:{ARN}", ARN, "eu-central-1")


class KmsStub:
    """Answers each operation with what is set for it.

    Attributes:
        answers: By operation; a document, or a complete response.
        requests: Operation and parameters of each request, in order.
        authorizations: The header of each request.
        hanging: While set, requests are received and get no answer.
        came: Set once a request came.
        cut: How many of the next requests lose their connection.
    """

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: list[str] = []
        self.hanging = False
        self.cut = 0
        self.came = asyncio.Event()
        self.stopping = asyncio.Event()
        self.url = ""

    def settings(self, **more: Any) -> KmsSettings:
        """Settings of a process that uses the stub."""
        return KmsSettings(aws_kms_endpoint_url=self.url, **more)

    def refuse(self, operation: str, code: str, text: str = "", status: int = 400) -> None:
        """Answer an operation with an error."""
        document = {"__type": code, "message": text}
        self.answers[operation] = web.json_response(document, status=status)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        operation = request.headers["X-Amz-Target"].removeprefix("TrentService.")
        self.requests.append((operation, await request.json()))
        self.authorizations.append(request.headers["Authorization"])
        self.came.set()
        if self.cut:
            self.cut -= 1
            assert request.transport is not None
            request.transport.close()
        if self.hanging:
            await self.stopping.wait()
        answer = self.answers[operation]
        if isinstance(answer, web.Response):  # each of them can be sent once
            return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        headers = {"x-amzn-RequestId": "11111111-2222-3333-4444-555555555555"}
        return web.Response(
            text=json.dumps(answer), content_type="application/x-amz-json-1.1", headers=headers
        )


@asynccontextmanager
async def kms_stub() -> AsyncIterator[KmsStub]:
    """A running stub."""
    stub = KmsStub()
    app = web.Application()
    app.router.add_post("/", stub.serve)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    stub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield stub
    finally:
        stub.stopping.set()
        await runner.cleanup()
