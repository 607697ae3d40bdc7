"""What a worker shows: its health, its metrics, and reports of itself (SPEC 11, 16.2)."""

from __future__ import annotations

import asyncio
import re
import socket
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast, get_args

import aiohttp
import pytest

from keyturn.counts import Counts
from keyturn.crypto import SigningKey
from keyturn.errors import AlreadyExistsError, CodedError, all_errors
from keyturn.identifiers import format_time
from keyturn.topology import CONTROL_QUEUE, PLAN_QUEUE, PUBLISHER_EVENTS, SWEEP_QUEUE, UPLOAD_QUEUE
from keyturn_workers.core.errors import AddressError, ClockSkewError
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.keys.audit.trail import AuditProcess
from keyturn_workers.keys.customer_keys.providers import CustomerKeyMetrics
from keyturn_workers.keys.master_keys.providers import KmsMetrics
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.ingest.metrics import IngestMetrics
from keyturn_workers.pipeline.worker import reporter as reporter_module
from keyturn_workers.pipeline.worker.reporter import WorkerFacts, WorkerReporter
from keyturn_workers.process import health
from keyturn_workers.process.health import health_server, run_checks
from keyturn_workers.process.metrics import OUTCOMES, Stage, WorkerMetrics
from tests.support.scrape import risen, shown
from tools.servers.process import free_port

if TYPE_CHECKING:
    from keyturn.messages import WorkerReported
    from keyturn_workers.process.health import Check

_DOCS = Path(__file__).parents[5] / "docs"
METRICS = _DOCS / "reference" / "metrics.md"
OLDEST = f'keyturn_oldest_message_age_seconds{{queue="{UPLOAD_QUEUE}"}}'
IN_FLIGHT = f'keyturn_messages_in_flight{{queue="{UPLOAD_QUEUE}"}}'
_EVENT_KEY = SigningKey.from_seed(bytes(range(32)))


async def _holds() -> bool:
    return True


async def _fails() -> bool:
    return False


async def _raises() -> bool:
    raise ConnectionError("a secret address")


async def _hangs() -> bool:
    return await asyncio.Event().wait()


async def _get(checks: dict[str, Check], path: str) -> tuple[int, Any]:
    port = free_port()
    async with (
        health_server("127.0.0.1", port, checks, WorkerMetrics().registry),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}{path}") as response,
    ):
        return response.status, await response.json()


async def test_a_process_that_responds_is_alive_whatever_its_checks_say() -> None:
    assert await _get({"broker": _raises}, "/healthz") == (200, {"status": "alive"})


async def test_a_worker_is_ready_if_every_check_passes() -> None:
    checks: dict[str, Check] = {"broker": _holds, "storage": _holds}
    expected = {"ready": True, "checks": {"broker": True, "storage": True}}
    assert await _get(checks, "/readyz") == (200, expected)


async def test_one_check_that_does_not_pass_is_enough_to_be_not_ready() -> None:
    checks: dict[str, Check] = {"broker": _fails, "storage": _holds}
    expected = {"ready": False, "checks": {"broker": False, "storage": True}}
    assert await _get(checks, "/readyz") == (503, expected)


async def test_a_check_that_raises_or_takes_too_long_does_not_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "_CHECK_TIMEOUT_S", 0.01)
    checks: dict[str, Check] = {"raises": _raises, "hangs": _hangs, "holds": _holds}
    assert await run_checks(checks) == {"raises": False, "hangs": False, "holds": True}


async def test_readiness_says_what_the_storage_or_the_broker_said() -> None:
    """And nothing of a foreign exception, whose text can hold an address."""

    async def skewed() -> bool:
        raise ClockSkewError("list: RequestTimeTooSkewed")

    checks: dict[str, Check] = {"broker": _raises, "storage": skewed, "marks": _holds}
    status, body = await _get(checks, "/readyz")
    assert (status, body["checks"]) == (503, {"broker": False, "storage": False, "marks": True})
    assert list(body["problems"]) == ["storage"]
    assert "this machine's clock" in body["problems"]["storage"]


async def test_checks_do_not_wait_for_each_other() -> None:
    both = asyncio.Barrier(2)

    async def meets() -> bool:
        await both.wait()
        return True

    async with asyncio.timeout(10):
        assert await run_checks({"one": meets, "other": meets}) == {"one": True, "other": True}


