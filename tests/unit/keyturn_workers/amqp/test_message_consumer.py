"""Around one delivery the acknowledgment comes last (SPEC 6.2).

Each step that can fail is made to fail. Whatever had not become durable by then, the message was
not acknowledged, and comes again.
"""

from __future__ import annotations

import asyncio

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn_workers.amqp.consumer import DeferError
from keyturn_workers.amqp.publisher import NotConfirmedError
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.support.scrape import risen
from tests.unit.keyturn_workers.amqp.deliveries import (
    BrokerError,
    FakeHandler,
    Scene,
    consume,
    message,
    noted,
)


async def test_a_transient_error_schedules_a_retry_before_the_acknowledgment() -> None:
    """Its copy is in the retry queue by then; nothing is published."""
    scene = Scene()
    handler = FakeHandler(scene, StorageUnavailableError("x"))
    delivery = noted(message(scene), "storage_unavailable", 2)
    waits = ["retry", "keyturn.upload storage_unavailable 2 30s", "ack"]
    assert await consume(handler, delivery) == ["served", *waits]


async def test_a_bug_of_ours_schedules_a_retry() -> None:
    """An unforeseen error is retried like a failure of the storage, and nothing is lost."""
    scene = Scene()
    handler = FakeHandler(scene, ZeroDivisionError("secret"))
    waits = ["retry", "keyturn.upload storage_unavailable 0 1s", "ack"]
    assert await consume(handler, message(scene)) == ["served", *waits]


async def test_a_lost_broker_is_not_logged_as_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    """What a role sends while it serves was not confirmed: the request comes again as it is."""
    scene = Scene()
    handler = FakeHandler(scene, NotConfirmedError("ChannelInvalidStateError"))
    assert await consume(handler, message(scene)) == ["served", "given back"]
    assert "unexpected failure" not in "".join(capsys.readouterr())


Case = tuple[Exception | None, bytes | None]
SERVED: Case = (None, None)
REFUSED: Case = (AlreadyExistsError("k"), None)
WAITING: Case = (StorageUnavailableError("x"), None)
MALFORMED: Case = (None, b"{")


@pytest.mark.parametrize(
    ("case", "failing", "expected"),
    [
        (SERVED, "published", ["served", "published failed", "given back"]),
        (SERVED, "after", ["served", "published", "after failed", "given back"]),
        (SERVED, "ack", ["served", "published", "after", "ack failed", "given back"]),
        (REFUSED, "dead", ["served", "dead failed", "given back"]),
        (REFUSED, "published", ["served", "dead", "*", "published failed", "given back"]),
        (
            REFUSED,
            "ack",
            ["served", "dead", "*", "published", "cleaned", "ack failed", "given back"],
        ),
        (WAITING, "retry", ["served", "retry failed", "given back"]),
        (WAITING, "ack", ["served", "retry", "*", "ack failed", "given back"]),
        (MALFORMED, "dead", ["dead failed", "given back"]),
    ],
)
async def test_nothing_is_acknowledged_before_it_is_durable(
    case: Case, failing: str, expected: list[str]
) -> None:
    """A step that the broker did not confirm: the message goes back to its queue."""
    error, body = case
    scene = Scene(failing)
    steps = await consume(FakeHandler(scene, error), message(scene, body))
    short = [step.removesuffix(" up already_exists") for step in steps]
    assert [step if "keyturn." not in step else "*" for step in short] == expected
    assert "ack" not in steps


async def test_a_closed_channel_raises_nothing() -> None:
    """Not even the giving back works: the broker gives the message again by itself."""
    scene = Scene("published")
    delivery = message(scene)

    async def nack(*, requeue: bool) -> None:
        raise BrokerError(requeue)

    delivery.nack = nack  # type: ignore[method-assign]  # a channel that is closed
    assert await consume(FakeHandler(scene), delivery) == ["served", "published failed"]


async def test_a_cancelled_delivery_is_neither_acknowledged_nor_given_back() -> None:
    """At the end of the grace period the broker itself redelivers the message."""
    scene = Scene()
    handler = FakeHandler(scene, gate=asyncio.Event())
    running = asyncio.create_task(consume(handler, message(scene)))
    await handler.entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert scene.steps == []


REFUSED_AS = 'requests_refused_total{code="%s",queue="keyturn.upload"}'
RETRIED_AS = 'retries_total{code="%s",queue="keyturn.upload"}'


@pytest.mark.parametrize(
    ("error", "body", "stages", "ends"),
    [
        (None, None, "admit serve tell", ['requests_served_total{type="upload.stored"}']),
        (AlreadyExistsError("k"), None, "admit serve", [REFUSED_AS % "already_exists"]),
        (None, b"{", "admit", [REFUSED_AS % "malformed_request"]),
        (StorageUnavailableError("x"), None, "admit serve", [RETRIED_AS % "storage_unavailable"]),
        (ZeroDivisionError(), None, "admit serve", [RETRIED_AS % "storage_unavailable"]),
        (DeferError(3), None, "admit serve", [RETRIED_AS % "waiting"]),
    ],
    ids=["served", "refused", "malformed", "retry", "a bug", "waits"],
)
async def test_each_outcome_is_counted_once(
    error: Exception | None, body: bytes | None, stages: str, ends: list[str]
) -> None:
    """By what became of it; and its wait and each stage that it came through were measured."""
    metrics, scene = WorkerMetrics(), Scene()
    await consume(FakeHandler(scene, error), message(scene, body), metrics)
    names = [
        'messages_consumed_total{queue="keyturn.upload"}',
        *(f'stage_seconds_count{{queue="keyturn.upload",stage="{s}"}}' for s in stages.split()),
        *ends,
    ]
    if body is None:  # else it is unknown since when it waited
        names.append('queue_wait_seconds_count{queue="keyturn.upload"}')
    assert risen(metrics) == {f"keyturn_{name}": 1 for name in names}


@pytest.mark.slow
async def test_what_did_not_become_durable_is_not_counted_as_done() -> None:
    """It was taken, and comes again; its end is counted then."""
    for error, failing in (
        (None, "published"),
        (None, "ack"),
        (AlreadyExistsError("k"), "dead"),
        (StorageUnavailableError("x"), "retry"),
    ):
        metrics, scene = WorkerMetrics(), Scene(failing)
        await consume(FakeHandler(scene, error), message(scene), metrics)
        ends = ("served", "refused", "retries")
        assert not [name for name in risen(metrics) if any(end in name for end in ends)]


async def test_a_retry_that_comes_early_waits_on() -> None:
    """An attacker who moves it out of its retry queue neither hurries nor uses up its tries."""
    scene = Scene()
    delivery = noted(message(scene), "unknown_project", 2, in_s=5)
    waits = ["put back", "keyturn.upload unknown_project 2", "ack"]
    assert await consume(FakeHandler(scene, UnknownProjectError("acme")), delivery) == waits
