"""Dead letters are moved by a worker for a person, and its death loses none (SPEC 16.1)."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from keyturn import topology
from keyturn.identifiers import format_time
from keyturn.messages import DeadLettersMoved, StatusReported
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.pipeline.amqp.declarations import declare
from keyturn_workers.reports.dead_letters.letters import describe
from keyturn_workers.reports.dead_letters.queue import open_letters, read_letters
from tools.harness.console import ConsoleDeployment
from tools.harness.process import worker
from tools.harness.wire import consume_stream
from tools.servers import new_bucket

if TYPE_CHECKING:
    from pathlib import Path

    from aio_pika.abc import AbstractIncomingMessage

    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_COUNT = 2500
_DEAD, _WORK = "keyturn.upload.dead", "keyturn.upload"
_NAMES = [str(number) for number in range(_COUNT)]
_SELECTED = [name for name in _NAMES if int(name) % 2]


async def _bury(url: str) -> None:
    """Letters of two codes, in turn."""
    at = format_time(datetime.now(UTC) - timedelta(hours=1))
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for name in _NAMES:
            code = "storage_unavailable" if name in _SELECTED else "bad_seal"
            headers: dict[str, Any] = {"keyturn-code": code, "keyturn-dead-at": at, "own": name}
            message = aio_pika.Message(
                b'{"body": "%s"}' % name.encode(),
                headers=headers,
                message_id=name,
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            await channel.default_exchange.publish(message, _DEAD)


async def _depth(url: str, queue: str) -> int:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def _letters(url: str, queue: str) -> list[str | None]:
    async with open_letters(url) as channel:
        letters, _ = await read_letters(channel, queue, describe)
        return [letter.message_id for letter in letters]


async def _audited(url: str) -> dict[str, dict[str, Any]]:
    """The records of all selected letters, by id: one that was written twice has the same."""
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    records: dict[str, dict[str, Any]] = {}
    async with await aio_pika.connect(url) as connection:
        await consume_stream(connection, topology.AUDIT_STREAM, arrived.put)
        async with asyncio.timeout(30):
            while len(records) < len(_SELECTED):
                message = await arrived.get()
                await message.ack()
                record = json.loads(message.body)
                if record["action"] == "dead_letter.replayed":
                    records[record["audit_id"]] = record
    return records


async def _shown(console: Publisher) -> StatusReported:
    """The view of dead letters, once a worker has read them."""
    async with asyncio.timeout(60):
        while True:
            asked = await console.status("dead_letters", page=1, limit=3)
            report = await console.wait(asked, timeout_s=60)
            assert isinstance(report, StatusReported)
            if report.dead_letters:
                return report


async def test_a_replay_of_one_code_survives_the_death_of_its_worker(
    vhost_url: str, moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment = ConsoleDeployment(vhost_url, moto, new_bucket(moto))
    for name, value in deployment.console_env(tmp_path / "passwords").items():
        monkeypatch.setenv(name, value)
    await declare(vhost_url, ["console"])
    await _bury(vhost_url)
    env = deployment.worker_env()
    async with Publisher.open(PublisherSettings.read()) as console:
        # Nothing consumes uploads: what is replayed stays in its work queue.
        async with worker(env, "control") as first:
            shown = await _shown(console)
            # Of the oldest thousand, the newest first.
            assert [row.message_id for row in shown.dead_letters or ()] == _NAMES[999:996:-1]
            assert {code.code: code.count for code in shown.codes or ()} == {
                "bad_seal": 500,
                "storage_unavailable": 500,
            }
            assert (shown.of_all, shown.is_complete) == (1000, False)
            moving = await console.move_dead_letters(
                "replay", _DEAD, code="storage_unavailable", actor="Kim Doe", reason="it is back"
            )
            async with asyncio.timeout(60):
                while await _depth(vhost_url, _WORK) < 300:  # noqa: ASYNC110  # no event says so
                    await asyncio.sleep(0.01)
            await first.kill()
        assert await _depth(vhost_url, _WORK) < len(_SELECTED)
        async with worker(env, "control") as second:
            moved = await console.wait(moving, timeout_s=120)
            assert await second.terminate() == 0
    assert isinstance(moved, DeadLettersMoved)
    assert (moved.action, moved.queue, moved.left) == ("replay", _DEAD, 0)
    assert 0 < moved.moved < len(_SELECTED)
    assert await _letters(vhost_url, _DEAD) == [name for name in _NAMES if name not in _SELECTED]
    replayed = await _letters(vhost_url, _WORK)
    assert {*replayed} == {*_SELECTED}
    assert len(replayed) - len(_SELECTED) <= 256  # what was under way, at most
    records = await _audited(vhost_url)
    assert {(r["actor"], r["publisher"], r["reason"]) for r in records.values()} == {
        ("Kim Doe", "console", "it is back")
    }
