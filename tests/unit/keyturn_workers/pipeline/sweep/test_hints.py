"""Hints between sweep workers, from their bytes to their acknowledgment (SPEC 6.2, 8.5, 12).

Nothing is acknowledged before what it requests is durable or its copy is in a retry or
dead-letter queue; what is no hint of ours changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from keyturn.crypto import SigningKey
from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    KeyringRolledBackError,
    LeaseMismatchError,
    MalformedRequestError,
    NotFoundError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.topology import ATTEMPT_HEADER, PLAN_QUEUE, SWEEP_QUEUE
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.pipeline.amqp.failures import Retry, RetryNotes
from keyturn_workers.pipeline.amqp.settlement import DeliveryContext
from keyturn_workers.pipeline.sweep.handler import HintQueue, hint_route
from keyturn_workers.pipeline.sweep.messages import (
    Hint,
    SweepPage,
    SweepStep,
    encode,
    parse,
    queue_of,
)
from keyturn_workers.pipeline.sweep.page import CannotProveYetError
from keyturn_workers.process.metrics import WorkerMetrics
from tests.support.routes import deliver as to_route
from tests.support.scrape import risen

ROUND_ID = "2f6c9a0e-3333-4333-8333-333333333333"
STEP = SweepStep(project="acme", step=4)
PAGE = SweepPage(project="acme", round=ROUND_ID, page=2, attempt=1)
Headers = dict[str, Any]
NOTES = RetryNotes("test", [SigningKey.from_seed(b"e" * 32)])


@pytest.mark.parametrize(
    ("hint", "queue"),
    [
        (STEP, PLAN_QUEUE),
        (PAGE, SWEEP_QUEUE),
        (STEP.model_copy(update={"project": "*"}), PLAN_QUEUE),
    ],
)
def test_a_hint_is_read_as_it_was_written(hint: Hint, queue: str) -> None:
    assert parse(encode(hint)) == hint
    assert queue_of(hint) == queue


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        encode(STEP).replace(b"sweep.step", b"sweep.other"),
        encode(STEP).replace(b"4", b"-4"),
        encode(STEP).replace(b'"acme"', b'"../acme"'),
        encode(PAGE).replace(b'"acme"', b'"*"'),
        encode(PAGE).replace(ROUND_ID.encode(), b"../../keyrings"),
        encode(PAGE).replace(b'"attempt":1', b'"attempt":"1"'),
        encode(PAGE).replace(b'"attempt":1', b'"attempt":1,"more":1'),
    ],
)
def test_anything_else_is_no_hint(body: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        parse(body)


def noted(hint: Hint, code: str, attempt: int, in_s: float = 0, publisher: str = "") -> Headers:
    """The headers of a hint that a worker put off."""
    retry = Retry(code, attempt, datetime.now(UTC) + timedelta(seconds=in_s))
    queue = SWEEP_QUEUE if isinstance(hint, SweepPage) else PLAN_QUEUE
    return dict(NOTES.headers(queue, publisher, encode(hint), retry))


@dataclass
class Scene:
    """A handler, a publisher and a message that note what happens, in order."""

    error: Exception | None = None
    fail_error: Exception | None = None
    steps: list[str] = field(default_factory=list)
    again: bool | None = None

    # The handler.
    async def run_step(self, hint: SweepStep, *, again: bool) -> None:
        assert hint == STEP
        self.again = again
        self._served("step")

    async def process_page(self, hint: SweepPage) -> None:
        assert hint == PAGE
        self._served("page")

    async def record_failure(self, _hint: SweepStep, error: CodedError) -> None:
        self.steps.append(f"failed {error.code}")
        if self.fail_error is not None:
            raise self.fail_error

    def _served(self, name: str) -> None:
        self.steps.append(name)
        if self.error is not None:
            raise self.error

    # The publisher.
    def retry_of(self, message: Message, queue: str, publisher: str = "") -> Retry | None:
        assert not publisher
        return NOTES.read(queue, "", message.body, message.headers)

    async def defer(self, _message: object, queue: str, wait_s: float, *, publisher: str) -> None:
        assert not publisher
        self.steps.append(f"{queue} deferred by {wait_s} s")

    async def schedule_retry(
        self,
        _message: object,
        queue: str,
        error: CodedError,
        attempt: int,
        delay_s: int,
        *,
        publisher: str,
    ) -> None:
        assert not publisher
        self.steps.append(f"{queue} {error.code} {attempt} in {delay_s} s")

    async def dead_letter(self, _message: object, queue: str, error: CodedError) -> None:
        self.steps.append(f"{queue}.dead {error.code}")


@dataclass
class Message:
    """A delivery."""

    scene: Scene
    body: bytes
    headers: dict[str, Any] = field(default_factory=dict)
    redelivered: bool = False
    message_id: str = ROUND_ID


async def deliver(
    scene: Scene,
    hint: Hint | bytes,
    queue: str | None = None,
    metrics: WorkerMetrics | None = None,
    **more: Any,
) -> list[str]:
    queue = queue or (SWEEP_QUEUE if isinstance(hint, SweepPage) else PLAN_QUEUE)
    body = hint if isinstance(hint, bytes) else encode(hint)
    fake = cast("Any", scene)
    metrics = metrics or WorkerMetrics()
    hints = HintQueue(fake, queue, timedelta(seconds=600), DeliveryContext(fake, metrics))
    if await to_route(hint_route(hints, prefetch=8), Message(scene, body, **more)):
        scene.steps.append("ack")
    assert metrics.queue(queue).in_flight == 0
    return scene.steps


@pytest.mark.parametrize(("hint", "name"), [(STEP, "step"), (PAGE, "page")])
async def test_a_hint_is_acknowledged_after_it_was_served(hint: Hint, name: str) -> None:
    assert await deliver(Scene(), hint) == [name, "ack"]


@pytest.mark.parametrize(
    ("more", "again"),
    [
        ({}, False),
        ({"headers": {"x-death": [{"count": 3}]}}, False),
        ({"redelivered": True}, True),
        ({"headers": noted(STEP, "storage_unavailable", 2)}, True),
        ({"headers": {ATTEMPT_HEADER: "storage_unavailable:2"}}, False),
        ({"headers": noted(STEP, "storage_unavailable", 2, publisher="api")}, False),
        ({"headers": noted(PAGE, "storage_unavailable", 2)}, False),
    ],
    ids=["new", "delayed", "redelivered", "put off", "forged", "a request's", "another hint's"],
)
async def test_a_step_knows_whether_it_may_have_been_made(
    more: dict[str, Any], *, again: bool
) -> None:
    """A delay queue's own marks, which every step bears, say nothing of that."""
    scene = Scene()
    await deliver(scene, STEP, **more)
    assert scene.again is again