async def test_the_server_ends_with_its_block() -> None:
    port = free_port()
    async with health_server("127.0.0.1", port, {}, WorkerMetrics().registry):
        pass
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_port_in_use_is_reported_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(AddressError, match=r"in use.*change KEYTURN_HEALTH_PORT"):
            async with health_server("127.0.0.1", port, {}, WorkerMetrics().registry):
                pass


async def test_port_0_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiohttp.web.TCPSite", None)
    async with health_server("127.0.0.1", 0, {}, WorkerMetrics().registry):
        pass


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", ""),
        (
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# EOF\n",
        ),
    ],
)
async def test_metrics_are_served_in_the_format_that_is_accepted(
    accept: str, content_type: str, end: str
) -> None:
    """With the memory and the collections of the process."""
    metrics, port = WorkerMetrics(), free_port()
    metrics.registry.add_process()
    async with (
        health_server("127.0.0.1", port, {}, metrics.registry),
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept}) as answer,
    ):
        text = await answer.text()
        assert (answer.status, answer.headers["Content-Type"][: len(content_type)]) == (
            200,
            content_type,
        )
    for name in ("process_resident_memory_bytes ", "python_info{", "python_gc_collections_total{"):
        assert f"\n{name}" in text
    assert text.endswith(end)
    assert "_created" not in text


class _OddError(CodedError):
    code = "a-project-of-somebody"


def test_what_is_of_no_known_set_makes_no_series() -> None:
    """Whatever a mistake of ours hands over: one series more, and not its name."""
    metrics = WorkerMetrics()
    queue = metrics.queue(UPLOAD_QUEUE)
    before = len(shown(metrics))
    for n in range(100):
        queue.count_served(f"type-{n}")
    queue.count_refused(_OddError())
    queue.count_retry(_OddError())
    metrics.count_page(Counts().to_json(), ["a/key", "another"])
    assert risen(metrics) == {
        'keyturn_requests_served_total{type="other"}': 100,
        f'keyturn_requests_refused_total{{code="other",queue="{UPLOAD_QUEUE}"}}': 1,
        f'keyturn_retries_total{{code="other",queue="{UPLOAD_QUEUE}"}}': 1,
        "keyturn_sweep_pages_total": 1,
        'keyturn_sweep_failures_total{code="other"}': 2,
    }
    assert len(shown(metrics)) == before + 4 + len(OUTCOMES)


def test_every_event_and_code_is_known() -> None:
    metrics = WorkerMetrics()
    queue = metrics.queue(UPLOAD_QUEUE)
    for event in PUBLISHER_EVENTS:
        queue.count_served(event)
    for error in all_errors().values():
        queue.count_refused(error())
        queue.count_retry(error())
    found = risen(metrics)
    assert len(found) == len(PUBLISHER_EVENTS) + 2 * len(all_errors())
    assert not [name for name in found if "other" in name]


def test_records_that_wait_are_counted_at_the_scrape() -> None:
    metrics, pending = WorkerMetrics(), [1, 2, 3]
    metrics.track_audit(lambda: len(pending))
    assert shown(metrics)["keyturn_audit_records_pending"] == 3
    pending.clear()
    assert shown(metrics)["keyturn_audit_records_pending"] == 0


def test_two_processes_share_nothing() -> None:
    one, other = WorkerMetrics(), WorkerMetrics()
    one.count_stored_bytes(5)
    assert risen(one) == {"keyturn_stored_bytes_total": 5}
    assert risen(other) == {}


def test_who_asks_for_a_queue_again_counts_on() -> None:
    metrics = WorkerMetrics()
    for _ in range(2):
        metrics.queue(UPLOAD_QUEUE).count_refused(AlreadyExistsError())
    name = f'keyturn_requests_refused_total{{code="already_exists",queue="{UPLOAD_QUEUE}"}}'
    assert risen(metrics) == {name: 2}


def test_codes_are_shown_before_they_happen() -> None:
    """An alert on a rise would miss the first one otherwise."""
    metrics = WorkerMetrics()
    metrics.queue(UPLOAD_QUEUE).initialize()
    found = shown(metrics)
    for code in all_errors():
        assert found[f'keyturn_requests_refused_total{{code="{code}",queue="{UPLOAD_QUEUE}"}}'] == 0
        assert found[f'keyturn_retries_total{{code="{code}",queue="{UPLOAD_QUEUE}"}}'] == 0


