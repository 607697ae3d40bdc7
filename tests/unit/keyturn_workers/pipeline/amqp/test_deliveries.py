"""A delivery on its way: admitted, served, answered and, last of all, acknowledged (SPEC 6.2, 6.3).

Each step that can fail is made to fail. Whatever had not become durable by then, the message was
not acknowledged, and comes again.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import Mock

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    DeletedKeyError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time
from keyturn.messages import Rejected, RequestOrigin
from keyturn_workers.core.authorization import Rules
from keyturn_workers.core.grants import Grant
from keyturn_workers.pipeline.amqp import requests, settlement
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.amqp.failures import RENEWED_AFTER, Retry
from keyturn_workers.pipeline.amqp.outcomes import DeferError, Handled
from keyturn_workers.pipeline.amqp.requests import RequestQueue, TimeSource
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.wall_clock import utc_now
from tests.support.scrape import risen, shown
from tests.unit.keyturn_workers.pipeline.amqp.deliveries import (
    ALL,
    NOTES,
    RULES,
    UPLOAD_ID,
    FakeAudit,
    FakeHandler,
    FakeMessage,
    Scene,
    consume,
    context,
    document,
    message,
    noted,
    settled,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.messages import Request
    from keyturn_workers.process.grants_file import GrantsKeeper

_OTHER = {"keyturn-publisher": "other"}


def _old(scene: Scene, age: timedelta) -> FakeMessage:
    return message(scene, document(requested_at=format_time(datetime.now(UTC) - age)))


def expired(scene: Scene) -> FakeMessage:
    return _old(scene, timedelta(days=8) - timedelta(minutes=1))


def malformed(scene: Scene) -> FakeMessage:
    return message(scene, document(key="/"))


def without_letter(scene: Scene, name: str = "drop") -> FakeMessage:
    source = {"name": name, "key": "a", "etag": "abc", "size": 1}
    return message(scene, document(letter=False, sealed_key=None, body={"source": source}))


def unreadable(scene: Scene) -> FakeMessage:
    return message(scene, b"{")


def forged_sender(scene: Scene) -> FakeMessage:
    return message(scene, headers=_OTHER)


def retried(code: str, attempt: int, in_s: float = 0) -> Callable[[Scene], FakeMessage]:
    return lambda scene: noted(message(scene), code, attempt, in_s)


def of_attempt(code: str) -> Callable[[Scene], FakeMessage]:
    return lambda scene: message(scene, headers={"keyturn-attempt": f"{code}:999999999"})


def routed(routing_key: str) -> Callable[[Scene], FakeMessage]:
    def made(scene: Scene) -> FakeMessage:
        delivery = message(scene)
        delivery.routing_key = routing_key
        return delivery

    return made


_AWAY = StorageUnavailableError("x")
_RETRIED = "retry, keyturn.upload storage_unavailable 0 1s, ack"


@pytest.mark.parametrize(
    ("delivery", "error", "expected"),
    [
        pytest.param(message, None, "served, published, after, ack", id="served"),
        pytest.param(
            message,
            AlreadyExistsError("k"),
            "served, dead, keyturn.upload already_exists, published, "
            "cleaned up already_exists, ack",
            id="refused: the dead letter first, the event second",
        ),
        pytest.param(
            without_letter,
            AlreadyExistsError("k"),
            "served, published, cleaned up already_exists, ack",
            id="refused, and its publisher wants no letter",
        ),
        pytest.param(
            lambda scene: without_letter(scene, "another"),
            None,
            "dead, keyturn.upload not_permitted, published, ack",
            id="not admitted: there is a letter whatever the request says",
        ),
        pytest.param(
            malformed,
            None,
            "dead, keyturn.upload malformed_request, published, ack",
            id="malformed: not served",
        ),
        pytest.param(
            unreadable,
            None,
            "dead, keyturn.upload malformed_request, ack",
            id="malformed without an id: no event",
        ),
        pytest.param(
            forged_sender,
            None,
            "dead, keyturn.upload bad_signature, ack",
            id="a bad signature: no event",
        ),
        *(
            # It was answered with `malformed_request` while it was stored elsewhere.
            pytest.param(
                routed(key),
                None,
                "dead, keyturn.upload bad_signature, ack",
                id=f"a genuine one under {key!r}: no event",
            )
            for key in ("enroll.requested", "", "anything", "keyturn.control")
        ),
        pytest.param(
            retried("unknown_project", 3),
            UnknownProjectError("acme"),
            "served, dead, keyturn.upload unknown_project, published, "
            "cleaned up unknown_project, ack",
            id="after the last attempt",
        ),
        pytest.param(
            retried("storage_unavailable", 2),
            _AWAY,
            "served, retry, keyturn.upload storage_unavailable 2 30s, ack",
            id="a transient error",
        ),
        pytest.param(message, ZeroDivisionError("x"), f"served, {_RETRIED}", id="a bug of ours"),
        pytest.param(message, NotConfirmedError("x"), "served, given back", id="a lost broker"),
        # An attacker who moves it out of its retry queue neither hurries nor uses up its tries.
        pytest.param(
            retried("unknown_project", 2, in_s=5),
            UnknownProjectError("acme"),
            "put back, keyturn.upload unknown_project 2, ack",
            id="a retry that comes early",
        ),
        # A copy with such a header was refused for good in 0.05 s.
        pytest.param(
            of_attempt("unknown_project"),
            UnknownProjectError("acme"),
            "served, retry, keyturn.upload unknown_project 0 1s, ack",
            id="a forged attempt is not counted",
        ),
        pytest.param(
            of_attempt("storage_unavailable"),
            _AWAY,
            f"served, {_RETRIED}",
            id="a forged attempt of a transient error is not counted",
        ),
        pytest.param(
            expired,
            None,
            "checked, dead, keyturn.upload request_expired, published, "
            "cleaned up request_expired, ack",
            id="expired and not completed",
        ),
        # Whether it is done cannot be said: it waits, up to a day.
        pytest.param(expired, _AWAY, f"checked, {_RETRIED}", id="expired, and no answer"),
        pytest.param(
            lambda scene: _old(scene, timedelta(days=30)),
            _AWAY,
            "checked, dead, keyturn.upload storage_unavailable, published, "
            "cleaned up storage_unavailable, ack",
            id="expired for longer than a day, and no answer",
        ),
        pytest.param(
            lambda scene: _old(scene, timedelta(minutes=-6)),
            None,
            "checked, dead, keyturn.upload request_expired, published, "
            "cleaned up request_expired, ack",
            id="from the future",
        ),
    ],
)
async def test_what_becomes_of_a_delivery(
    delivery: Callable[[Scene], FakeMessage],
    error: Exception | None,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scene = Scene()
    assert ", ".join(await consume(FakeHandler(scene, error), delivery(scene))) == expected
    if isinstance(error, NotConfirmedError):
        assert "unexpected failure" not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("delivery", "error", "failing", "expected"),
    [
        # After the effect: a record of what was not done would be a lie.
        (message, None, "", "served, recorded, published, after, ack"),
        (message, None, "recorded", "served, recorded failed, given back"),
        (message, AlreadyExistsError("k"), "", "served, recorded already_exists, dead"),
        (malformed, None, "", "recorded malformed_request, dead"),
        # A flood of unsigned requests does not fill the trail.
        (forged_sender, None, "", "dead, keyturn.upload bad_signature, ack"),
        # What is retried is recorded once it is done.
        (message, _AWAY, "", f"served, {_RETRIED}"),
    ],
)
async def test_what_was_done_is_recorded_before_anything_says_so(
    delivery: Callable[[Scene], FakeMessage], error: Exception | None, failing: str, expected: str
) -> None:
    scene = Scene(failing=failing)
    steps = await consume(FakeHandler(scene, error), delivery(scene), audit=FakeAudit(scene))
    assert ", ".join(steps).startswith(expected)


async def test_a_refusal_names_its_request() -> None:
    """An old refusal is no answer to a new attempt, which has other bytes."""
    scene = Scene()
    delivery = message(scene)
    await consume(FakeHandler(scene, AlreadyExistsError("k")), delivery)
    (event,) = scene.events
    assert (event.type, getattr(event, "code", "")) == ("upload.rejected", "already_exists")
    assert event.origin == RequestOrigin.of("api", delivery.body)


async def test_an_expired_request_that_was_completed_is_published_as_completed() -> None:
    """A redelivery past the age was refused though its object is stored."""
    scene = Scene()
    handler = FakeHandler(scene, completed=True)
    assert await consume(handler, expired(scene)) == ["checked", "published", "ack"]
    assert [event.type for event in scene.events] == ["upload.stored"]


async def test_the_age_of_a_request_in_flight_is_exported() -> None:
    """From its admission on, by what it says of itself: its sender is known by then."""
    metrics, scene = WorkerMetrics(), Scene()
    handler = FakeHandler(scene, gate=asyncio.Event())
    requested_at = format_time(datetime.now(UTC) - timedelta(minutes=10))
    running = asyncio.create_task(
        consume(handler, message(scene, document(requested_at=requested_at)), metrics)
    )
    await handler.entered.wait()
    found = shown(metrics)
    assert 600 <= found['keyturn_oldest_message_age_seconds{queue="keyturn.upload"}'] < 660
    assert found['keyturn_messages_in_flight{queue="keyturn.upload"}'] == 1
    assert handler.gate is not None
    handler.gate.set()
    await running


def redelivered(delivery: FakeMessage) -> None:
    delivery.redelivered = True


def waited(delivery: FakeMessage) -> None:
    noted(delivery, "unknown_project", 1)


def forged(delivery: FakeMessage) -> None:
    delivery.headers["keyturn-attempt"] = "unknown_project:1"


def of_another(delivery: FakeMessage) -> None:
    retry = Retry("unknown_project", 1, datetime.now(UTC))
    delivery.headers |= NOTES.headers("keyturn.upload", "other", delivery.body, retry)


def counted(delivery: FakeMessage) -> None:
    delivery.headers |= {"x-delivery-count": 1, "x-death": [{"count": 1}]}


@pytest.mark.parametrize(
    ("change", "seen_before"),
    [
        (lambda _: None, False),
        (redelivered, True),
        (waited, True),
        (forged, False),
        (of_another, False),
        (counted, False),
    ],
)
async def test_only_the_broker_and_workers_say_that_a_request_was_seen_before(
    change: Callable[[FakeMessage], None], *, seen_before: bool
) -> None:
    """Only the broker and the workers can say that an earlier delivery may have done part of it.

    Because of an unsigned header an upload aborted the multipart uploads at its key.
    """
    scene = Scene()
    handler, delivery = FakeHandler(scene), message(scene)
    change(delivery)
    await consume(handler, delivery)
    assert handler.seen_before is seen_before


@pytest.mark.parametrize(("code", "attempts"), [("waiting", 0), ("storage_unavailable", 3)])
async def test_a_handler_learns_how_often_an_error_was_met(code: str, attempts: int) -> None:
    """As a worker noted it: a wait is no attempt."""
    scene = Scene()
    handler = FakeHandler(scene)
    await consume(handler, noted(message(scene), code, 3))
    assert handler.attempts == attempts


class StorageTime:
    """A worker whose own clock is some minutes off, until it asks the storage."""

    def __init__(self, off: timedelta, error: Exception | None = None) -> None:
        self._off = off
        self._error = error

    def now(self) -> datetime:
        return datetime.now(UTC) + self._off

    async def learn(self) -> None:
        if self._error is not None:
            raise self._error
        self._off = timedelta()


async def consume_at(handler: FakeHandler, delivery: FakeMessage, time: StorageTime) -> list[str]:
    made = context(handler.scene, now=time.now)
    queue = RequestQueue(handler, RULES, made, time=TimeSource(time.learn))
    return await settled(queue, delivery)


@pytest.mark.parametrize("minutes", [-6, 60 * 24 * 8])
async def test_a_worker_whose_clock_is_off_refuses_no_fresh_request(minutes: int) -> None:
    """It asks the storage for the time before it refuses."""
    scene = Scene()
    steps = await consume_at(
        FakeHandler(scene), message(scene), StorageTime(timedelta(minutes=minutes))
    )
    assert steps == ["served", "published", "after", "ack"]


async def test_a_time_that_cannot_be_learned_refuses_nothing() -> None:
    scene = Scene()
    time = StorageTime(timedelta(minutes=-6), StorageUnavailableError("x"))
    steps = await consume_at(FakeHandler(scene), message(scene), time)
    assert steps == ["retry", "keyturn.upload storage_unavailable 0 1s", "ack"]


def _with_an_unknown_time(scene: Scene, off: timedelta) -> RequestQueue:
    """A worker that has just met a storage whose clock is off."""
    return RequestQueue(
        FakeHandler(scene),
        RULES,
        context(scene, now=lambda: datetime.now(UTC) + off),
        time=TimeSource(is_known=lambda: False),
    )


@pytest.mark.parametrize("off", [{"minutes": -6}, {"days": 8}, {"days": 30}])
async def test_a_time_that_is_not_known_for_two_leases_refuses_nothing(off: dict[str, int]) -> None:
    """The first answer of a slow front end had every fresh request refused for good."""
    scene = Scene()
    queue = _with_an_unknown_time(scene, timedelta(**off))
    steps = await settled(queue, message(scene))
    waits = ["retry", "keyturn.upload storage_unavailable 0 1s", "ack"]
    assert steps == ["checked", *waits]


@pytest.mark.parametrize("age", [{"minutes": -6}, {"days": 8}])
async def test_what_both_clocks_call_expired_is_refused_at_once(age: dict[str, int]) -> None:
    scene = Scene()
    requested_at = format_time(datetime.now(UTC) - timedelta(**age))
    queue = _with_an_unknown_time(scene, timedelta(seconds=2))
    steps = await settled(queue, message(scene, document(requested_at=requested_at)))
    assert steps[:3] == ["checked", "dead", "keyturn.upload request_expired"]


@pytest.mark.parametrize("off", [{"hours": 3}, {"days": -30}])
async def test_a_known_time_refuses_though_the_workers_own_clock_is_off(
    off: dict[str, int],
) -> None:
    """Otherwise such a worker would put off each expired request until its retries end."""
    scene = Scene()

    def now() -> datetime:
        return datetime.now(UTC) + timedelta(**off)

    made = context(scene, now=now)
    queue = RequestQueue(FakeHandler(scene), RULES, made, time=TimeSource(is_known=lambda: True))
    requested_at = format_time(now() - timedelta(days=8))
    steps = await settled(queue, message(scene, document(requested_at=requested_at)))
    assert steps[:3] == ["checked", "dead", "keyturn.upload request_expired"]


class Sweeps(FakeHandler):
    """Serves sweeps."""

    origin: RequestOrigin | None = None

    async def serve(
        self, request: Request, origin: RequestOrigin, *, seen_before: bool, attempts: int = 0
    ) -> Handled:
        assert (request.type, seen_before, attempts) == ("sweep.requested", False, 0)
        self.origin = origin
        return Handled(None, {})


async def test_the_person_whom_a_request_names_comes_with_its_origin() -> None:
    scene = Scene()
    sweep = {"type": "sweep.requested", "sweep_id": UPLOAD_ID, "project": "acme", "actor": "ada"}
    delivery = message(scene, json.dumps(sweep | {"requested_at": format_time(utc_now())}).encode())
    delivery.routing_key = "sweep.requested"
    handler = Sweeps(scene, queue="keyturn.control", served=("sweep.requested",))
    assert await consume(handler, delivery) == ["ack"]
    assert handler.origin == RequestOrigin.of("api", delivery.body)
    assert handler.origin.actor == "ada"


async def test_a_failed_cleanup_causes_no_second_dead_letter() -> None:
    """What it leaves is swept away by its age."""
    scene = Scene("cleaned up already_exists")
    steps = await consume(FakeHandler(scene, AlreadyExistsError("k")), message(scene))
    assert steps.count("dead") == 1
    assert steps[-2:] == ["cleaned up already_exists failed", "ack"]


class Changing:
    """Grants that an operator changes: `after` is what the file says once it is read again."""

    def __init__(self, after: dict[str, Grant], pending: str = "") -> None:
        self.grants: dict[str, Grant] = {}
        self._after = after
        self._pending = pending

    async def refresh(self) -> bool:
        changed = self.grants != self._after
        self.grants.update(self._after)
        return changed

    def is_pending(self, publisher: object) -> bool:
        return publisher == self._pending


async def consume_by(handler: FakeHandler, delivery: FakeMessage, changing: Changing) -> list[str]:
    rules = Rules("test", changing.grants, timedelta(days=7))
    grants = cast("GrantsKeeper", changing)
    queue = RequestQueue(handler, rules, context(handler.scene), grants=grants)
    return await settled(queue, delivery)


async def test_the_grants_are_read_again_before_an_unknown_publisher_is_refused() -> None:
    """SPEC 6.3: its grant may be a second old, and this worker not know of it yet."""
    scene = Scene()
    changing = Changing(dict(RULES.publishers))
    done = ["served", "published", "after", "ack"]
    assert await consume_by(FakeHandler(scene), message(scene), changing) == done


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (Grant((), ALL, ALL), "bad_signature"),
        (Grant(RULES.publishers["api"].keys, frozenset(), ALL), "not_permitted"),
    ],
)
async def test_a_new_key_or_grant_applies_to_the_next_message(before: Grant, code: str) -> None:
    scene = Scene()
    changing = Changing(dict(RULES.publishers))
    changing.grants["api"] = before
    assert "served" in await consume_by(FakeHandler(scene), message(scene), changing)
    scene.steps.clear()
    unchanged = Changing({"api": before})
    unchanged.grants["api"] = before
    steps = await consume_by(FakeHandler(scene), message(scene), unchanged)
    assert f"keyturn.upload {code}" in steps


async def test_a_publisher_without_a_stream_yet_is_not_refused() -> None:
    """Nor keeps its message a place until the stream is there: anyone can name a publisher."""
    scene = Scene()
    steps = await consume_by(FakeHandler(scene), message(scene), Changing({}, pending="api"))
    assert steps == ["retry", "keyturn.upload 30.0s", "ack"]


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
        (REFUSED, "dead", ["served", "dead failed", "given back"]),
        (REFUSED, "published", ["served", "dead", "*", "published failed", "given back"]),
        (WAITING, "retry", ["served", "retry failed", "given back"]),
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


_SERVED_TWICE: list[str] = [
    *("served", "recorded", "published failed"),
    *("served", "published failed"),
    *("served", "published", "after"),
]
_REFUSED_TWICE: list[str] = [
    *("served", "recorded already_exists", "dead", "*", "published failed"),
    *("served", "published failed"),
    *("served", "published", "cleaned"),
]


@pytest.mark.parametrize(
    ("error", "failing", "expected"),
    [
        (None, "published", _SERVED_TWICE),
        # One letter and one record, however often its event is refused.
        (AlreadyExistsError("k"), "published", _REFUSED_TWICE),
    ],
)
async def test_what_is_not_confirmed_is_served_again_in_its_place(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, failing: str, expected: list[str]
) -> None:
    """Given back each time, it would use up its deliveries."""
    monkeypatch.setattr(settlement, "hold_s", lambda _: 60)
    monkeypatch.setattr(settlement, "_PAUSE_S", 0)
    scene = Scene(failing, failures=2)
    handler = FakeHandler(scene, error)
    steps = await consume(handler, message(scene), audit=FakeAudit(scene))
    short = [step.removesuffix(" up already_exists") for step in steps]
    assert [step if "keyturn." not in step else "*" for step in short] == [*expected, "ack"]
    assert handler.seen_before


async def test_an_event_and_its_dead_letter_have_the_same_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Served again, a request may be refused for another reason: its key was deleted meanwhile."""
    monkeypatch.setattr(settlement, "hold_s", lambda _: 60)
    monkeypatch.setattr(settlement, "_PAUSE_S", 0)
    scene = Scene("published", failures=1)

    class Changing(FakeHandler):
        async def serve(self, request: Request, origin: RequestOrigin, **how: Any) -> Handled:
            self.error = DeletedKeyError("k") if self.error else AlreadyExistsError("k")
            return await super().serve(request, origin, **how)

    steps = await consume(Changing(scene), message(scene))
    letters = [step.split()[1] for step in steps if step.startswith("keyturn.upload ")]
    assert letters == ["already_exists", "deleted_key"]
    assert [event.code for event in scene.events if isinstance(event, Rejected)] == ["deleted_key"]