@pytest.mark.parametrize(
    ("body", "queue"),
    [
        (b"", PLAN_QUEUE),
        (b"[]", PLAN_QUEUE),
        (b'{"type": "sweep.step"}', PLAN_QUEUE),
        (encode(STEP).replace(b"acme", b"../x"), PLAN_QUEUE),
        (encode(PAGE).replace(ROUND_ID.encode(), b"../../keyrings"), SWEEP_QUEUE),
        (encode(STEP).replace(b"4}", b"-4}"), PLAN_QUEUE),
        (encode(PAGE).replace(b'"page":2', b'"page":"2"'), SWEEP_QUEUE),
        (encode(PAGE), PLAN_QUEUE),
        (encode(STEP), SWEEP_QUEUE),
    ],
)
async def test_a_message_that_is_no_hint_is_a_dead_letter(body: bytes, queue: str) -> None:
    assert await deliver(Scene(), body, queue) == [f"{queue}.dead malformed_request", "ack"]


@pytest.mark.parametrize("hint", [STEP, PAGE], ids=["step", "page"])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageUnavailableError("x"), "storage_unavailable"),
        (RefusedError("list: AccessDenied"), "storage_unavailable"),
        (KeyringRolledBackError("x"), "keyring_rolled_back"),
        (LeaseMismatchError("x"), "lease_mismatch"),
    ],
    ids=["storage", "refused", "rolled back", "another lease"],
)
async def test_a_transient_failure_is_retried(hint: Hint, error: Exception, code: str) -> None:
    steps = await deliver(Scene(error=error), hint)
    queue = SWEEP_QUEUE if isinstance(hint, SweepPage) else PLAN_QUEUE
    assert steps[1:] == [f"{queue} {code} 0 in 1 s", "ack"]