@pytest.mark.parametrize(
    ("queue", "names"),
    [
        (UPLOAD_QUEUE, ['requests_served_total{type="upload.stored"}']),
        (CONTROL_QUEUE, ['requests_served_total{type="rotation.completed"}']),
        (
            SWEEP_QUEUE,
            [
                'sweep_failures_total{code="locked_object"}',
                'sweep_objects_total{outcome="rewrapped"}',
            ],
        ),
    ],
)
def test_what_a_queue_is_for_is_shown_before_it_happens(queue: str, names: list[str]) -> None:
    """And only what it is for."""
    metrics, every = WorkerMetrics(), ("served_total{", "sweep_failures", "sweep_objects")
    metrics.queue(queue).initialize()
    found = shown(metrics)
    assert {found[f"keyturn_{name}"] for name in names} == {0}
    families = {name.partition("{")[0].removeprefix("keyturn_") for name in names}
    others = {n for n in found if any(each in n for each in every)}
    assert {n.partition("{")[0].removeprefix("keyturn_") for n in others} == families
    assert ("upload." in " ".join(others)) is (queue == UPLOAD_QUEUE)


def test_the_wait_on_the_queue_is_that_of_first_deliveries() -> None:
    metrics = WorkerMetrics()
    queue = metrics.queue(UPLOAD_QUEUE)
    now = datetime.now(UTC)
    for seconds in (45, -30):  # the second sender's clock is ahead
        queue.note_wait(format_time(now - timedelta(seconds=seconds)))
    found = shown(metrics)
    name = f'keyturn_queue_wait_seconds_%s{{le="%s",queue="{UPLOAD_QUEUE}"}}'
    assert [found[name % ("bucket", le)] for le in ("0.005", "30.0", "120.0")] == [1, 1, 2]
    assert 45 <= found[f'keyturn_queue_wait_seconds_sum{{queue="{UPLOAD_QUEUE}"}}'] < 50


def test_a_process_shows_its_version() -> None:
    metrics = WorkerMetrics()
    metrics.registry.add_process()
    name = f'keyturn_build_info{{version="{version("keyturn-workers")}"}}'
    assert shown(metrics)[name] == 1


def test_the_age_is_that_of_the_oldest_in_flight() -> None:
    """By the time that an admitted request states, as it is at the scrape; 0 when idle."""
    metrics = WorkerMetrics()
    queue = metrics.queue(UPLOAD_QUEUE)
    now = datetime.now(UTC)
    assert (shown(metrics)[OLDEST], shown(metrics)[IN_FLIGHT]) == (0, 0)
    with queue.delivery() as young, queue.delivery() as unknown:
        young.mark_admitted(format_time(now - timedelta(seconds=30)))
        assert 30 <= shown(metrics)[OLDEST] < 60
        with queue.delivery() as old:
            # Not yet admitted: what it says is not trusted.
            assert 30 <= shown(metrics)[OLDEST] < 60
            old.mark_admitted(format_time(now - timedelta(hours=1)))
            assert 3600 <= shown(metrics)[OLDEST] < 3660
            assert (shown(metrics)[IN_FLIGHT], queue.in_flight) == (3, 3)
        assert 30 <= shown(metrics)[OLDEST] < 60
        assert 0 < unknown.held_s() < 30
    assert (shown(metrics)[OLDEST], shown(metrics)[IN_FLIGHT]) == (0, 0)


def test_what_states_no_time_ages_from_its_delivery() -> None:
    metrics = WorkerMetrics()
    with metrics.queue(UPLOAD_QUEUE).delivery():
        assert 0 < shown(metrics)[OLDEST] < 30


def test_a_sender_whose_clock_is_ahead() -> None:
    metrics = WorkerMetrics()
    with metrics.queue(UPLOAD_QUEUE).delivery() as delivery:
        delivery.mark_admitted(format_time(datetime.now(UTC) + timedelta(seconds=60)))
        assert shown(metrics)[OLDEST] == 0


