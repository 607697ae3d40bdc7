"""The private servers do what the tests above them rely on (SPEC 6.2, 10)."""

from __future__ import annotations

import itertools
import os
import secrets
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import aio_pika
import psutil
import pytest
from botocore.exceptions import ClientError

from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from aio_pika.abc import AbstractChannel
    from pamqp.common import FieldTable

    from tools.servers import RabbitMQ, S3Server

pytestmark = pytest.mark.servers
_ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["ceph", "moto", "seaweedfs"])
def storage(request: pytest.FixtureRequest) -> S3Server:
    """Each kind of storage server, one after the other."""
    server: S3Server = request.getfixturevalue(request.param)
    return server


async def _publish(channel: AbstractChannel, queue: str, body: bytes) -> None:
    message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
    await channel.default_exchange.publish(message, routing_key=queue, timeout=10)


async def test_a_quorum_queue_hands_out_what_it_took(vhost_url: str) -> None:
    async with await aio_pika.connect(vhost_url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(
            "keyturn.upload", durable=True, arguments={"x-queue-type": "quorum"}
        )
        await _publish(channel, queue.name, b"one")
        message = await queue.get(timeout=10)
        await message.ack()
        assert message.body == b"one"


async def test_a_stream_keeps_messages_for_those_who_come_late(vhost_url: str) -> None:
    async with await aio_pika.connect(vhost_url) as connection:
        channel = await connection.channel()
        await channel.set_qos(10)
        queue = await channel.declare_queue(
            "keyturn.events", durable=True, arguments={"x-queue-type": "stream"}
        )
        await _publish(channel, queue.name, b"one")
        for _reader in range(2):
            arguments = {"x-stream-offset": "first"}
            async with queue.iterator(arguments=arguments, timeout=20) as messages:
                message = await anext(messages)
                await message.ack()
                assert message.body == b"one"


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_a_quorum_message_outlives_the_node(own_rabbitmq: RabbitMQ, how: str) -> None:
    arguments: FieldTable = {"x-queue-type": "quorum"}
    async with await aio_pika.connect(own_rabbitmq.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True, arguments=arguments)
        await _publish(channel, "kept", b"one")
    if how == "restart":
        own_rabbitmq.restart()
    else:
        own_rabbitmq.wait_until_registered("kept")
        own_rabbitmq.kill()
        own_rabbitmq.start()
    async with await aio_pika.connect(own_rabbitmq.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue("kept", durable=True, arguments=arguments)
        async with queue.iterator(timeout=60) as messages:
            message = await anext(messages)
            await message.ack()
            assert message.body == b"one"


def test_spare_vhosts_are_all_different(own_rabbitmq: RabbitMQ) -> None:
    urls = [own_rabbitmq.next_vhost_url() for _ in range(30)]
    assert len(set(urls)) == 30


def test_one_of_many_conditional_puts_wins(
    storage: S3Server, new_bucket: Callable[[S3Server], str]
) -> None:
    bucket = new_bucket(storage)
    client = sync_client(storage)
    together = threading.Barrier(8)

    def put(number: int) -> str:
        together.wait()
        try:
            client.put_object(
                Bucket=bucket, Key="k", Body=f"{number}".encode() * 1000, IfNoneMatch="*"
            )
        except ClientError as error:
            return str(error.response["ResponseMetadata"]["HTTPStatusCode"])
        return f"stored {number}"

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(put, range(8)))
    stored = [outcome for outcome in outcomes if outcome.startswith("stored")]
    assert len(stored) == 1
    assert [outcome for outcome in outcomes if outcome not in stored] == ["412"] * 7
    body = client.get_object(Bucket=bucket, Key="k")["Body"].read()
    assert body == stored[0].removeprefix("stored ").encode() * 1000
    client.close()


def test_a_large_body_comes_back_whole(
    storage: S3Server, new_bucket: Callable[[S3Server], str]
) -> None:
    bucket = new_bucket(storage)
    client = sync_client(storage)
    body = secrets.token_bytes(2**20) * 64
    client.put_object(Bucket=bucket, Key="k", Body=body)
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == body
    part = client.get_object(Bucket=bucket, Key="k", Range="bytes=5-9")["Body"].read()
    assert part == body[5:10]
    assert client.head_object(Bucket=bucket, Key="k")["ContentLength"] == len(body)
    client.delete_object(Bucket=bucket, Key="k")
    client.close()


@pytest.mark.parametrize(
    "content_type", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_a_body_with_a_forms_content_type_is_kept(
    storage: S3Server, new_bucket: Callable[[S3Server], str], content_type: str
) -> None:
    bucket = new_bucket(storage)
    client = sync_client(storage)
    client.put_object(Bucket=bucket, Key="k", Body=b"a=1&b", ContentType=content_type)
    found = client.get_object(Bucket=bucket, Key="k")
    assert (found["ContentType"], found["Body"].read()) == (content_type, b"a=1&b")
    client.close()


@pytest.fixture
def by_hand() -> Iterator[subprocess.Popen[str]]:
    """`python -m tools.servers --storage moto`."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("KEYTURN_")}
    command = [sys.executable, "-m", "tools.servers", "--storage", "moto"]
    with subprocess.Popen(
        command, cwd=_ROOT, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_owner_ends_its_servers(
    by_hand: subprocess.Popen[str], number: int
) -> None:
    assert by_hand.stdout is not None
    lines = list(itertools.takewhile(lambda line: not line.startswith("# ready"), by_hand.stdout))
    assert [line.split("=")[0] for line in lines[:2]] == [
        "export KEYTURN_AMQP_URL",
        "export KEYTURN_S3_ENDPOINT_URL",
    ]
    below = psutil.Process(by_hand.pid).children(recursive=True)
    assert {"beam.smp", "epmd"} <= {process.name() for process in below}
    by_hand.send_signal(number)
    status = by_hand.wait(timeout=60)
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else 0)
