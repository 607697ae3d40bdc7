"""Stages and outcomes in a trace are those that the consumers measure and count for metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
from opentelemetry.trace import SpanKind

from keyturn.counts import Counts
from keyturn.errors import AlreadyExistsError, CodedError, StorageUnavailableError
from keyturn_workers.amqp.consumer import DeferError
from keyturn_workers.amqp.publisher import NotConfirmedError
from keyturn_workers.amqp.request_consumer import RequestConsumer
from keyturn_workers.tracing.scope import begin, recorded
from keyturn_workers.tracing.stages import TracedMetrics
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.support.scrape import risen
from tests.unit.keyturn_workers.amqp.deliveries import (
    RULES,
    UPLOAD_ID,
    FakeHandler,
    Scene,
    context,
    message,
)
from tests.unit.keyturn_workers.tracing.recorder import Recorder

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage


async def _consumed(
    error: Exception | None = None, *, failing: str = "", metrics: WorkerMetrics | None = None
) -> Recorder:
    recorder, scene = Recorder(), Scene(failing)
    handler = FakeHandler(scene, error)
    consumer = RequestConsumer(handler, RULES, context(scene, metrics or TracedMetrics()))
    root = begin(recorder.tracer, "root", SpanKind.CONSUMER)
    with recorded(recorder.tracer, root):
        root.set_attribute("keyturn.outcome", "returned")
        await consumer(cast("AbstractIncomingMessage", message(scene)))
    return recorder


async def test_a_served_request() -> None:
    recorder = await _consumed()
    assert {span.name for span in recorder.spans} == {"root", "admit", "serve", "tell"}
    attributes = recorder.attributes("root")
    assert attributes.pop("keyturn.waited_s") < 60
    assert attributes == {
        "keyturn.outcome": "served",
        "keyturn.served_as": "upload.stored",
        "keyturn.request.id": UPLOAD_ID,
    }


@pytest.mark.parametrize(
    ("error", "outcome", "error_type"),
    [
        (AlreadyExistsError("secret/name.pdf"), "refused", "already_exists"),
        (StorageUnavailableError("secret/name.pdf"), "retried", "storage_unavailable"),
        (ZeroDivisionError("secret/name.pdf"), "retried", "storage_unavailable"),
        (DeferError(5), "deferred", None),
        (NotConfirmedError("secret/name.pdf"), "returned", None),
    ],
)
async def test_what_became_of_a_request(
    monkeypatch: pytest.MonkeyPatch, error: Exception, outcome: str, error_type: str | None
) -> None:
    monkeypatch.setattr("keyturn_workers.amqp.consumer._PAUSE_S", 0)
    recorder = await _consumed(error)
    assert recorder.attributes("root")["keyturn.outcome"] == outcome
    assert recorder.attributes("root").get("error.type") == error_type
    assert "secret" not in recorder.shown()


async def test_a_page_has_its_counts() -> None:
    recorder, metrics = Recorder(), TracedMetrics()
    with recorded(recorder.tracer, begin(recorder.tracer, "root", SpanKind.CONSUMER)):
        metrics.count_page(Counts(objects=3, rewrapped=2, current=1).to_json(), [])
    attributes = recorder.attributes("root")
    assert attributes["keyturn.page.rewrapped"] == 2
    assert attributes["keyturn.page.current"] == 1


async def test_outside_a_trace_only_metrics_are_made() -> None:
    recorder, metrics = Recorder(), TracedMetrics()
    queue = metrics.queue("keyturn.upload")
    with queue.delivery() as delivery, queue.stage("serve"):
        delivery.identify("request", UPLOAD_ID)
    queue.count_served("upload.stored")
    assert recorder.spans == ()


async def test_the_metrics_are_those_without_traces() -> None:
    """Counters and the number of timings; the times themselves differ."""

    def counted(metrics: WorkerMetrics) -> dict[str, float]:
        return {
            name: value
            for name, value in risen(metrics).items()
            if not name.startswith("keyturn_stage_seconds") or "_count" in name
        }

    plain, traced = WorkerMetrics(), TracedMetrics()
    errors: list[CodedError | None] = [None, AlreadyExistsError("k"), StorageUnavailableError("x")]
    for error in errors:
        await _consumed(error, metrics=plain)
        await _consumed(error, metrics=traced)
    assert counted(traced) == counted(plain)
    assert counted(plain)