def test_a_delivery_that_fails_is_in_flight_no_more() -> None:
    queue = WorkerMetrics().queue(UPLOAD_QUEUE)
    with pytest.raises(ZeroDivisionError), queue.delivery():
        raise ZeroDivisionError
    assert queue.in_flight == 0


def test_a_stage_is_measured_however_it_ends() -> None:
    metrics = WorkerMetrics()
    queue = metrics.queue(PLAN_QUEUE)
    with queue.stage("serve"):
        pass
    with pytest.raises(ZeroDivisionError), queue.stage("serve"):
        raise ZeroDivisionError
    name = f'keyturn_stage_seconds_count{{queue="{PLAN_QUEUE}",stage="serve"}}'
    assert risen(metrics) == {name: 2}
    total = shown(metrics)[name.replace("_count", "_sum")]
    assert 0 < total < 1


def test_a_page() -> None:
    metrics = WorkerMetrics()
    counts = Counts(objects=6, current=3, rewrapped=2, failed=1, foreign=4, noncurrent_stale=7)
    metrics.count_page(counts.to_json(), ["locked_object"])
    assert risen(metrics) == {
        "keyturn_sweep_pages_total": 1,
        'keyturn_sweep_objects_total{outcome="current"}': 3,
        'keyturn_sweep_objects_total{outcome="rewrapped"}': 2,
        'keyturn_sweep_objects_total{outcome="failed"}': 1,
        'keyturn_sweep_objects_total{outcome="foreign"}': 4,
        'keyturn_sweep_failures_total{code="locked_object"}': 1,
    }


def test_consuming_is_checked_at_each_scrape() -> None:
    metrics = WorkerMetrics()
    registered = [True, False]
    metrics.queue(UPLOAD_QUEUE).track_consumer(lambda: registered.pop(0))
    name = f'keyturn_consuming{{queue="{UPLOAD_QUEUE}"}}'
    assert (shown(metrics)[name], shown(metrics)[name]) == (1, 0)


def test_the_documentation_lists_every_metric_and_stage() -> None:
    """And none that is not there."""
    text = METRICS.read_text()
    metrics = WorkerMetrics()
    metrics.registry.add_process()
    KmsMetrics(metrics.registry).observer("vault")
    CustomerKeyMetrics(metrics.registry, {})
    IngestMetrics(metrics.registry, ["drop"])
    exported = (metrics.registry.render()[0] + GatewayMetrics().registry.render()[0]).decode()
    names = set(re.findall(r"^# TYPE (keyturn_\S+)", exported, re.MULTILINE))
    assert set(re.findall(r"^\| `(keyturn_\w+)` \|", text, re.MULTILINE)) == names
    stages = re.search(r"\| stage \|.*?\n\n", text, re.DOTALL)
    assert stages is not None
    assert set(re.findall(r"^\| `(\w+)` \|", stages[0], re.MULTILINE)) == set(get_args(Stage))


def test_a_report_has_what_became_of_the_messages_and_how_old_they_are() -> None:
    metrics = WorkerMetrics()
    queue = metrics.queue(UPLOAD_QUEUE)
    assert metrics.report_queues() == ()  # nothing is consumed yet
    queue.track_consumer(lambda: True)
    metrics.queue(PLAN_QUEUE).track_consumer(lambda: False)
    ago = format_time(datetime.now(UTC) - timedelta(seconds=90))
    queue.note_wait(ago)
    queue.count_served("upload.stored")
    queue.count_hint()
    queue.count_refused(AlreadyExistsError())
    queue.count_retry(AlreadyExistsError())
    with queue.delivery() as delivery:
        delivery.mark_admitted(ago)
        report, other = metrics.report_queues()
    counts = (report.served, report.refused, report.retried, report.in_flight)
    assert (report.queue, counts) == (UPLOAD_QUEUE, (2, 1, 1, 1))
    assert 90 <= (report.oldest_s or 0) < 95
    assert 90 <= (report.waited_s or 0) < 95
    assert (report.is_consuming, other.is_consuming) == (True, False)
    assert (other.oldest_s, other.waited_s) == (None, None)
    queue.note_wait(format_time(datetime.now(UTC) + timedelta(hours=1)))
    assert metrics.report_queues()[0].waited_s == 0


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
