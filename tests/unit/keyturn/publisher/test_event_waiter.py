"""Which event answers a try of a request and which ends it, without a network (SPEC 6.7)."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.messages import (
    COUNT_FIELDS,
    DeleteRejected,
    DeleteRequested,
    Event,
    ObjectDeleted,
    RequestOrigin,
    RotationAccepted,
    RotationCompleted,
    RotationFailed,
    RotationRejected,
    RotationRequested,
    SealedSecret,
    StatusReported,
    StatusRequested,
    SweepCompleted,
    SweepProgressed,
    SweepRequested,
    encode,
    encode_batch,
    with_origin,
)
from keyturn.publisher import (
    NotDeliveredError,
    NotSentHereError,
    OutcomeUnknownError,
    PublisherError,
    WaitTimeoutError,
)
from keyturn.publisher.event_stream import StreamRecord, Verifier
from keyturn.publisher.event_waiter import EventWaiter, claimed_ids
from keyturn.publisher.requests import new_id
from tools.generate.examples import PUBLISHER, ROTATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable

_KEY = SigningKey.from_seed(b"e" * 32)
_VERIFY = VerifyKey.from_bytes(_KEY.public_bytes)
_AT = "2026-11-24T10:00:00Z"
_COUNTS: dict[str, Any] = dict.fromkeys(COUNT_FIELDS, 0) | {"clean": True}
_FIELDS: dict[str, Any] = {"rotation_id": ROTATION_ID, "project": "acme", "at": _AT}
_ACCEPTED = RotationAccepted(**_FIELDS, generation=2)
_PROGRESS = SweepProgressed(sweep_id=ROTATION_ID, project="acme", at=_AT, **_COUNTS)
_COMPLETED = RotationCompleted(**_FIELDS, **_COUNTS)
_FAILED = RotationFailed(**_FIELDS, code="keyring_rolled_back", detail="")
_REFUSED = RotationRejected(**_FIELDS, code="kek_reused", detail="")


class _Rotation:
    """A try of the rotation: its bytes, and what answers them."""

    _numbers = itertools.count()

    def __init__(self, **fields: Any) -> None:
        at = f"2026-11-24T09:00:00.{next(self._numbers):06}Z"
        given = {"rotation_id": ROTATION_ID, "project": "acme", "requested_at": at} | fields
        sealed = SealedSecret(intake_key="main", ciphertext="")
        self.request = RotationRequested(**given, sealed_kek=sealed)
        self.body = encode(self.request)
        self.origin = RequestOrigin.of(PUBLISHER, self.body)

    def __call__(self, event: Event, **fields: Any) -> Event:
        """The event as the answer to this try."""
        published: Any = with_origin(event, self.origin)
        answer: Event = published.model_copy(update=fields)
        return answer


class _Reading(EventWaiter):
    """A waiter whose shared reader is the test."""

    def __init__(self) -> None:
        super().__init__(None, Verifier("test", [_VERIFY]), PUBLISHER)  # type: ignore[arg-type]
        self._reader_from = self._opened_at
        self._offset = 0

    def _covers(self, sent: object) -> bool:
        return sent is not None

    def send(self, raises: BaseException | None = None, **fields: Any) -> _Rotation:
        """Send a try, and have the broker say what became of it."""
        one = _Rotation(**fields)
        failures = (NotDeliveredError, OutcomeUnknownError)
        with suppress(*failures), self.sending(one.request, one.body):
            if raises is not None:
                raise raises
        return one

    def request_status(self) -> StatusReported:
        """Request a report; return the one that answers it."""
        request = StatusRequested(
            request_id=new_id(), project="*", requested_at=_AT, view="projects"
        )
        body = encode(request)
        with self.sending(request, body):
            pass
        report = StatusReported(request_id=request.request_id, project="*", at=_AT, view="projects")
        return with_origin(report, RequestOrigin.of(PUBLISHER, body))

    def publish(self, *events: Event) -> None:
        for event in events:
            body = encode(event)
            self._handle(StreamRecord(self._offset, body, _KEY.sign_event("test", body)))
            self._offset += 1

    def begin(self, *, ended: bool = False) -> asyncio.Task[Event]:
        return asyncio.create_task(self.wait(ROTATION_ID, timeout_s=20, ended=ended))

    async def answer(self) -> Event | None:
        return await self._now(ended=False)

    async def end(self) -> Event | None:
        return await self._now(ended=True)

    async def _now(self, *, ended: bool) -> Event | None:
        try:
            return await self.wait(ROTATION_ID, timeout_s=0.01, ended=ended)
        except WaitTimeoutError:
            return None


@pytest.fixture
def waiter() -> _Reading:
    return _Reading()


@pytest.fixture
def first(waiter: _Reading) -> _Rotation:
    """The first try, which the broker confirmed."""
    return waiter.send()


async def test_a_rotation_is_answered_when_accepted_and_ended_when_completed(
    waiter: _Reading, first: _Rotation
) -> None:
    async with asyncio.TaskGroup() as group:
        answer = group.create_task(waiter.wait(ROTATION_ID, timeout_s=20))
        end = group.create_task(waiter.wait(ROTATION_ID, timeout_s=20, ended=True))
        await asyncio.sleep(0)  # both wait now
        waiter.publish(first(_PROGRESS), first(_ACCEPTED), first(_PROGRESS), first(_COMPLETED))
    assert (answer.result(), end.result()) == (first(_ACCEPTED), first(_COMPLETED))
    assert waiter._waiting == {}


@pytest.mark.parametrize(
    ("published", "answer", "end"),
    [
        ((_PROGRESS,), None, None),
        ((_ACCEPTED, _PROGRESS), _ACCEPTED, None),
        ((_ACCEPTED, _PROGRESS, _COMPLETED), _ACCEPTED, _COMPLETED),
        ((_ACCEPTED, _FAILED), _ACCEPTED, _FAILED),
        ((_REFUSED,), _REFUSED, _REFUSED),
        # An operator replayed it: it goes on.
        ((_REFUSED, _ACCEPTED), _ACCEPTED, None),
        ((_FAILED, _ACCEPTED), _ACCEPTED, None),
        ((_FAILED, _ACCEPTED, _COMPLETED), _ACCEPTED, _COMPLETED),
        # Delivered twice: neither another acceptance nor the refusal of a copy undoes anything.
        ((_ACCEPTED, _COMPLETED, _ACCEPTED), _ACCEPTED, _COMPLETED),
        ((_ACCEPTED, _REFUSED), _ACCEPTED, None),
        ((_ACCEPTED, _REFUSED, _COMPLETED, _REFUSED), _ACCEPTED, _COMPLETED),
        ((_COMPLETED, _REFUSED), _COMPLETED, _COMPLETED),
    ],
    ids=lambda events: "-".join(e.type for e in events) if isinstance(events, tuple) else "",
)
@pytest.mark.parametrize("waits", ["before", "after"])
async def test_the_answer_and_the_end_of_what_was_published(
    waiter: _Reading,
    first: _Rotation,
    published: tuple[Event, ...],
    answer: Event | None,
    end: Event | None,
    waits: str,
) -> None:
    early = [waiter.begin(), waiter.begin(ended=True)] if waits == "before" else []
    await asyncio.sleep(0)
    waiter.publish(*(first(event) for event in published))
    assert await waiter.answer() == (answer and first(answer))
    assert await waiter.end() == (end and first(end))
    # A wait ends with the first event that ends it, whatever comes later.
    for wait, expected in zip(early, (answer, end), strict=False):
        if expected is not None:
            assert await wait in [first(event) for event in published]
        wait.cancel()


async def test_waits_end_with_the_publisher(waiter: _Reading) -> None:
    waiter.send()
    waiting = waiter.begin()
    await asyncio.sleep(0)
    await waiter.close()
    with pytest.raises(PublisherError, match="closed"):
        await waiting


# What belongs to another request.


@pytest.mark.parametrize(
    "other",
    [{"publisher": "mallory"}, {"project": "bob"}, {"publisher": "mallory", "project": None}],
    ids=["of the same project", "of another project", "of no project"],
)
@pytest.mark.parametrize("published", [_ACCEPTED, _REFUSED, _COMPLETED, _FAILED])
async def test_another_publishers_request_of_the_same_id_answers_nothing(
    waiter: _Reading, first: _Rotation, published: Event, other: dict[str, Any]
) -> None:
    waiting, ending = waiter.begin(), waiter.begin(ended=True)
    await asyncio.sleep(0)
    if "project" not in other or other["project"] is not None or published is _REFUSED:
        waiter.publish(first(published, **other))
    assert await waiter.answer() is None
    waiter.publish(first(_ACCEPTED), first(_COMPLETED))
    assert (await waiting, await ending) == (first(_ACCEPTED), first(_COMPLETED))


async def test_a_sweep_under_the_id_of_a_rotation_does_not_end_it(
    waiter: _Reading, first: _Rotation
) -> None:
    """Of the same publisher even: the events of a sweep and of a rotation differ in type."""
    swept = SweepCompleted(sweep_id=ROTATION_ID, project="acme", at=_AT, **_COUNTS)
    waiter.publish(first(swept))
    assert await waiter.end() is None


async def test_an_id_used_for_another_request_leaves_the_first_ones_wait_alone(
    waiter: _Reading, first: _Rotation
) -> None:
    waiting = waiter.begin()
    await asyncio.sleep(0)
    other = waiter.send(project="bob")
    waiter.publish(other(_ACCEPTED, project="bob"))
    assert not waiting.done()
    assert await waiter.answer() == other(_ACCEPTED, project="bob")
    waiter.publish(first(_REFUSED))
    assert await waiting == first(_REFUSED)


async def test_an_id_used_for_another_request_answers_no_try_that_may_be_lost(
    waiter: _Reading,
) -> None:
    one, other = _Rotation(), _Rotation(project="bob")
    with suppress(OutcomeUnknownError), waiter.sending(one.request, one.body):
        waiting = waiter.begin()
        await asyncio.sleep(0)
        with waiter.sending(other.request, other.body):
            pass
        raise OutcomeUnknownError
    waiter.publish(other(_REFUSED, project="bob"))
    assert not waiting.done()
    waiter.publish(one(_ACCEPTED))
    assert await waiting == one(_ACCEPTED)


async def test_an_event_that_names_no_request_is_not_believed(
    waiter: _Reading, first: _Rotation
) -> None:
    waiter.publish(_ACCEPTED, _REFUSED, _COMPLETED)
    assert await waiter.answer() is None
    waiter.publish(first(_ACCEPTED), first(_COMPLETED))
    assert await waiter.end() == first(_COMPLETED)


# Tries.


@pytest.mark.parametrize(
    "published",
    [(_REFUSED,), (_ACCEPTED, _COMPLETED), (_ACCEPTED, _FAILED), (_ACCEPTED,)],
    ids=["no", "done", "failed", "yes"],
)
async def test_what_answered_an_earlier_try_answers_no_later_one(
    waiter: _Reading, first: _Rotation, published: tuple[Event, ...]
) -> None:
    answers = [first(event) for event in published]
    waiter.publish(*answers)
    second = waiter.send()
    waiter._offset = 0
    waiter.publish(*answers)  # a restarted reader, or a broker writer's copies
    assert await waiter.answer() is None
    assert await waiter.end() is None
    waiter.publish(second(_ACCEPTED), second(_COMPLETED))
    assert await waiter.answer() == second(_ACCEPTED)
    assert await waiter.end() == second(_COMPLETED)


async def test_an_old_unread_refusal_answers_no_later_attempt(
    waiter: _Reading, first: _Rotation
) -> None:
    second = waiter.send()
    waiting = waiter.begin()
    await asyncio.sleep(0)
    waiter.publish(first(_REFUSED))
    assert not waiting.done()
    waiter.publish(second(_ACCEPTED))
    assert await waiting == second(_ACCEPTED)


async def test_both_tries_are_answered_each_to_its_own_wait(
    waiter: _Reading, first: _Rotation
) -> None:
    """The first message may well be served after the second was sent."""
    early = waiter.begin()
    await asyncio.sleep(0)
    second = waiter.send()
    late, end = waiter.begin(), waiter.begin(ended=True)
    await asyncio.sleep(0)
    waiter.publish(first(_ACCEPTED))
    assert await early == first(_ACCEPTED)
    assert not late.done()
    waiter.publish(second(_REFUSED))
    assert await late == second(_REFUSED)
    assert await end == second(_REFUSED)


async def test_a_later_refusal_does_not_end_an_earlier_trys_wait(
    waiter: _Reading, first: _Rotation
) -> None:
    end = waiter.begin(ended=True)
    await asyncio.sleep(0)
    waiter.publish(first(_ACCEPTED))
    second = waiter.send()
    waiter.publish(second(_REFUSED))
    assert not end.done()
    waiter.publish(first(_COMPLETED))
    assert await end == first(_COMPLETED)


async def test_the_end_of_a_sweep_ends_it_for_every_try(waiter: _Reading, first: _Rotation) -> None:
    """One published for another attempt, after this one was sent: it is the same sweep's."""
    waiter.send()
    waiter.publish(first(_COMPLETED))
    assert await waiter.end() == first(_COMPLETED)


