"""`keyturn dead` on a real broker: looking takes nothing, acting loses nothing (SPEC 12)."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from keyturn.crypto import VerifyKey
from keyturn_workers.pipeline.amqp.declarations import declare
from keyturn_workers.process.message_copies import identity_body
from keyturn_workers.reports.dead_letters.queue import open_letters, read_letters
from tests.integration.cli.conftest import document
from tools.harness import requests
from tools.harness.amqp1 import POISONS, open_sender
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel

    from keyturn.crypto import SigningKey
    from tests.integration.cli.conftest import Cli
    from tools.harness.requests import Upload

pytestmark = pytest.mark.servers
_DEAD = "keyturn.upload.dead"
_WORK = "keyturn.upload"
_LONG_AGO = "2026-01-01T00:00:00.000000Z"


@asynccontextmanager
async def _broker(cli: Cli) -> AsyncIterator[AbstractChannel]:
    await declare(cli.deployment.amqp_url)
    async with await aio_pika.connect(cli.deployment.amqp_url) as connection:
        yield await connection.channel(on_return_raises=True)


async def _bury(
    channel: AbstractChannel,
    body: bytes,
    headers: dict[str, Any],
    *,
    message_id: str | None,
    queue: str = _DEAD,
) -> None:
    message = aio_pika.Message(
        body,
        headers=headers,
        message_id=message_id,
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    await channel.default_exchange.publish(message, queue)


async def _bury_upload(
    cli: Cli,
    channel: AbstractChannel,
    *,
    key: SigningKey | None = None,
    publisher: str = "api",
    project: str = "acme",
    staged: bool = False,
    requested_at: str | None = None,
) -> Upload:
    """A dead upload, with what a worker puts on a dead letter."""
    made = requests.upload(cli.deployment, project, "k", b"hello", staged=staged)
    if requested_at is not None:
        made.document["requested_at"] = requested_at
    body = requests.encode(made.document)
    signed = requests.headers(body, key or cli.deployment.publisher_key, publisher=publisher)
    worker = {"keyturn-code": "request_expired", "keyturn-detail": "too long ago"}
    await _bury(channel, body, {**signed, **worker, "own": "kept"}, message_id=made.upload_id)
    return made


async def _depth(channel: AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def _ids(channel: AbstractChannel, queue: str) -> list[str | None]:
    """Take everything off a queue, in order."""
    source = await channel.get_queue(queue, ensure=False)
    ids = []
    while (message := await source.get(fail=False)) is not None:
        await message.ack()
        ids.append(message.message_id)
    return ids


async def test_reading_thirty_times_loses_nothing_and_keeps_the_order(cli: Cli) -> None:
    async with _broker(cli) as channel:
        made = [await _bury_upload(cli, channel) for _ in range(5)]
        expected = [each.upload_id for each in made]
        for _ in range(30):
            result = await cli.arun("dead", "list", "--json")
            assert [row["id"] for row in document(result)] == expected
        shown = await cli.arun("dead", "show", expected[2])
        assert shown.exit_code == 0
        assert await _ids(channel, _DEAD) == expected


async def test_hundreds_of_letters_keep_their_order(cli: Cli) -> None:
    """The broker requeues out of order after more than about thirty `basic.get`."""
    async with _broker(cli) as channel:
        expected = [f"letter-{place:03}" for place in range(300)]
        for name in expected:
            await _bury(channel, b"{}", {}, message_id=name)
        result = await cli.arun("dead", "list", "--limit", "1000", "--json")
        assert [row["id"] for row in document(result)] == expected
        few = await cli.arun("dead", "list", "--limit", "10", "--json")
        assert [row["id"] for row in document(few)] == expected[:10]
        assert (await cli.arun("dead", "show", expected[200])).exit_code == 0
        assert await _ids(channel, _DEAD) == expected


async def test_the_next_reader_finds_every_letter(cli: Cli) -> None:
    """Without the wait, the next reader finds too few nearly every other time."""
    async with _broker(cli) as channel:
        for _ in range(50):
            await _bury(channel, b"{}", {}, message_id=None)
        for _ in range(20):
            async with open_letters(cli.deployment.amqp_url) as reading:
                assert await read_letters(reading, _DEAD, lambda *_: None) == ([], 50)
            assert await _depth(channel, _DEAD) == 50


async def test_the_code_is_the_brokers_reason_if_no_worker_gave_one(cli: Cli) -> None:
    async with _broker(cli) as channel:
        await _bury(channel, b"{}", {}, message_id="odd", queue=_WORK)
        work = await channel.get_queue(_WORK, ensure=False)
        async with work.iterator(timeout=30) as messages:
            delivered = await anext(messages)
            await delivered.reject(requeue=False)
        # Dead-lettering is at least once, and so not at once: consume waits for it.
        dead = await channel.get_queue(_DEAD, ensure=False)
        async with dead.iterator(timeout=30) as letters:
            await (await anext(letters)).nack(requeue=True)
        rows = document(await cli.arun("dead", "list", "--json"))
        assert [row["code"] for row in rows] == ["rejected"]


async def test_a_letter_that_rabbitmq_cannot_convert_is_listed_shown_and_discarded(
    cli: Cli,
) -> None:
    async with _broker(cli) as channel:
        first = await _bury_upload(cli, channel)
        async with open_sender(cli.deployment.amqp_url, f"/queues/{_DEAD}") as sender:
            await sender.send(b"{}", POISONS["uuid"])
        second = await _bury_upload(cli, channel)
        listed = await cli.arun("dead", "list", "--json")
        ids = [row["id"] for row in document(listed)]
        assert (ids[0], ids[2], len(ids)) == (first.upload_id, second.upload_id, 3)
        assert listed.stderr == ""
        assert (await cli.arun("dead", "show", ids[1])).exit_code == 0
        discarded = await cli.arun("dead", "discard", ids[1], "--yes", "--json")
        assert [row["status"] for row in document(discarded)] == ["discarded"]
        # Over 0-9-1 again: nothing is left that costs the reader its connection.
        assert await _ids(channel, _DEAD) == [first.upload_id, second.upload_id]


async def test_replay_sends_a_letter_back_as_it_was_sent(cli: Cli) -> None:
    async with _broker(cli) as channel:
        first = await _bury_upload(cli, channel)
        second = await _bury_upload(cli, channel)
        result = await cli.arun("dead", "replay", second.upload_id, "--json")
        assert [row["status"] for row in document(result)] == ["replayed"]
        work = await channel.get_queue(_WORK, ensure=False)
        message = await work.get()
        await message.ack()
        assert message.body == requests.encode(second.document)
        assert message.message_id == second.upload_id
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert set(message.headers) == {"keyturn-publisher", "keyturn-signature", "own"}
        assert await _ids(channel, _DEAD) == [first.upload_id]


async def test_resign_gives_a_new_time_and_a_signature_that_verifies(cli: Cli) -> None:
    async with _broker(cli) as channel:
        made = await _bury_upload(cli, channel, requested_at=_LONG_AGO)
        result = await cli.arun("dead", "replay", made.upload_id, "--resign")
        assert result.exit_code == 0, result.stderr
        work = await channel.get_queue(_WORK, ensure=False)
        message = await work.get()
        await message.ack()
        renewed = json.loads(message.body)
        assert renewed.pop("requested_at") > _LONG_AGO
        assert renewed == {n: v for n, v in made.document.items() if n != "requested_at"}
        verify = VerifyKey.from_bytes(cli.deployment.publisher_key.public_bytes)
        verify.verify_request(
            "test", "api", message.body, str(message.headers["keyturn-signature"])
        )
        assert "keyturn-code" not in message.headers


async def test_resign_signs_no_delete_and_no_sweep_wherever_it_was_planted(cli: Cli) -> None:
    """`--all --resign` once signed an old delete again, and the object was gone."""
    planted = (requests.delete("acme", "k"), requests.sweep("*", encrypt_plaintext=True))
    dead = (_DEAD, "keyturn.control.dead", "keyturn.unsigned.dead")
    async with _broker(cli) as channel:
        for queue in dead:
            for made in planted:
                body = requests.encode(made | {"requested_at": _LONG_AGO})
                signed = requests.headers(body, cli.deployment.publisher_key)
                headers = signed | {"keyturn-code": "request_expired"}
                await _bury(channel, body, headers, message_id=requests.new_id(), queue=queue)
        lost = await _bury_upload(cli, channel, requested_at=_LONG_AGO)
        result = await cli.arun("dead", "replay", "--all", "--resign", "--json")
        assert result.exit_code == 1
        kept = [row["code"] for row in document(result) if row["status"] == "kept"]
        assert kept == ["not_permitted"] * len(dead) * len(planted)
        assert "its publisher must publish it again" in result.stderr
        assert [await _depth(channel, queue) for queue in dead] == [len(planted)] * len(dead)
        assert await _depth(channel, "keyturn.control") == 0
        assert await _ids(channel, _WORK) == [lost.upload_id]


async def test_resign_as_another_publisher_moves_the_staged_body(cli: Cli) -> None:
    async with _broker(cli) as channel:
        made = await _bury_upload(
            cli,
            channel,
            key=cli.deployment.narrow_key,
            publisher="narrow",
            project="other",
            staged=True,
            requested_at=_LONG_AGO,
        )
        arguments = ("dead", "replay", made.upload_id, "--resign", "--json")
        gone = await cli.arun(*arguments)
        assert (gone.exit_code, document(gone)[0]["code"]) == (1, "staged_body_missing")
        assert await _depth(channel, _DEAD) == 1
        client = sync_client(cli.deployment.s3)
        bucket, source = cli.deployment.bucket, f".keyturn/staging/narrow/{made.upload_id}"
        client.put_object(Bucket=bucket, Key=source, Body=made.sealed_body)
        moved = await cli.arun(*arguments)
        assert moved.exit_code == 0, moved.stderr
        copy = client.get_object(Bucket=bucket, Key=f".keyturn/staging/api/{made.upload_id}")
        assert copy["Body"].read() == made.sealed_body
        client.close()
        assert await _ids(channel, _WORK) == [made.upload_id]


async def test_discard_removes_only_the_named_letters(cli: Cli) -> None:
    async with _broker(cli) as channel:
        made = [(await _bury_upload(cli, channel)).upload_id for _ in range(3)]
        unconfirmed = await cli.arun("dead", "discard", made[1])
        assert unconfirmed.exit_code == 2
        assert await _depth(channel, _DEAD) == 3
        result = await cli.arun("dead", "discard", made[1], "--yes")
        assert result.exit_code == 0, result.stderr
        assert await _ids(channel, _DEAD) == [made[0], made[2]]


async def test_a_missing_letter_or_queue_is_one_line(cli: Cli) -> None:
    nothing = await cli.arun("dead", "list")
    assert nothing.exit_code == 1
    assert "does not exist on the broker" in nothing.stderr
    async with _broker(cli) as channel:
        await _bury_upload(cli, channel)
        missing = await cli.arun("dead", "replay", "no-such-id")
        assert missing.exit_code == 1
        assert missing.stderr == "keyturn: no dead letter has the id no-such-id\n"
        other = await cli.arun("dead", "list", "foreign.queue")
        assert other.exit_code == 1
        away = await cli.arun("dead", "list", AMQP_URL="amqp://u:secret@127.0.0.1:1/")
        assert away.exit_code == 1
        assert away.stderr.startswith("keyturn: the broker cannot be reached")
        assert "secret" not in away.output


async def test_a_letter_without_its_body_is_shown_but_cannot_be_replayed(cli: Cli) -> None:
    """SPEC 6.9: of these refusals headers and identity alone are kept."""
    async with _broker(cli) as channel:
        made = requests.upload(cli.deployment, "acme", "k", b"hello")
        body = requests.encode(made.document)
        kept = identity_body(body)
        assert kept is not None
        headers = requests.headers(body, cli.deployment.publisher_key)
        more = {"keyturn-code": "already_exists", "keyturn-body-dropped": "0" * 64}
        await _bury(channel, kept, {**headers, **more}, message_id=made.upload_id)
        (row,) = document(await cli.arun("dead", "list", "--json"))
        assert (row["id"], row["project"]) == (made.upload_id, "acme")
        shown = document(await cli.arun("dead", "show", made.upload_id))
        assert shown["body"]["body"]["bytes"] == len(body)
        for options in ((), ("--resign",)):
            result = await cli.arun("dead", "replay", made.upload_id, *options)
            assert result.exit_code == 1
            assert "cannot be replayed: with already_exists the body is not kept" in result.stderr
        assert await _depth(channel, _DEAD) == 1
        discarded = await cli.arun("dead", "discard", made.upload_id, "--yes")
        assert discarded.exit_code == 0


async def test_an_unsigned_letter_is_listed_and_replayed_by_its_type(cli: Cli) -> None:
    """Once its publisher is known, a message may be worth a second try."""
    async with _broker(cli) as channel:
        dead = "keyturn.unsigned.dead"
        made = requests.upload(cli.deployment, "acme", "k", b"hello")
        body = requests.encode(made.document)
        await _bury(channel, body, {}, message_id=made.upload_id, queue=dead)
        await _bury(channel, b"{}", {}, message_id="odd", queue=dead)
        rows = document(await cli.arun("dead", "list", dead, "--json"))
        assert [row["id"] for row in rows] == [made.upload_id, "odd"]
        assert (await cli.arun("dead", "replay", made.upload_id)).exit_code == 0
        assert await _ids(channel, _WORK) == [made.upload_id]
        odd = await cli.arun("dead", "replay", "odd")
        assert odd.exit_code == 1
        assert "no queue to replay it to" in odd.stderr
        assert await _depth(channel, dead) == 1


async def test_many_letters_are_discarded_permanently(cli: Cli) -> None:
    """Closed at once, a channel keeps acknowledgments for itself: the letters were there again."""
    async with _broker(cli) as channel:
        ids = [f"letter-{number}" for number in range(80)]
        for name in ids:
            await _bury(channel, b"{}", {}, message_id=name)
        assert (await cli.arun("dead", "discard", *ids, "--yes")).exit_code == 0
        assert await _ids(channel, _DEAD) == []
