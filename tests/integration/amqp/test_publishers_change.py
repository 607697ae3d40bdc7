"""Publishers and their keys change while a worker runs (SPEC 6.10)."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import SigningKey, to_base64
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.harness.worker_under_test import OutgoingRequest, fresh_amqp_url, run_worker_for
from tools.servers import new_bucket

if TYPE_CHECKING:
    from pathlib import Path

    from tools.harness.worker_under_test import WorkerUnderTest
    from tools.servers import S3Server, Servers

pytestmark = pytest.mark.servers
FIRST, SECOND = (SigningKey.from_seed(bytes([n]) * 32) for n in (7, 8))


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def _with(deployment: Deployment, *keys: SigningKey) -> str:
    """The deployment's publishers, and `later` with these keys."""
    publishers = json.loads(deployment.worker_env()["KEYTURN_PUBLISHERS"])
    if keys:
        public = [to_base64(key.public_bytes) for key in keys]
        publishers["later"] = {"keys": public, "may": ["upload.requested"], "projects": ["acme"]}
    return json.dumps(publishers)


def _upload(served: WorkerUnderTest, key: SigningKey) -> OutgoingRequest:
    document = requests.upload(served.deployment, "acme", requests.new_id(), b"x").document
    body = requests.encode(document)
    headers: dict[str, Any] = dict(requests.headers(body, key, publisher="later"))
    ids = {"upload_id": document["upload_id"]}
    return OutgoingRequest("upload.requested", body, headers, ids)


async def _stored(served: WorkerUnderTest, key: SigningKey) -> None:
    sent = _upload(served, key)
    await served.publish(sent)
    assert (await served.wire.outcome(sent.request_id))["type"] == "upload.stored"


async def _refused(served: WorkerUnderTest, key: SigningKey) -> None:
    sent = _upload(served, key)
    await served.publish(sent)
    dead = await served.wire.take("keyturn.unsigned.dead")
    assert dead.body == sent.body
    assert dead.headers["keyturn-code"] == "bad_signature"


async def test_publishers_and_keys_come_and_go(
    broker: Servers, moto: S3Server, tmp_path: Path
) -> None:
    """None of it needs a restart, and no request is refused between two of these steps."""
    deployment = Deployment(await fresh_amqp_url(broker), moto, new_bucket(moto))
    path = tmp_path / "publishers.json"
    _replace(path, _with(deployment))
    async with run_worker_for(deployment, PUBLISHERS=str(path)) as served:
        await _refused(served, FIRST)
        # Known at once: the file is read again before a message is refused.
        _replace(path, _with(deployment, FIRST))
        await _stored(served, FIRST)
        stream = await served.wire.channel.declare_queue("keyturn.events.later", passive=True)
        assert stream.name == "keyturn.events.later"
        _replace(path, _with(deployment, FIRST, SECOND))
        await _stored(served, SECOND)
        await _stored(served, FIRST)
        lines = len(served.process.lines)
        _replace(path, _with(deployment, SECOND))
        await served.process.logged("publishers changed", after=lines, timeout_s=5)
        await _refused(served, FIRST)
        await _stored(served, SECOND)
        lines = len(served.process.lines)
        _replace(path, "{")
        served.process.process.send_signal(signal.SIGHUP)
        await served.process.logged("publishers not read", after=lines, timeout_s=5)
        await _stored(served, SECOND)
        _replace(path, _with(deployment))
        served.process.process.send_signal(signal.SIGHUP)
        await served.process.logged('"removed":["later"]', after=lines, timeout_s=5)
        await _refused(served, SECOND)
        await served.assert_serves_next()
        assert await asyncio.wait_for(served.process.terminate(), 60) == 0


async def test_an_event_of_a_publisher_without_a_stream_is_in_the_stream_of_all(
    broker: Servers, moto: S3Server
) -> None:
    """SPEC 6.8: `mandatory` is satisfied by `keyturn.events`, and the request is served."""
    deployment = Deployment(await fresh_amqp_url(broker), moto, new_bucket(moto))
    async with run_worker_for(deployment) as served:
        await served.wire.channel.queue_delete("keyturn.events.api")
        await served.assert_serves_next()