@pytest.mark.parametrize(
    "became_of_it",
    [OutcomeUnknownError, asyncio.CancelledError, NotDeliveredError],
    ids=["unknown", "canceled", "not delivered"],
)
@pytest.mark.parametrize("began", ["before", "meanwhile", "after"])
async def test_where_a_try_may_not_have_arrived_the_one_before_answers_too(
    waiter: _Reading, first: _Rotation, became_of_it: type[BaseException], began: str
) -> None:
    waits: list[asyncio.Task[Event]] = []
    second = _Rotation()
    if began == "before":
        waits.append(waiter.begin())
        await asyncio.sleep(0)
    with pytest.raises(became_of_it):
        await _sent(waiter, second, became_of_it, waits if began == "meanwhile" else None)
    if began == "after":
        waits.append(waiter.begin())
        await asyncio.sleep(0)
    waiter.publish(first(_ACCEPTED))
    assert await waits[0] == first(_ACCEPTED)
    assert await waiter.answer() == first(_ACCEPTED)


async def _sent(
    waiter: _Reading,
    one: _Rotation,
    error: type[BaseException],
    waits: list[asyncio.Task[Event]] | None,
) -> None:
    with waiter.sending(one.request, one.body):
        if waits is not None:
            waits.append(waiter.begin())
            await asyncio.sleep(0)
        raise error


