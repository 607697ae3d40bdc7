"""A worker frees each upload's body as soon as it is settled, whatever became of it (SPEC 7).

The garbage collector runs rarely in a worker, and counts objects rather than bytes. So nothing may
keep a body in a cycle, such as an error in a variable of a frame in its own traceback.
"""

from __future__ import annotations

import asyncio
import gc
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika import IncomingMessage

from keyturn.identifiers import format_time
from keyturn.messages import UploadRequested
from keyturn.topology import UPLOAD_QUEUE
from tests.fuzz import valid_messages, wire
from tests.fuzz.offline_worker import Channel, Worker, received
from tools.harness import requests

if TYPE_CHECKING:
    from tools.harness.deployment import Deployment

_HOLD_BODIES = (IncomingMessage, UploadRequested)
_LONG_AGO = format_time(datetime.now(UTC) - timedelta(days=30))


def _bodies() -> list[object]:
    return [each for each in gc.get_objects() if type(each) in _HOLD_BODIES]


def _upload(deployment: Deployment, **changed: Any) -> bytes:
    project = changed.get("project", valid_messages.PROJECT)
    made = requests.upload(deployment, project, "k", b"body")
    return requests.encode(made.document | changed)


@pytest.mark.parametrize(
    ("outcome", "changed", "signed"),
    [
        ("upload.stored", {}, True),
        ("bad_signature", {}, False),
        ("malformed_request", {"key": "/"}, True),
        ("malformed_request", {"unknown": 1}, True),
        ("request_expired", {"requested_at": _LONG_AGO}, True),
        ("unknown_project:1", {"project": "unknown"}, True),
        ("already_exists", {}, True),
        ("bad_seal", {"sealed_key": {"intake_key": "main", "ciphertext": "AAAA"}}, True),
    ],
    ids=["stored", "unsigned", "key", "form", "expired", "retried", "exists", "unsealed"],
)
async def test_a_message_is_freed_once_it_is_settled(
    outcome: str, changed: dict[str, Any], signed: bool
) -> None:
    deployment = valid_messages.deployment()
    worker = Worker(deployment, {})

    async def take(body: bytes) -> str:
        sent = requests.headers(body, deployment.publisher_key) if signed else {}
        header = wire.header_bytes([(n.encode(), wire.text(v)) for n, v in sent.items()], {})
        await worker.take(UPLOAD_QUEUE, received(header, body, "upload.requested", Channel()))
        headers = [one.read().headers for one in worker.broker.published]
        codes = [h.get("keyturn-code", h.get("keyturn-attempt")) for h in headers]
        return str(next(filter(None, codes), worker.broker.published[-1].queue))

    async with worker.running():
        if outcome == "already_exists":
            await take(_upload(deployment))
        gc.collect()
        earlier = {id(each): each for each in _bodies()}  # other tests' own
        gc.disable()
        try:
            assert await take(_upload(deployment, **changed)) == outcome
            worker.broker.published.clear()
            for _ in range(3):
                await asyncio.sleep(0)
            kept = [each for each in _bodies() if id(each) not in earlier]
        finally:
            gc.enable()
        assert kept == []
