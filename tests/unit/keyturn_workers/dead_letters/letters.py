"""Dead letters, without a broker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.servers import S3Server

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

_S3 = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
DEPLOYMENT = Deployment("amqp://localhost/", _S3, "bucket")
LONG_AGO = "2026-01-01T00:00:00.000000Z"


@dataclass
class Letter:
    """A message on a dead-letter queue, and whether it was acknowledged."""

    body: bytes
    headers: dict[str, Any]
    message_id: str | None = None
    acknowledged: bool = False
    content_type: str = "application/json"
    content_encoding: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    priority: int | None = None
    timestamp: Any = None
    type: str | None = None
    app_id: str | None = None
    user_id: str | None = None
    expiration: float | None = None
    delivery_tag: int | None = None
    channel: Any = None

    @property
    def message(self) -> AbstractIncomingMessage:
        """The letter as aio-pika hands it out."""
        return cast("AbstractIncomingMessage", self)

    @property
    def processed(self) -> bool:
        """Whether it was acknowledged."""
        return self.acknowledged

    async def ack(self) -> None:
        if self.channel is None:
            self.acknowledged = True
        else:
            await self.channel.basic_ack(self.delivery_tag)


def letter(document: dict[str, Any], code: str = "request_expired", **headers: Any) -> Letter:
    """A request that publisher `api` signed, as a worker puts it on a dead-letter queue."""
    body = requests.encode(document)
    signed = requests.headers(body, DEPLOYMENT.publisher_key)
    worker = {"keyturn-code": code, "keyturn-detail": "too long ago"}
    request_id = next(
        document[name]
        for name in ("upload_id", "rotation_id", "sweep_id", "request_id")
        if name in document
    )
    return Letter(body, {**signed, **worker, "own": "kept", **headers}, request_id)


def upload(**changes: Any) -> dict[str, Any]:
    """An upload of the example project that has expired."""
    made = requests.upload(DEPLOYMENT, "acme", "k", b"hello")
    return made.document | {"requested_at": LONG_AGO} | changes
