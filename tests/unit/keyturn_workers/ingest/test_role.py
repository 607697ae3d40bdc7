"""Notifications are hints: what is not there, not ours or not new leads to no request."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote_plus

import pytest

from keyturn.crypto import to_base64
from keyturn.errors import SettingsError
from keyturn_workers.amqp.consumer import Settlement
from keyturn_workers.ingest import intake, role
from keyturn_workers.ingest.record import SourceRecords
from keyturn_workers.ingest.role import Ingest
from keyturn_workers.settings import WorkerSettings
from keyturn_workers.sources.bucket import SourceBucket
from keyturn_workers.storage import Headers
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.unit.keyturn_workers.ingest.scene import MASTER_KEYS, Outcomes
from tests.unit.keyturn_workers.ingest.test_notifications import record
from tools.harness.deployment import Deployment
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage
from tools.servers import S3Server

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

    from keyturn.publisher import Publisher

_S3 = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
_DEPLOYMENT = Deployment("amqp://127.0.0.1:1/", _S3, "bucket")
_SOURCES = {
    "drop": {"bucket": "acme-drop", "prefix": "in/", "project": "acme", "key": "{name}"},
    "folders": {"bucket": "folders", "project": "{first}", "key": "{rest}", "delete": True},
    "archive": {"bucket": "archive", "project": "acme", "key": "{name}", "watch": False},
}


class World:
    """A process in the role `ingest`, with sources in memory."""

    def __init__(self) -> None:
        settings = WorkerSettings.read()
        self.outcomes = Outcomes()
        self.buckets = {name: MemoryStorage() for name in _SOURCES}
        self.metrics = WorkerMetrics()
        publisher = cast("Publisher", self.outcomes)
        own = MemoryStorage()
        watched = [
            SourceBucket(name, source, self.buckets[name], own)
            for name, source in settings.sources.items()
            if source.watch
        ]
        records = SourceRecords(own, operator_keys(MASTER_KEYS), "main")
        self.ingest = Ingest(settings, watched, records, publisher, self.metrics)

    def put(self, source: str, key: str, body: bytes = b"x") -> None:
        self.buckets[source].plant(key, body, Headers(metadata={}))

    async def notify(self, *records: Any, body: bytes = b"") -> None:
        body = body or json.dumps({"Records": records}).encode()
        message = cast("AbstractIncomingMessage", SimpleNamespace(body=body))
        assert await self.ingest.handle(message) is Settlement.DONE

    async def settle(self) -> list[str]:
        """Wait for everything under way; the keys that were requested."""
        for each in self.ingest._intakes:
            while each._tasks:
                await asyncio.gather(*each._tasks, return_exceptions=True)
        return sorted(self.outcomes.keys)

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    more = {
        "SOURCES": json.dumps(_SOURCES),
        "PUBLISHER_NAME": "api",
        "PUBLISHER_KEY": to_base64(_DEPLOYMENT.publisher_seed),
    }
    for name, value in _DEPLOYMENT.worker_env(**more).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(intake, "_VAIN_HINT_S", 0)
    monkeypatch.setattr(role, "_GARBAGE_PAUSE_S", 0)
    return monkeypatch


@pytest.fixture
def world(environment: pytest.MonkeyPatch) -> World:
    del environment
    return World()


async def test_only_what_is_there_in_a_watched_source_is_requested(world: World) -> None:
    keys = ["in/a", "in/b c+d%", "in/ü"]
    for key in keys:
        world.put("drop", key)
    world.put("archive", "in/a")
    world.put("drop", "out/x")
    world.put("drop", "in/../x")
    for key in keys:
        await world.notify(record("acme-drop", key))
        await world.notify(record("acme-drop", quote_plus(key)))
    await world.notify(
        record("acme-drop", "in/nothing"),
        record("acme-drop", "out/x"),
        record("acme-drop", "in/../x"),
        record("archive", "in/a"),
        record("bucket", ".keyturn/keyrings/acme.json"),
        record("other", "in/a"),
    )
    assert await world.settle() == keys
    (drop, _) = world.ingest._intakes
    assert not drop.refused  # of names only a listing proves that they exist


async def test_forged_notifications_find_no_project_by_themselves(world: World) -> None:
    for key in (".keyturn/x", "../acme/x", "Acme/x", "acme", "acme/", "acme/x"):
        world.put("folders", key)
        await world.notify(record("folders", key))
    assert await world.settle() == ["acme/x"]


async def test_one_object_is_requested_once_however_often_it_is_named(world: World) -> None:
    world.put("drop", "in/a")
    world.outcomes.hold.clear()
    await world.notify(*(record("acme-drop", f"in/{key}") for key in "aaa"))
    await world.notify(record("acme-drop", "in/a"))
    await world.outcomes.reached(1)
    world.outcomes.hold.set()
    assert await world.settle() == ["in/a"]
    await world.notify(record("acme-drop", "in/a"))
    assert await world.settle() == ["in/a"]
    world.put("drop", "in/a", b"other")
    await world.notify(record("acme-drop", "in/a"))
    assert await world.settle() == ["in/a", "in/a"]
    assert world.sample("keyturn_source_objects_total", source="drop", outcome="stored") == 2


async def test_refused_objects_are_not_requested_again(world: World) -> None:
    world.put("drop", "in/bad")
    world.outcomes.codes["bad"] = "body_too_large"
    for _ in range(3):
        await world.notify(record("acme-drop", "in/bad"))
        assert await world.settle() == ["in/bad"]
    assert world.sample("keyturn_source_objects_total", source="drop", outcome="refused") == 1


async def test_garbage_is_counted_and_settled(world: World) -> None:
    for body in (b"garbage", b"{}", b"[" * 10_000):
        await world.notify(body=body)
    await world.notify(record("other", "a"))
    await world.notify(record("acme-drop", "in/nothing"))
    for outcome, count in {"malformed": 3, "foreign": 1, "followed": 1}.items():
        assert world.sample("keyturn_notifications_total", outcome=outcome) == count
    assert await world.settle() == []


async def test_a_flood_waits_for_slots(world: World) -> None:
    """And so the broker keeps it, within the bounds of its queue."""
    world.outcomes.hold.clear()
    keys = [f"in/{n}" for n in range(intake.HINT_SLOTS + 1)]
    for key in keys:
        world.put("drop", key)
    flood = asyncio.create_task(world.notify(*(record("acme-drop", key) for key in keys)))
    await world.outcomes.reached(intake.HINT_SLOTS)
    assert not flood.done()
    (drop, _) = world.ingest._intakes
    listed = await drop.begin(keys[-1], is_hint=False)  # a listing has slots of its own
    await world.outcomes.reached(intake.HINT_SLOTS + 1)
    world.outcomes.hold.set()
    await asyncio.gather(flood, listed)
    assert await world.settle() == sorted(keys)


def test_the_publisher_is_one_that_the_workers_know(environment: pytest.MonkeyPatch) -> None:
    publisher = WorkerSettings.read().ingest_publisher()
    assert publisher.publisher_name == "api"
    assert publisher.event_public_key == (_DEPLOYMENT.event_key.verify_key(),)
    for missing in ("KEYTURN_PUBLISHER_KEY", "KEYTURN_PUBLISHER_NAME"):
        environment.delenv(missing)
        with pytest.raises(SettingsError, match=missing):
            WorkerSettings.read().ingest_publisher()
    environment.setenv("KEYTURN_PUBLISHER_NAME", "a b")
    with pytest.raises(SettingsError, match="PUBLISHER_NAME is malformed"):
        WorkerSettings.read()
