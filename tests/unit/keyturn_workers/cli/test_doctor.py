"""`keyturn doctor`: a row for each check, and exit 1 if a requirement is not met (SPEC 10)."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

import pytest
from aiormq.exceptions import ChannelNotFoundEntity
from typer.testing import CliRunner

from keyturn.errors import StorageUnavailableError
from keyturn.topology import EXCHANGE, UPLOAD_QUEUE, queues
from keyturn_workers.cli import doctor
from keyturn_workers.cli.app import app
from keyturn_workers.core.errors import MissingError
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.storage.probe.runner import ProbeReport, Row
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tests.unit.keyturn_workers.storage.probe.broken_storages import DeletesAnyway, IgnoresIfAbsent
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from typer.testing import Result

    from keyturn.publisher.connection import BrokerAddress
    from keyturn_workers.core.source_mapping import Source
    from keyturn_workers.storage.probe.checks import Needed

_URL = "amqp://kim:sesame@127.0.0.1:5672/"


class FakeBroker:
    """A connection that knows some of the topology; each failure closes its channel."""

    def __init__(self, missing: set[str]) -> None:
        self.missing = missing
        self.asked: list[str] = []

    async def channel(self) -> FakeBroker:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def close(self) -> None: ...

    async def get_exchange(self, name: str, *, ensure: bool) -> None:
        assert ensure
        self._ask(name)

    async def declare_queue(self, name: str, *, passive: bool) -> None:
        assert passive
        self._ask(name)

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if name in self.missing:
            raise ChannelNotFoundEntity(name)


def _use(
    monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage, broker: FakeBroker | Exception
) -> None:
    async def connect(address: BrokerAddress) -> FakeBroker:
        assert address.url == _URL
        if isinstance(broker, Exception):
            raise broker
        return broker

    use_bucket(monkeypatch, "doctor", storage)
    monkeypatch.setattr(doctor, "connect_to_broker", connect)

    async def serves(address: BrokerAddress) -> bool:
        return address.url == _URL

    monkeypatch.setattr(doctor, "serves_amqp1", serves)


def _run(*arguments: str, amqp_url: str = _URL, **more: str) -> Result:
    environment = {"KEYTURN_S3_BUCKET": "memory", **more}
    if amqp_url:
        environment["KEYTURN_AMQP_URL"] = amqp_url
    return CliRunner().invoke(app, ["doctor", *arguments], env=environment)


def _rows(result: Result) -> dict[str, dict[str, Any]]:
    return {row["check"]: row for row in json.loads(result.stdout)}


def test_a_bucket_and_a_broker_that_have_everything_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = FakeBroker(set())
    _use(monkeypatch, MemoryStorage(), broker)
    result = _run("--json")
    assert result.exit_code == 0, result.stderr
    rows = _rows(result)
    assert all(row["ok"] for row in rows.values() if row["needed"] == "required")
    assert (rows["broker"]["result"], rows["queues declared"]["result"]) == (
        "connected",
        "all exist",
    )
    assert (rows["AMQP 0-9-1 only"]["ok"], rows["AMQP 0-9-1 only"]["needed"]) == (False, "info")
    assert "keep AMQP 1.0 off the port" in rows["AMQP 0-9-1 only"]["consequence"]
    assert broker.asked == [EXCHANGE, *(queue.name for queue in queues())]


def test_a_requirement_that_is_not_met_exits_1_and_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _use(monkeypatch, IgnoresIfAbsent(), FakeBroker(set()))
    result = _run()
    assert result.exit_code == 1
    assert result.stderr.startswith("keyturn: refused for: put If-None-Match: *")
    assert "two uploads to one object key could both be reported as stored" in result.stdout


@pytest.mark.parametrize(
    ("failing", "status", "last"),
    [
        ("", 0, "safe"),
        ("cd", 0, "safe, without: c; d"),
        ("abce", 1, "keyturn: refused for: a; b"),
        ("e", 0, "safe"),
    ],
)
def test_the_last_line_is_the_verdict(
    failing: str, status: int, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: list[tuple[str, Needed]] = [
        ("a", "required"),
        ("b", "required"),
        ("c", "wanted"),
        ("d", "wanted"),
        ("e", "info"),
    ]

    async def probed(_: object) -> ProbeReport:
        return ProbeReport(
            [Row(name, needed, name not in failing, "", "") for name, needed in needs]
        )

    _use(monkeypatch, MemoryStorage(), FakeBroker(set()))
    monkeypatch.setattr(doctor, "probe", probed)
    result = _run()
    assert result.exit_code == status
    assert (result.stderr or result.stdout).splitlines()[-1] == last


def test_a_row_that_passed_carries_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, MemoryStorage(), FakeBroker({EXCHANGE}))
    rows = _rows(_run("--json"))
    assert {row["consequence"] for row in rows.values() if row["ok"]} == {""}
    assert rows["queues declared"]["consequence"]


def test_queues_that_are_missing_are_counted_and_named_on_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They are only wanted: the first worker declares them."""
    _use(monkeypatch, MemoryStorage(), FakeBroker({EXCHANGE, UPLOAD_QUEUE}))
    result = _run("--json")
    assert result.exit_code == 0, result.stderr
    row = _rows(result)["queues declared"]
    count = len(queues()) + 1
    assert row["result"] == f"2 of {count} missing: {EXCHANGE}, {UPLOAD_QUEUE}"
    assert not row["ok"]
    assert f"2 of {count} missing: {EXCHANGE}" not in _run().stdout
    assert f"2 of {count} missing: {EXCHANGE}" in _run("--verbose").stdout