async def test_an_answer_that_came_while_a_try_was_under_way_is_not_lost(
    waiter: _Reading, first: _Rotation
) -> None:
    second = _Rotation()
    with suppress(NotDeliveredError), waiter.sending(second.request, second.body):
        waiter.publish(first(_REFUSED))
        waiting = waiter.begin()
        await asyncio.sleep(0)
        assert not waiting.done()  # the second may yet arrive, and be answered
        raise NotDeliveredError
    assert await waiting == first(_REFUSED)
    assert await waiter.answer() == first(_REFUSED)


async def test_a_wait_for_a_try_that_may_be_lost_is_ended_by_the_next(waiter: _Reading) -> None:
    waiter.send(OutcomeUnknownError())
    waiting = waiter.begin()
    await asyncio.sleep(0)
    second = waiter.send()
    waiter.publish(second(_REFUSED))
    assert await waiting == second(_REFUSED)


async def test_two_tries_at_once_are_each_answered(waiter: _Reading) -> None:
    one, two = _Rotation(), _Rotation()
    with waiter.sending(one.request, one.body):
        waiting = waiter.begin()
        await asyncio.sleep(0)
        with pytest.raises(NotDeliveredError), waiter.sending(two.request, two.body):
            raise NotDeliveredError
    waiter.publish(one(_ACCEPTED))
    assert await waiting == one(_ACCEPTED)
    assert await waiter.answer() == one(_ACCEPTED)


