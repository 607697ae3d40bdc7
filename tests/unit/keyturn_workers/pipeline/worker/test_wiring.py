"""Each role has its queues and its background work; all share what a process has once."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from faststream.rabbit import RabbitBroker

from keyturn.errors import StorageUnavailableError
from keyturn.topology import (
    CONTROL_QUEUE,
    NOTIFICATIONS,
    PLAN_QUEUE,
    SWEEP_QUEUE,
    UPLOAD_QUEUE,
)
from keyturn_workers.pipeline.ingest.record import SourceRecords
from keyturn_workers.pipeline.ingest.role import Ingest
from keyturn_workers.pipeline.sweep.handler import HintCodec
from keyturn_workers.pipeline.worker import wiring as wiring_module
from keyturn_workers.pipeline.worker.wiring import ALL_ROLES, CONTROL, INGEST, SWEEP, UPLOAD, Wiring
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.settings import WorkerSettings
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.deployment import Deployment
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage
from tools.servers import S3Server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from keyturn.publisher import Publisher

    _Wired = Callable[..., Wiring]

_S3: Final = S3Server("http://127.0.0.1:1", "access", "secret", "us-east-1", "given")
_DEPLOYMENT: Final = Deployment("amqp://127.0.0.1:1/", _S3, "bucket")


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> _Wired:
    """Make the wiring of a process with these settings."""

    def make(storage: MemoryStorage | None = None, **more: str) -> Wiring:
        for name, value in _DEPLOYMENT.worker_env(**more).items():
            monkeypatch.setenv(name, value)
        broker = RabbitBroker("amqp://127.0.0.1:1/")  # never connected
        settings = WorkerSettings.read()
        keys = operator_keys(settings.master_keys)
        customer_keys = HeldCustomerKeys()
        return Wiring(
            settings, storage or MemoryStorage(), broker, keys, customer_keys, WorkerMetrics()
        )

    return make


def _name(work: Coroutine[Any, Any, None]) -> str:
    name: str = work.cr_code.co_name  # type: ignore[attr-defined]  # of every `async def`
    return name


def _background(wiring: Wiring, *roles: str) -> list[str]:
    names = []
    for work in wiring.background(frozenset(roles)):
        names.append(_name(work))
        work.close()
    return names


@pytest.mark.parametrize(
    ("roles", "queues"),
    [
        ({UPLOAD}, {UPLOAD_QUEUE: 5}),
        ({CONTROL}, {CONTROL_QUEUE: 7}),
        ({SWEEP}, {PLAN_QUEUE: 16, SWEEP_QUEUE: 4}),
        (ALL_ROLES, {UPLOAD_QUEUE: 5, CONTROL_QUEUE: 7, PLAN_QUEUE: 16, SWEEP_QUEUE: 4}),
    ],
    ids=["upload", "control", "sweep", "all"],
)
def test_each_role_consumes_its_queues_with_its_prefetch(
    wired: _Wired, roles: set[str], queues: dict[str, int]
) -> None:
    wiring = wired(UPLOAD_CONCURRENCY="5", CONTROL_CONCURRENCY="7")
    routes = wiring.routes(frozenset(roles))
    assert {route.queue: route.prefetch for route in routes} == queues


def test_without_a_watched_source_the_role_ingest_does_nothing(wired: _Wired) -> None:
    wiring = wired()
    assert not list(wiring.routes(frozenset({INGEST})))
    assert _background(wiring, INGEST) == ["keep_clock_known", "purge_periodically"]


def test_with_a_watched_source_it_consumes_notifications_and_lists(wired: _Wired) -> None:
    wiring = wired()
    settings = WorkerSettings.read()
    records = SourceRecords(MemoryStorage(), operator_keys(settings.master_keys))
    publisher = cast("Publisher", None)  # nothing is requested
    ingest = Ingest(settings, [], records, publisher, WorkerMetrics())
    wiring._ingest = ingest
    (route,) = wiring.routes(frozenset({INGEST}))
    assert (route.queue, route.prefetch, route.serve) == (NOTIFICATIONS, 8, ingest.handle)
    assert _background(wiring, INGEST)[-1] == "run"
    assert not list(wiring.routes(frozenset({"other"})))


def test_steps_and_pages_share_one_handler(wired: _Wired) -> None:
    """So the pages of a process share its `SWEEP_CONCURRENCY`."""
    steps, pages = (route.codec for route in wired().routes(frozenset({SWEEP})))
    assert isinstance(steps, HintCodec)
    assert isinstance(pages, HintCodec)
    assert steps._queue.handler is pages._queue.handler


def test_every_role_learns_the_time(wired: _Wired) -> None:
    always = ["keep_clock_known", "purge_periodically"]
    wiring = wired()
    assert _background(wiring, CONTROL) == always
    assert _background(wiring, UPLOAD) == [*always, "_clean_up_staging"]
    assert _background(wiring, SWEEP) == [*always, "_look_at_sweeps"]
    assert _background(wiring, *ALL_ROLES) == [*always, "_clean_up_staging", "_look_at_sweeps"]


async def test_the_time_is_the_storages(wired: _Wired) -> None:
    storage = MemoryStorage()
    storage.advance(3600)
    wiring = wired(storage)
    await wiring.learn_time()
    assert abs(wiring._now() - storage.now) < timedelta(seconds=5)
    storage.fail_next("list_page", StorageUnavailableError("down"))
    with pytest.raises(StorageUnavailableError):
        await wiring.learn_time()


async def _run(wiring: Wiring, name: str) -> None:
    for work in wiring.background(ALL_ROLES):
        if _name(work) == name:
            await work
        else:
            work.close()


async def test_no_request_may_name_what_is_removed_from_staging(
    wired: _Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    async def clean(storage: object, **more: Any) -> None:
        seen.update(more, storage=storage)

    monkeypatch.setattr(wiring_module, "clean_staging_periodically", clean)
    storage = MemoryStorage()
    more = {"REQUEST_MAX_AGE_S": "1000", "STAGING_GRACE_S": "60", "STAGING_SWEEP_INTERVAL_S": "9"}
    await _run(wired(storage, **more), "_clean_up_staging")
    assert seen == {
        "storage": storage,
        "older_than": timedelta(seconds=1060),
        "interval_s": 9,
    }


async def test_records_are_kept_as_long_as_a_request_may_be_repeated(
    wired: _Wired, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    async def look(periodic: Any, **more: Any) -> None:
        seen.update(more, keep_for=periodic._keep_for)

    monkeypatch.setattr(wiring_module, "scan_periodically", look)
    more = {"REQUEST_MAX_AGE_S": "1000", "STAGING_GRACE_S": "60", "SWEEP_RESCUE_INTERVAL_S": "9"}
    await _run(wired(**more), "_look_at_sweeps")
    assert seen == {"keep_for": timedelta(seconds=1060), "interval_s": 9}