async def test_a_page_that_meets_a_worker_which_cannot_prove_yet_counts_no_attempt() -> None:
    """In a rolling deploy it may meet several fresh workers: the fourth would cost 120 s."""
    header = noted(PAGE, "storage_unavailable", 2, in_s=0)
    steps = await deliver(Scene(error=CannotProveYetError(3)), PAGE, headers=header)
    assert steps == ["page", f"{SWEEP_QUEUE} deferred by 3 s", "ack"]


async def test_a_step_that_fails_for_good_ends_the_sweeps_and_is_kept() -> None:
    steps = await deliver(Scene(error=CorruptObjectError("forged")), STEP)
    assert steps == ["step", "failed corrupt_object", f"{PLAN_QUEUE}.dead corrupt_object", "ack"]


async def test_an_unknown_project_is_retried_for_a_while() -> None:
    delays = []
    for attempt in range(4):
        header = noted(STEP, "unknown_project", attempt)
        steps = await deliver(Scene(error=UnknownProjectError("acme")), STEP, headers=header)
        delays.append(steps[1])
    assert delays == [
        f"{PLAN_QUEUE} unknown_project 0 in 1 s",
        f"{PLAN_QUEUE} unknown_project 1 in 5 s",
        f"{PLAN_QUEUE} unknown_project 2 in 9 s",
        "failed unknown_project",
    ]


async def test_an_unsigned_attempt_count_is_ignored() -> None:
    """Otherwise such a header would be enough to end sweeps as failed (SPEC 6.3)."""
    header = {ATTEMPT_HEADER: "storage_unavailable:999999999"}
    steps = await deliver(Scene(error=StorageUnavailableError("x")), STEP, headers=header)
    assert steps == ["step", f"{PLAN_QUEUE} storage_unavailable 0 in 1 s", "ack"]


async def test_a_failure_that_lasts_ends_the_sweeps() -> None:
    """Longer than the longest age of a request, here 600 s, added up over the tries."""
    header = noted(STEP, "storage_unavailable", 5)
    steps = await deliver(Scene(error=StorageUnavailableError("x")), STEP, headers=header)
    assert steps[1] == "failed storage_unavailable"


async def test_a_failure_that_cannot_be_recorded_makes_no_loop() -> None:
    scene = Scene(error=CorruptObjectError("x"), fail_error=StorageUnavailableError("down"))
    assert (await deliver(scene, STEP))[-2:] == [f"{PLAN_QUEUE}.dead corrupt_object", "ack"]


async def test_a_page_fails_no_sweep() -> None:
    """What it meets for good, the next step meets as well."""
    steps = await deliver(Scene(error=CorruptObjectError("forged")), PAGE)
    assert steps == ["page", f"{SWEEP_QUEUE} corrupt_object 0 in 1 s", "ack"]


async def test_a_hint_without_a_record_changes_nothing() -> None:
    assert await deliver(Scene(error=NotFoundError("x")), STEP) == ["step", "ack"]


REFUSED_AS = 'requests_refused_total{code="%s",queue="keyturn.plan"}'


RETRIED_AS = 'retries_total{code="%s",queue="keyturn.plan"}'


@pytest.mark.parametrize(
    ("error", "hint", "ends"),
    [
        (None, STEP, []),
        (None, b"{}", [REFUSED_AS % "malformed_request"]),
        (CorruptObjectError("forged"), STEP, [REFUSED_AS % "corrupt_object"]),
        (StorageUnavailableError("x"), STEP, [RETRIED_AS % "storage_unavailable"]),
        (NotFoundError("x"), STEP, []),
    ],
    ids=["served", "no hint", "for good", "for now", "without a record"],
)
async def test_each_end_is_counted_once(
    error: Exception | None, hint: Hint | bytes, ends: list[str]
) -> None:
    metrics = WorkerMetrics()
    await deliver(Scene(error=error), hint, PLAN_QUEUE, metrics)
    stage = ['stage_seconds_count{queue="keyturn.plan",stage="serve"}'] if hint is STEP else []
    names = ['messages_consumed_total{queue="keyturn.plan"}', *stage, *ends]
    assert risen(metrics) == {f"keyturn_{name}": 1 for name in names}