@pytest.mark.slow
@given(st.lists(st.sampled_from(["sent", "unknown", "not", "published"]), max_size=30))
def test_memory_of_tries_is_bounded_and_the_last_one_is_answered(steps: list[str]) -> None:
    async def run() -> None:
        waiter = _Reading()
        tries = [waiter.send()]
        outcomes = {"sent": None, "unknown": OutcomeUnknownError(), "not": NotDeliveredError()}
        for step in steps:
            if step == "published":
                waiter.publish(tries[-1](_REFUSED))
            else:
                tries.append(waiter.send(outcomes[step]))
        assert len(waiter._sent[ROTATION_ID].attempts) <= 8
        last = waiter.send()
        assert await waiter.answer() is None
        waiter.publish(last(_ACCEPTED))
        assert await waiter.answer() == last(_ACCEPTED)

    asyncio.run(run())


# Requests of others, and memory.


async def test_a_request_of_another_process_needs_its_project_and_type(waiter: _Reading) -> None:
    waits: list[Callable[[], Any]] = [
        lambda: waiter.wait(ROTATION_ID, timeout_s=1),
        lambda: waiter.wait(ROTATION_ID, timeout_s=1, project="acme"),
        lambda: waiter.wait(ROTATION_ID, timeout_s=1, request_type="rotation.requested"),
        lambda: anext(waiter.progress(ROTATION_ID)),
    ]
    for begin in waits:
        with pytest.raises(NotSentHereError, match="name its project and request_type"):
            await begin()
    waiter.send()
    with pytest.raises(NotSentHereError):  # what was sent under this id was another request
        await waiter.wait(ROTATION_ID, timeout_s=1, project="bob")