def test_a_broker_that_refuses_is_a_row_without_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _use(monkeypatch, MemoryStorage(), ConnectionRefusedError(f"cannot connect to {_URL}"))
    result = _run("--json")
    assert result.exit_code == 1
    assert _rows(result)["broker"]["result"].startswith("connection refused: check the host")
    assert "queues declared" not in _rows(result)
    assert "sesame" not in result.output


def test_without_its_setting_the_broker_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, MemoryStorage(), LookupError())
    result = _run("--json", amqp_url="")
    assert result.exit_code == 0, result.stderr
    assert "broker" not in _rows(result)


def test_what_the_probe_left_behind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = MemoryStorage()
    storage.fail_next("purge", MissingError("purge: NoSuchKey"))
    _use(monkeypatch, storage, FakeBroker(set()))
    assert "could not remove .keyturn/doctor/" in _run().stderr


def test_each_source_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    own = MemoryStorage()
    _use(monkeypatch, own, FakeBroker(set()))
    buckets = {
        "versioned": MemoryStorage(versioned=True),
        "away": MemoryStorage(),
        "own": own,
        "ignoring": DeletesAnyway(),
    }
    buckets["away"].fail_next("list_entries", StorageUnavailableError("list: SlowDown"))

    @asynccontextmanager
    async def opened(name: str, source: Source, *_: object) -> AsyncIterator[SourceBucket]:
        storage: Any = buckets[name]
        yield SourceBucket(name, source, storage, own)

    monkeypatch.setattr(doctor, "open_source", opened)
    fields = {"bucket": "the-drop", "project": "acme", "key": "{name}", "delete": True}
    result = _run("--json", KEYTURN_SOURCES=json.dumps(dict.fromkeys(buckets, fields)))
    assert result.exit_code == 1
    assert "refused for: source own" in result.stderr
    rows = {row["check"]: row for row in json.loads(result.stdout)}
    shown = {
        name: (row["needed"], row["ok"], row["result"], row["consequence"])
        for name, row in rows.items()
        if name.startswith("source ")
    }
    assert shown == {
        "source versioned": ("wanted", True, "readable; deleted: by version", ""),
        "source away": (
            "wanted",
            False,
            "source away: list: SlowDown",
            "its objects are not ingested",
        ),
        "source own": (
            "required",
            False,
            "KEYTURN_SOURCES: source own is the bucket of KEYTURN_S3_BUCKET by another name",
            "workers refuse to start",
        ),
        "source ignoring": (
            "wanted",
            False,
            "readable; cannot delete",
            "stored objects stay in the source; see the source's `delete` field",
        ),
    }