@pytest.mark.parametrize(
    ("case", "failing"), [(REFUSED, "dead"), (REFUSED, "published"), (MALFORMED, "dead")]
)
async def test_a_bug_in_an_answer_keeps_no_place(
    monkeypatch: pytest.MonkeyPatch, case: Case, failing: str
) -> None:
    """As many such messages as the prefetch would stop the queue for hours."""
    monkeypatch.setattr(settlement, "hold_s", lambda _: 3600)
    scene = Scene(failing, error=ZeroDivisionError())
    error, body = case
    async with asyncio.timeout(20):
        steps = await consume(FakeHandler(scene, error), message(scene, body))
    assert steps[-3:] == ["retry", "keyturn.upload 600.0s", "ack"]


async def test_a_message_that_can_be_neither_settled_nor_copied_is_given_back_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At its limit of deliveries the broker makes it a dead letter."""
    monkeypatch.setattr(settlement, "hold_s", lambda before: 3600 if before else 0)
    scene = Scene("retry", error=ZeroDivisionError())
    delivery = message(scene)
    delivery.redelivered = True
    async with asyncio.timeout(20):
        steps = await consume(FakeHandler(scene, ZeroDivisionError()), delivery)
    assert steps[-2:] == ["retry failed", "given back"]


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_nothing_is_held_by_a_process_that_ends(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(settlement, "hold_s", lambda _: 60)
    scene = Scene("published")
    own = context(scene)
    if when == "before":
        own.ending.set()
    else:
        asyncio.get_running_loop().call_later(0.05, own.ending.set)
    async with asyncio.timeout(20):
        steps = await settled(RequestQueue(FakeHandler(scene), RULES, own), message(scene))
    assert steps == ["served", "published failed", "given back"]


async def test_a_message_that_came_back_often_is_copied_before_anything_is_tried() -> None:
    """Its copy begins anew: the broker would make it a dead letter, and no event would say so."""
    scene = Scene()
    delivery = message(scene)
    delivery.redelivered = True
    delivery.headers["x-delivery-count"] = RENEWED_AFTER
    assert await consume(FakeHandler(scene), delivery) == ["retry", "keyturn.upload 600.0s", "ack"]


async def test_a_canceled_delivery_is_neither_acknowledged_nor_given_back() -> None:
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


@pytest.mark.parametrize("error", [None, AlreadyExistsError("k"), StorageUnavailableError("x")])
async def test_a_log_that_cannot_be_written_keeps_no_delivery(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as on a full disk. What the line would say is durable."""
    scene, full = Scene(), Mock(side_effect=OSError)
    for module in (settlement, requests):
        monkeypatch.setattr(module, "_log", Mock(info=full, warning=full, exception=full))
    await consume(FakeHandler(scene, error), message(scene))
    assert scene.steps[-1] == "ack"
    full.assert_called()


@pytest.mark.slow
async def test_what_did_not_become_durable_is_not_counted_as_done() -> None:
    """It was taken, and comes again; its end is counted then."""
    for error, failing in (
        (None, "published"),
        (AlreadyExistsError("k"), "dead"),
        (StorageUnavailableError("x"), "retry"),
    ):
        metrics, scene = WorkerMetrics(), Scene(failing)
        await consume(FakeHandler(scene, error), message(scene), metrics)
        ends = ("served", "refused", "retries")
        assert not [name for name in risen(metrics) if any(end in name for end in ends)]