@given(st.binary(max_size=80))
def test_any_bytes_claim_an_id_or_none(body: bytes) -> None:
    assert claimed_ids(body) == ()


async def test_a_batch_answers_each_request_that_it_has_an_event_of(
    waiter: _Reading, first: _Rotation
) -> None:
    other = _Rotation(rotation_id=new_id())
    events = [encode(one(_ACCEPTED, rotation_id=one.request.rotation_id)) for one in (other, first)]
    body = encode_batch("rotation.accepted", [events[0], b'{"type":"unknown"}', events[1]])
    waiter._handle(StreamRecord(0, body, _KEY.sign_events("test", body)))
    assert await waiter.answer() is not None


@pytest.mark.parametrize(
    ("body", "claimed"),
    [
        (b'{"type": "upload.stored", "upload_id": "a", "sweep_id": "b"}', ("a",)),
        (b'{"type": "upload.stored", "sweep_id": "b"}', ()),
        (b'{"type": "upload.stored", "upload_id": 1}', ()),
        (b'{"type": "upload.requested", "upload_id": "a"}', ()),
        (b'{"type": 1, "upload_id": "a"}', ()),
        (
            b'{"type": "upload.stored", "events": [{"upload_id": "a"}, 1, {}, {"upload_id": "b"}]}',
            ("a", "b"),
        ),
        (b'{"type": "upload.stored", "upload_id": "a", "events": 1}', ("a",)),
        (b'["upload_id"]', ()),
    ],
)
def test_the_id_is_read_from_the_field_of_the_events_own_type(
    body: bytes, claimed: tuple[str, ...]
) -> None:
    assert claimed_ids(body) == claimed


def test_memory_of_what_was_sent_is_bounded() -> None:
    waiter = EventWaiter(None, None, PUBLISHER, max_tracked=100)  # type: ignore[arg-type]
    ids = [f"00000000-0000-4000-8000-{number:012}" for number in range(1000)]
    for sweep_id in ids:
        request = SweepRequested(sweep_id=sweep_id, project="acme", requested_at=_AT)
        with waiter.sending(request, encode(request)):
            pass
    assert list(waiter._sent) == ids[900:]


async def test_many_reports_are_awaited_at_once_and_each_wait_gets_its_own(
    waiter: _Reading,
) -> None:
    reports = [waiter.request_status() for _ in range(50)]
    waits = [
        asyncio.create_task(waiter.wait(report.request_id, timeout_s=20)) for report in reports
    ]
    await asyncio.sleep(0)
    waiter.publish(*reversed(reports))
    assert await asyncio.gather(*waits) == reports


async def test_a_report_that_comes_before_its_wait_is_kept_until_then(waiter: _Reading) -> None:
    report = waiter.request_status()
    waiter.publish(report)
    assert await waiter.wait(report.request_id, timeout_s=20) == report
    with pytest.raises(NotSentHereError):
        await waiter.wait(report.request_id, timeout_s=20)


async def test_no_report_stays_in_memory_after_its_wait(waiter: _Reading) -> None:
    """A console requests them for months; each can be as large as a page of 1,000 rows."""
    answered, late = waiter.request_status(), waiter.request_status()
    both = [asyncio.create_task(waiter.wait(answered.request_id, timeout_s=20)) for _ in "ab"]
    await asyncio.sleep(0)
    waiter.publish(answered)
    assert await asyncio.gather(*both) == [answered, answered]
    with pytest.raises(WaitTimeoutError):
        await waiter.wait(late.request_id, timeout_s=0.01)
    waiter.publish(late)
    assert not waiter._sent


