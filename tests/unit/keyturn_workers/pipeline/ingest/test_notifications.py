"""Notifications are hints from anyone: what is not there, ours and new leads to no request."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import to_base64
from keyturn.errors import MalformedRequestError, SettingsError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.pipeline.ingest import role, source_ingest
from keyturn_workers.pipeline.ingest.notifications import (
    MAX_RECORDS,
    NOTIFICATION_MAX_BYTES,
    Hint,
    parse_notification,
)
from keyturn_workers.pipeline.ingest.record import SourceRecords
from keyturn_workers.pipeline.ingest.role import Ingest
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.settings import WorkerSettings
from tests.support.routes import deliver
from tests.unit.keyturn_workers.pipeline.ingest.scene import MASTER_KEYS, Outcomes
from tools.harness.deployment import Deployment
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage
from tools.servers import S3Server

if TYPE_CHECKING:
    from keyturn.publisher import Publisher

# As Ceph's gateway 18 sends it, shortened by what nothing reads.
CEPH = {
    "Records": [
        {
            "eventVersion": "2.2",
            "eventSource": "ceph:s3",
            "awsRegion": "default",
            "eventTime": "2026-11-30T02:10:08.123456Z",
            "eventName": "ObjectCreated:Put",
            "userIdentity": {"principalId": "writer"},
            "s3": {
                "s3SchemaVersion": "1.0",
                "configurationId": "keyturn",
                "bucket": {"name": "acme-drop", "arn": "arn:aws:s3:default::acme-drop", "id": "x"},
                "object": {"key": "in/a b+c%.txt", "size": 5, "eTag": "5d41", "versionId": ""},
            },
            "eventId": "1",
            "opaqueData": "",
        }
    ]
}
_S3 = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
_DEPLOYMENT = Deployment("amqp://127.0.0.1:1/", _S3, "bucket")
_SOURCES = {
    "drop": {"bucket": "acme-drop", "prefix": "in/", "project": "acme", "key": "{name}"},
    "folders": {"bucket": "folders", "project": "{first}", "key": "{rest}", "delete": True},
    "archive": {"bucket": "archive", "project": "acme", "key": "{name}", "watch": False},
}


def record(bucket: Any = "acme-drop", key: Any = "a", event: Any = "ObjectCreated:Put") -> Any:
    return {"eventName": event, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}


def parse(*records: Any) -> tuple[Hint, ...]:
    return parse_notification(json.dumps({"Records": records}).encode())


def test_cephs_records_name_the_key_as_it_is() -> None:
    (hint,) = parse_notification(json.dumps(CEPH).encode())
    assert hint == Hint("acme-drop", "in/a b+c%.txt")
    assert hint.s3_keys() == ("in/a b+c%.txt", "in/a b c%.txt")


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200))
def test_a_key_is_found_however_a_server_writes_it(key: str) -> None:
    for sent in (key, quote_plus(key), quote_plus(key, safe="/")):
        (hint,) = parse(record(key=sent))
        assert key in hint.s3_keys()
        assert len(hint.s3_keys()) <= 2


def test_only_new_objects_matter() -> None:
    events = ["ObjectCreated:CompleteMultipartUpload", "s3:ObjectCreated:Copy"]
    others = ["ObjectRemoved:Delete", "s3:TestEvent", "", None, 7]
    hints = parse(*(record(key=str(event), event=event) for event in (*events, *others)))
    assert [hint.key for hint in hints] == events


def test_malformed_records_are_left_out() -> None:
    hints = parse(
        *(None, 1, "x", [], {}, {"eventName": "ObjectCreated:Put", "s3": []}),
        *(record(bucket=None), record(bucket=""), record(key=["a"]), record(key="")),
        record(key="\x00" * 4000),
        *(record(key="good"), record(key="good")),
    )
    assert hints == (Hint("acme-drop", "good"),)


def test_a_message_costs_a_bounded_number_of_looks() -> None:
    assert len(parse(*(record(key=str(n)) for n in range(10 * MAX_RECORDS)))) == MAX_RECORDS


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"Records": {}}',
        b'{"Records": [], "Records": []}',
        b'{"Records": ["\\ud800"]}',
        b'{"Event": "s3:TestEvent", "Service": "Amazon S3"}',
        b"[" * 100_000,
        b'{"Records": [], "a": "' + b"x" * NOTIFICATION_MAX_BYTES + b'"}',
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse_notification(body)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["Records", "s3", "bucket", "object", "name", "key", "eventName"]),
            inner,
            max_size=4,
        )
    ),
)


@given(_JSON | st.fixed_dictionaries({"Records": st.lists(_JSON, max_size=3)}) | st.binary())
def test_nothing_that_is_sent_raises_anything_else(document: Any) -> None:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    try:
        hints = parse_notification(body)
    except MalformedRequestError:
        return
    for hint in hints:
        assert hint.bucket
        assert hint.key
        hint.s3_keys()


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
        assert await deliver(self.ingest.route(), SimpleNamespace(body=body))

    async def settle(self) -> list[str]:
        """Wait for everything under way; the keys that were requested."""
        for each in self.ingest._ingests:
            while each._tasks:
                await asyncio.wait(each._tasks)
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
    monkeypatch.setattr(source_ingest, "_VAIN_HINT_S", 0)
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
    (drop, _) = world.ingest._ingests
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
    keys = [f"in/{n}" for n in range(source_ingest.HINT_SLOTS + 1)]
    for key in keys:
        world.put("drop", key)
    flood = asyncio.create_task(world.notify(*(record("acme-drop", key) for key in keys)))
    await world.outcomes.reached(source_ingest.HINT_SLOTS)
    assert not flood.done()
    (drop, _) = world.ingest._ingests
    listed = await drop.begin(keys[-1], is_hint=False)  # a listing has slots of its own
    await world.outcomes.reached(source_ingest.HINT_SLOTS + 1)
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
