"""Reports go out every interval and at the end, and a lost one disturbs nothing (SPEC 16.2)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from keyturn.crypto import SigningKey
from keyturn_workers.amqp.event_batches import NotConfirmedError
from keyturn_workers.audit import AuditProcess
from keyturn_workers.worker import reporter as reporter_module
from keyturn_workers.worker.metrics import WorkerMetrics
from keyturn_workers.worker.reporter import WorkerFacts, WorkerReporter

if TYPE_CHECKING:
    import pytest

    from keyturn.messages import WorkerReported

_EVENT_KEY = SigningKey.from_seed(bytes(range(32)))


def _facts(interval_s: float = 0.01) -> WorkerFacts:
    settings = SimpleNamespace(
        worker_report_interval_s=interval_s,
        lease_s=15,
        active_master_key="m1",
        master_keys={"m1": b"the secret key of m1", "m2": b"of m2"},
        event_key=[_EVENT_KEY],
        intake_keys={"main": b"a secret seed"},
    )
    return WorkerFacts(
        AuditProcess.start("worker control"),
        frozenset({"upload", "control"}),
        cast("Any", settings),
        WorkerMetrics(),
        lambda: True,
        datetime(2026, 11, 24, 10, tzinfo=UTC),
    )


class _Broker:
    def __init__(self) -> None:
        self.published: list[WorkerReported] = []
        self.is_away = False
        self.never_confirms = False
        self.changed = asyncio.Event()

    async def publish(self, report: WorkerReported) -> None:
        self.published.append(report)
        self.changed.set()
        if self.never_confirms:
            await asyncio.Event().wait()
        if self.is_away:
            raise NotConfirmedError("ChannelInvalidStateError")

    async def published_at_least(self, count: int) -> None:
        while len(self.published) < count:
            self.changed.clear()
            await self.changed.wait()


async def test_a_report_names_the_process_and_its_keys_by_their_ids() -> None:
    report = _facts().report(is_stopping=False)
    assert (report.roles, report.lease_s) == (("control", "upload"), 15)
    assert (report.active_master_key, report.master_keys) == ("m1", ("m1", "m2"))
    assert (report.event_keys, report.intake_keys) == ((_EVENT_KEY.id,), ("main",))
    assert report.started_at == "2026-11-24T10:00:00.000000Z"
    assert "secret" not in report.model_dump_json()


async def test_reports_begin_with_the_consumers_and_end_with_the_process() -> None:
    broker = _Broker()
    reporter = WorkerReporter(_facts(), broker.publish)
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0)
    await reporter.stop()
    assert broker.published == []
    reporter.begin()
    await broker.published_at_least(2)
    await reporter.stop()
    async with asyncio.timeout(1):
        await running  # it ends by itself, without one more report
    assert [report.is_stopping for report in broker.published[:2]] == [False, False]
    assert broker.published[-1].is_stopping
    assert len({report.worker_id for report in broker.published}) == 1


async def test_a_broker_that_is_away_is_logged_once_and_reports_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    broker = _Broker()
    broker.is_away = True
    reporter = WorkerReporter(_facts(), broker.publish)
    running = asyncio.create_task(reporter.run())
    reporter.begin()
    await broker.published_at_least(4)
    assert capsys.readouterr().out.count("worker report not published") == 1
    broker.is_away = False
    await broker.published_at_least(6)
    broker.is_away = True
    await broker.published_at_least(8)
    running.cancel()
    assert capsys.readouterr().out.count("worker report not published") == 1


async def test_the_end_waits_only_briefly_for_the_last_report(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reporter_module, "STOP_TIMEOUT_S", 0.01)
    broker = _Broker()
    broker.never_confirms = True
    reporter = WorkerReporter(_facts(), broker.publish)
    reporter.begin()
    async with asyncio.timeout(1):
        await reporter.stop()
    assert "last worker report not published" in capsys.readouterr().out
