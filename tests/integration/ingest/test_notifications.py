"""Ceph's own notifications over AMQP: what is put into a drop bucket is stored (SPEC 17.4).

The listings are an hour apart here: only a notification can have named an object that is put after
the worker's start.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import aio_pika
import boto3
import pytest
import pytest_asyncio

from keyturn.crypto import to_base64
from keyturn.messages import SourceObject
from keyturn.topology import NOTIFICATIONS
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.sources import DropBucket, sources_env
from tools.harness.worker_under_test import WorkerUnderTest, fresh_amqp_url, run_worker_for
from tools.servers import new_bucket, rclone

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]


class Watched:
    """A worker that watches a drop bucket of Ceph, which notifies it."""

    def __init__(self, running: WorkerUnderTest, drop: DropBucket) -> None:
        self.running = running
        self.drop = drop

    def notify(self) -> None:
        """Let the bucket notify the broker, as docs/howto/import.md says."""
        server = self.drop.server
        sns = boto3.client(
            "sns",
            endpoint_url=server.endpoint_url,
            region_name="default",
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=server.secret_access_key,
        )
        topic = sns.create_topic(
            Name=f"keyturn-{self.drop.bucket}",
            Attributes={
                "push-endpoint": self.running.deployment.amqp_url,
                "amqp-exchange": NOTIFICATIONS,
                "amqp-ack-level": "none",
            },
        )
        self.drop.client.put_bucket_notification_configuration(
            Bucket=self.drop.bucket,
            NotificationConfiguration={
                "TopicConfigurations": [
                    {
                        "Id": "keyturn",
                        "TopicArn": topic["TopicArn"],
                        "Events": ["s3:ObjectCreated:*"],
                    }
                ]
            },
        )

    async def put(self, key: str, body: bytes) -> str:
        """Put an object, and return the id of its upload."""
        named = await asyncio.to_thread(self.drop.put, key, body)
        return named.upload_id(self.running.deployment.name)

    async def stored(self, key: str, body: bytes, upload_id: str) -> None:
        """Wait until an object is stored with the right bytes, and gone from the source."""
        event = await self.running.wire.outcome(upload_id)
        assert event["type"] == "upload.stored", event
        assert event["size"] == len(body)
        deployment = self.running.deployment
        assert stored_objects.decrypt(deployment, "acme", key, "admin") == body
        await self.running.process.logged(upload_id)
        async with asyncio.timeout(30):  # the worker deletes it after its event
            while self.drop.read(key) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def push(self, body: bytes, headers: dict[str, Any] | None = None) -> None:
        """Push a notification as anyone could whom the broker lets write there."""
        exchange = await self.running.wire.channel.get_exchange(NOTIFICATIONS, ensure=False)
        await exchange.publish(aio_pika.Message(body, headers=headers), "forged", timeout=30)


def forged(bucket: str, key: str) -> bytes:
    record = {
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, "eTag": "f" * 32}},
    }
    return json.dumps({"Records": [record]}).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(broker: Servers, ceph: S3Server) -> AsyncIterator[Watched]:
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    drop = DropBucket(ceph, versioned=True, fields={"watch": True, "delete": True})
    env = {
        **sources_env(deployment, drop),
        "SOURCE_POLL_S": "3600",
        "PUBLISHER_NAME": "api",
        "PUBLISHER_KEY": to_base64(deployment.publisher_seed),
    }
    async with run_worker_for(deployment, **env) as running:
        await running.wire.consumed(NOTIFICATIONS, by=1)
        made = Watched(running, drop)
        await asyncio.to_thread(made.notify)
        yield made


@pytest.mark.parametrize("key", ["a.txt", "sub/b c+d%25 ü.txt", "x" * 880, "empty"])
async def test_what_is_put_is_stored_and_deleted(watched: Watched, key: str) -> None:
    body = b"" if key == "empty" else key.encode()
    await watched.stored(key, body, await watched.put(key, body))


async def test_an_object_above_one_part_comes_in(watched: Watched) -> None:
    body = bytes(range(256)) * 80_000  # 20 MB
    await watched.stored("large", body, await watched.put("large", body))


def move_into(drop: DropBucket, writer: str, folder: Path) -> None:
    """Move a folder's files to `in/{writer}/`, as docs/howto/import.md says."""
    server, target = drop.server, f"{drop.bucket}/in/{writer}"
    if writer == "rclone":
        command = [
            *(rclone.program(), "move", str(folder), f"drop:{target}"),
            *("--no-check-dest", "--s3-no-head", "--s3-no-check-bucket"),
            *("--s3-upload-cutoff", "8Mi"),  # above it in parts; 200 MiB by default
        ]
        env = rclone.remotes_env(drop=server)
    else:
        aws = Path(sys.executable).with_name("aws")
        command = [str(aws), "s3", "mv", str(folder), f"s3://{target}", "--recursive"]
        env = {
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_ENDPOINT_URL": server.endpoint_url,
            "AWS_DEFAULT_REGION": server.region,
            "AWS_ACCESS_KEY_ID": server.access_key_id,
            "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
        }
    env |= {"PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("writer", ["rclone", "aws"])
async def test_files_of_other_clients_come_in(
    watched: Watched, writer: str, tmp_path: Path
) -> None:
    """One that is put whole, and one that is put in parts: its ETag is no MD5 of the body."""
    bodies = {"small.txt": b"small", "large.txt": os.urandom(12 * 2**20)}
    for name, body in bodies.items():
        (tmp_path / name).write_bytes(body)
    wire, deployment = watched.running.wire, watched.running.deployment
    hints = await wire.channel.declare_queue(exclusive=True)
    await hints.bind(NOTIFICATIONS)
    await asyncio.to_thread(move_into, watched.drop, writer, tmp_path)
    while bodies:
        hint = json.loads((await wire.take(hints.name)).body)["Records"][0]["s3"]["object"]
        key = hint["key"].removeprefix("in/")
        name = key.removeprefix(f"{writer}/")
        body = bodies.pop(name)
        assert ("-" in hint["eTag"]) == (name == "large.txt"), hint["eTag"]
        named = SourceObject(
            name=watched.drop.name,
            key=hint["key"],
            etag=hint["eTag"],
            version=hint["versionId"],
            size=len(body),
        )
        await watched.stored(key, body, named.upload_id(deployment.name))
        stored = stored_objects.read_object(deployment, "acme", key)
        assert stored.content_type.startswith("text/plain")
        assert ("mtime" in stored.metadata) == (writer == "rclone")
    await hints.delete()


async def test_garbage_and_forged_notifications_do_nothing(watched: Watched) -> None:
    """Nothing is requested by them, and what comes after them is served."""
    running, bucket = watched.running, watched.drop.bucket
    known = len(running.wire.events)
    for body in (b"", b"\x00\xff", b"[]", b"{}", b"[" * 50_000, b'{"Records": [null, {}]}'):
        await watched.push(body)
    for key in ("in/not-there", "in/../x", ".keyturn/keyrings/acme.json", "in/%2e%2e/x", ""):
        await watched.push(forged(bucket, key))
        await watched.push(forged(running.deployment.bucket, key))
    await watched.push(b"{}", {"CC": ["keyturn.upload"], "BCC": ["upload.requested"]})
    upload_id = await watched.put("after", b"garbage")
    await watched.stored("after", b"garbage", upload_id)
    assert [event["upload_id"] for event in running.wire.events[known:]] == [upload_id]
    assert await running.wire.depth("keyturn.upload") == 0


async def test_one_object_is_requested_once_however_often_it_is_named(watched: Watched) -> None:
    """By Ceph once, and by copies of its notification under both spellings."""
    running = watched.running
    known = len(running.wire.events)
    upload_id = await watched.put("twice and more", b"once")
    for key in ("in/twice and more", quote_plus("in/twice and more")) * 3:
        await watched.push(forged(watched.drop.bucket, key))
    await watched.stored("twice and more", b"once", upload_id)
    await running.assert_serves_next()
    events = [e for e in running.wire.events[known:] if e["upload_id"] == upload_id]
    assert len(events) == 1