async def test_silence_names_what_it_can_mean(waiter: _Reading) -> None:
    """Workers publish no event of a request whose publisher they do not know (SPEC 6.3)."""
    sent = waiter.send()
    with pytest.raises(WaitTimeoutError) as raised:
        await waiter.wait(ROTATION_ID, timeout_s=0.01)
    for said in (ROTATION_ID, "0.01 s", f"publisher '{PUBLISHER}'", "deployment 'test'"):
        assert said in str(raised.value)
    assert "keyturn.unsigned.dead" in str(raised.value)
    assert "ignored" not in str(raised.value)

    body = encode(sent(_ACCEPTED))
    waiter._handle(StreamRecord(0, body, _KEY.sign_event("another", body)))
    with pytest.raises(WaitTimeoutError, match="1 events were ignored: no event key verifies"):
        await waiter.wait(ROTATION_ID, timeout_s=0.01)


async def test_a_request_for_a_report_that_was_sent_again_is_not_forgotten(
    waiter: _Reading,
) -> None:
    report = waiter.request_status()
    wait = asyncio.create_task(waiter.wait(report.request_id, timeout_s=20))
    await asyncio.sleep(0)
    again = StatusRequested(
        request_id=report.request_id, project="*", requested_at=_AT, view="projects", limit=7
    )
    body = encode(again)
    with waiter.sending(again, body):
        pass
    waiter.publish(report)
    assert await wait == report
    second = with_origin(report, RequestOrigin.of(PUBLISHER, body))
    waiter.publish(second)
    assert await waiter.wait(report.request_id, timeout_s=20) == second


class _Delete:
    """A delete of some keys that was sent, and its outcomes."""

    def __init__(self, waiter: _Reading, *keys: str) -> None:
        self.id = new_id()
        request = DeleteRequested(request_id=self.id, project="acme", keys=keys, requested_at=_AT)
        body = encode(request)
        self._origin = RequestOrigin.of(PUBLISHER, body)
        with waiter.sending(request, body):
            pass

    def done(self, key: str) -> Event:
        return self._event(ObjectDeleted, key=key)

    def refused(self, key: str | None) -> Event:
        return self._event(DeleteRejected, key=key, code="locked_object", detail="")

    def _event(self, model: Any, **fields: Any) -> Event:
        event: Event = with_origin(
            model(request_id=self.id, project="acme", at=_AT, **fields), self._origin
        )
        return event


async def test_a_delete_of_many_keys_is_answered_once_each_has_its_outcome(
    waiter: _Reading,
) -> None:
    delete = _Delete(waiter, "a", "b", "c")
    wait = asyncio.create_task(waiter.wait(delete.id, timeout_s=20))
    await asyncio.sleep(0)
    waiter.publish(delete.done("a"), delete.refused("b"), delete.done("a"), delete.done("other"))
    await asyncio.sleep(0)
    assert not wait.done()
    known = {"a": delete.done("a"), "b": delete.refused("b")}
    assert waiter.outcomes(delete.id) == known
    waiter.publish(delete.done("c"))
    assert await wait == delete.done("c")
    assert waiter.outcomes(delete.id) == {**known, "c": delete.done("c")}


async def test_a_refusal_of_the_whole_delete_answers_each_key(waiter: _Reading) -> None:
    delete = _Delete(waiter, "a", "b")
    waiter.publish(delete.refused(None))
    assert await waiter.wait(delete.id, timeout_s=20) == delete.refused(None)
    assert waiter.outcomes(delete.id) == dict.fromkeys("ab", delete.refused(None))


async def test_what_is_deleted_is_not_refused_by_a_copy_of_the_request(waiter: _Reading) -> None:
    delete = _Delete(waiter, "a", "b")
    waiter.publish(delete.done("a"), delete.refused("a"), delete.refused(None))
    assert waiter.outcomes(delete.id) == {"a": delete.done("a"), "b": delete.refused(None)}


def test_a_delete_counts_once_for_each_key_in_what_is_remembered() -> None:
    waiter = _Reading()
    waiter._max_tracked = 100
    first, second = _Delete(waiter, *map(str, range(60))), _Delete(waiter, *map(str, range(60)))
    assert list(waiter._sent) == [second.id]
    with pytest.raises(NotSentHereError):
        waiter.outcomes(first.id)
    _Delete(waiter, *map(str, range(40)))
    assert len(waiter._sent) == 2
