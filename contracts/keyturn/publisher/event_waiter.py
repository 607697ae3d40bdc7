"""Waiting for the event that answers a request (SPEC 6.7).

One reader of the stream serves every wait for requests sent by this publisher itself. It begins a
little before the publish, so that it also finds an event that is published before anyone waits. A
wait for another process's request reads the stream by itself.

Most requests have one event, which answers and ends them. A rotation is answered by
`rotation.accepted` and ended by `rotation.completed`; `sweep.progressed` answers nothing.

A request that is sent again under its id is a new attempt with its own answer. A wait accepts the
answer to the attempt that was the newest when the wait began. If the publish of that attempt was
not confirmed, it may be on its queue or not: the answers to the attempts since the last confirmed
one count, too.

A delete of many keys is answered once every key has an outcome.

Memory is bounded: the last attempts of at most `max_tracked` requests and their answers are
remembered; a delete counts once for each key. The oldest are forgotten first; a wait for a
forgotten one is like a wait for another process's request. Reports of status are large and
requested all the time: a request for one is forgotten as soon as a wait for it ends, even without
an answer.

It must never accept an event by its id alone: the signature is checked first, then everything else
that `EventMatcher` requires.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from keyturn.errors import NotSentHereError, PublisherError, WaitTimeoutError
from keyturn.messages.codec import encode, id_field, parse_event, request_id
from keyturn.messages.events import (
    DeleteRejected,
    Event,
    Failed,
    ObjectDeleted,
    Rejected,
    RotationAccepted,
)
from keyturn.messages.requests import Request
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_matcher import EventMatcher, RequestType, is_answer, is_end
from keyturn.publisher.event_stream import Start, StreamRecord, Verifier, follow
from keyturn.tasks import cancel_all
from keyturn.topology import PUBLISHER_EVENTS, UNSIGNED_DEAD_QUEUE, publisher_stream

MAX_TRACKED: Final = 100_000
# The stream's times are the broker's, to the second; ours may run ahead of them.
CLOCK_TOLERANCE_S: Final = 30
_LOOK_BACK: Final = timedelta(minutes=15)
_MAX_CONCURRENT_SCANS: Final = 64
_MAX_ATTEMPTS: Final = 8
_ID_FIELDS: Final = {event_type: id_field(event_type) for event_type in PUBLISHER_EVENTS}
# Their answers are large, and stale once read.
_FORGOTTEN_REQUESTS: Final = ("status.requested",)


@dataclass(slots=True, eq=False)
class _Attempt:
    """One sending of a request, and the events that answered and ended it.

    Attributes:
        matcher: Decides which events belong to it.
        over: The ends of earlier attempts: published again, they end nothing.
        at: The time of its sending.
        is_doubtful: Whether its publish has ended without a confirmation.
        accepted: The event that says that a rotation has begun, as bytes.
        end: The last event, as bytes.
        outcomes: For a delete, the event of each key that has one, as bytes.
    """

    matcher: EventMatcher
    over: tuple[bytes, ...] = ()
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    is_doubtful: bool = False
    accepted: bytes | None = None
    end: bytes | None = None
    outcomes: dict[str, bytes] = field(default_factory=dict)

    def is_answered_by(self, event: Event) -> bool:
        """Return whether this event, whose signature was checked, belongs to this attempt."""
        if not self.matcher.matches(event):
            return False
        return not self.over or encode(event) not in self.over

    def record(self, event: Event) -> None:
        """Keep an event that answers or ends this attempt."""
        if isinstance(event, ObjectDeleted | DeleteRejected):
            self._record_outcome(event)
            return
        ended = None if self.end is None else parse_event(self.end)
        if isinstance(event, RotationAccepted):
            self.accepted = encode(event)
            if isinstance(ended, Rejected | Failed):  # an operator replayed it: it continues
                self.end = None
        elif isinstance(event, Rejected):
            # The same bytes, delivered twice: a rejection of the copy undoes nothing.
            if self.accepted is None and (ended is None or isinstance(ended, Rejected)):
                self.end = encode(event)
        elif is_end(event):
            self.end = encode(event)

    def _record_outcome(self, event: ObjectDeleted | DeleteRejected) -> None:
        """Keep the outcome of a key; a rejection of the whole request is that of each.

        The same bytes may be delivered twice: a rejection of the copy undoes no delete.
        """
        body = encode(event)
        for key in self.matcher.keys if event.key is None else (event.key,):
            known = self.outcomes.get(key)
            is_deleted = known is not None and isinstance(parse_event(known), ObjectDeleted)
            if isinstance(event, ObjectDeleted) or not is_deleted:
                self.outcomes[key] = body
        if len(self.outcomes) >= len(self.matcher.keys):
            self.end = body


class _SentRequest:
    """A request that was sent here, with its last attempts, oldest first."""

    def __init__(self) -> None:
        self._attempts: list[_Attempt] = []
        self.weight = 0
        """The number of its possible answers, its weight among the remembered requests."""

    def begin(self, matcher: EventMatcher) -> _Attempt:
        """Return a new attempt, now under way."""
        over = self.newest.over if self._attempts else ()
        for end in (one.end for one in self._attempts):
            # A rejection names the bytes that it rejects: it needs no note.
            if end is not None and end not in over and not isinstance(parse_event(end), Rejected):
                over = (*over, end)
        attempt = _Attempt(matcher, over[-_MAX_ATTEMPTS:])
        self._attempts = [*self._attempts, attempt][-_MAX_ATTEMPTS:]
        return attempt

    @property
    def newest(self) -> _Attempt:
        """The attempt that was sent last."""
        return self._attempts[-1]

    @property
    def attempts(self) -> list[_Attempt]:
        """The remembered attempts, oldest first."""
        return self._attempts

    def is_of(self, matcher: EventMatcher) -> bool:
        """Return whether this request, which has the matcher's id, is the same request."""
        mine = self.newest.matcher
        return (mine.request_type, mine.project) == (matcher.request_type, matcher.project)

    def accepted_for(self, attempt: _Attempt) -> list[_Attempt]:
        """Return the attempts whose answers a wait accepts.

        Args:
            attempt: The newest one when the wait began.
        """
        if not attempt.is_doubtful:
            return [attempt]
        first = self._attempts.index(attempt) if attempt in self._attempts else 0
        while first and self._attempts[first].is_doubtful:
            first -= 1
        return self._attempts[first:]

    @property
    def at(self) -> datetime:
        """The earliest moment from which an event may answer a wait that begins now."""
        return min(one.at for one in self.accepted_for(self.newest))


@dataclass(slots=True, eq=False)
class _Wait:
    """A caller that waits for the shared reader."""

    request: _SentRequest
    attempt: _Attempt
    ended: bool
    future: asyncio.Future[Event]

    def resolve(self) -> None:
        """End the wait if there is an outcome."""
        for one in reversed(self.request.accepted_for(self.attempt)):
            body = one.end if self.ended else one.accepted or one.end
            if body is not None and not self.future.done():
                self.future.set_result(parse_event(body))


class EventWaiter:
    """Waits for the events of requests.

    Args:
        connection: The broker.
        verifier: Decides which events are genuine.
        publisher: The name under which requests are signed here.
        max_tracked: The number of requests remembered with their answers; a delete counts once for
            each of its keys.
        on_answer: Called with each answer to a request of this publisher, and its `traceparent`.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        verifier: Verifier,
        publisher: str,
        *,
        max_tracked: int = MAX_TRACKED,
        on_answer: Callable[[Event, str], None] | None = None,
    ) -> None:
        self._connection = connection
        self._verifier = verifier
        self._publisher = publisher
        self._stream = publisher_stream(publisher)
        self._max_tracked = max_tracked
        self._on_answer = on_answer
        self._opened_at = datetime.now(UTC)
        self._sent: OrderedDict[str, _SentRequest] = OrderedDict()
        self._tracked = 0  # the weight of all of them
        self._waiting: dict[str, set[_Wait]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._reader_from = self._opened_at
        self._scans = asyncio.Semaphore(_MAX_CONCURRENT_SCANS)

    @contextmanager
    def sending(self, request: Request, body: bytes) -> Iterator[None]:
        """Track an attempt while the block publishes the request that was signed as `body`."""
        matcher = EventMatcher.of(self._publisher, request, body)
        attempt = self._track(matcher).begin(matcher)
        try:
            yield
        except BaseException:  # canceled, too: it may be on its queue or not
            attempt.is_doubtful = True
            self._resolve(matcher.request_id)
            raise

    def _track(self, matcher: EventMatcher) -> _SentRequest:
        """Return the request of a new attempt, which is now the last one sent."""
        known = [wait.request for wait in self._waiting.get(matcher.request_id, ())]
        if (last := self._drop(matcher.request_id)) is not None:
            known.append(last)
        request = next((one for one in known if one.is_of(matcher)), None) or _SentRequest()
        request.weight = max(request.weight, len(matcher.keys), 1)
        self._sent[matcher.request_id] = request
        self._tracked += request.weight
        while self._tracked > self._max_tracked and len(self._sent) > 1:
            self._drop(next(iter(self._sent)))
        return request

    def _drop(self, request_id: str) -> _SentRequest | None:
        request = self._sent.pop(request_id, None)
        self._tracked -= 0 if request is None else request.weight
        return request

    def _resolve(self, request_id: str) -> None:
        for wait in self._waiting.get(request_id, ()):
            wait.resolve()

    async def wait(
        self,
        request_id: str,
        *,
        project: str | None = None,
        request_type: RequestType | None = None,
        since: datetime | None = None,
        timeout_s: float,
        ended: bool = False,
    ) -> Event:
        """Return the event that answers this request, or with `ended` the one that ends it.

        Raises:
            WaitTimeoutError: nothing was published in time.
            NotSentHereError: it was not sent here, and project or type is missing.
            EventsUnavailableError: there is no stream to read.
        """
        timeout = asyncio.timeout(timeout_s)
        try:
            async with timeout:
                sent = self._sent_here(request_id, project, request_type)
                if sent is not None and self._covers(sent):
                    return await self._answer(request_id, sent, ended=ended)
                events = self.progress(
                    request_id, project=project, request_type=request_type, since=since
                )
                async with aclosing(events):
                    async for event, is_last in events:
                        if sent is not None and isinstance(event, ObjectDeleted | DeleteRejected):
                            sent.newest.record(event)  # as the shared reader does
                        if is_last or (isinstance(event, RotationAccepted) and not ended):
                            return event
        except TimeoutError as exc:
            if not timeout.expired():
                raise
            raise WaitTimeoutError(self._no_event(request_id, timeout_s)) from exc
        raise PublisherError("the stream of events ended")  # it never does

    def _no_event(self, request_id: str, timeout_s: float) -> str:
        """Return the meaning of silence: no event answers a request without a known signature."""
        ignored = self._verifier.refused
        return (
            f"no event of {request_id} in {timeout_s:g} s: no worker has served the request yet, "
            f"or the workers do not know publisher {self._publisher!r} with this key in deployment "
            f"{self._verifier.deployment!r}. In that case the request is in "
            f"{UNSIGNED_DEAD_QUEUE}: see `keyturn dead list`"
        ) + (f". {ignored} events were ignored: no event key verifies them" if ignored else "")

    async def progress(
        self,
        request_id: str,
        *,
        project: str | None = None,
        request_type: RequestType | None = None,
        since: datetime | None = None,
    ) -> AsyncGenerator[tuple[Event, bool], None]:
        """Yield every event of this request, and whether it is the last one.

        They are read from the stream by a separate reader. For a delete of many keys that was not
        sent here, the first event counts as the last one.

        Raises:
            NotSentHereError: it was not sent here, and project or type is missing.
            EventsUnavailableError: there is no stream to read.
        """
        sent = self._sent_here(request_id, project, request_type)
        if sent is not None:
            begin = since or sent.at
            attempts = sent.accepted_for(sent.newest)
        elif project is not None and request_type is not None:
            begin = since or self._opened_at
            attempts = [_Attempt(EventMatcher(self._publisher, project, request_type, request_id))]
        else:
            raise NotSentHereError(
                f"{request_id} was not sent by this publisher, or too long ago: "
                "name its project and request_type"
            )
        has_begun = False
        left = set[str | None](attempts[-1].matcher.keys)
        following = follow(self._connection, _before(begin), self._stream)
        async with self._scans, aclosing(following) as stream:
            async for record in stream:
                if request_id not in claimed_ids(record.body):
                    continue
                for event in self._verifier.events(record):
                    if not any(one.is_answered_by(event) for one in attempts):
                        continue
                    key = event.key if isinstance(event, ObjectDeleted | DeleteRejected) else None
                    if has_begun and isinstance(event, Rejected) and key is None:
                        continue  # it answers another attempt: the begun one continues
                    has_begun = True
                    left.discard(key)
                    is_last = is_end(event) and not (key and left)
                    yield event, is_last
                    if is_last:
                        return

    def outcomes(self, request_id: str) -> Mapping[str, ObjectDeleted | DeleteRejected]:
        """Return the known outcomes of a delete that was sent here, by key.

        Raises:
            NotSentHereError: it was not sent here, or too long ago.
        """
        if (sent := self._sent.get(request_id)) is None:
            raise NotSentHereError(f"{request_id} was not sent by this publisher, or too long ago")
        outcomes = dict[str, bytes]()
        for attempt in sent.accepted_for(sent.newest):
            outcomes |= attempt.outcomes
        return {key: _outcome_of(body) for key, body in outcomes.items()}

    async def close(self) -> None:
        """Stop reading; waits under way end with an error."""
        if self._reader is not None:
            await cancel_all([self._reader])
        self._fail(PublisherError("the publisher was closed"))

    def _sent_here(
        self, request_id: str, project: str | None, request_type: RequestType | None
    ) -> _SentRequest | None:
        sent = self._sent.get(request_id)
        if sent is None or project not in (None, sent.newest.matcher.project):
            return None
        return sent if request_type in (None, sent.newest.matcher.request_type) else None

    def _covers(self, sent: _SentRequest) -> bool:
        """Return whether the shared reader has read, or will read, the answer to this request."""
        if self._reader is None or self._reader.done():
            recent = (one.newest.at for one in self._sent.values())
            self._reader_from = next((at for at in recent if at >= sent.at - _LOOK_BACK), sent.at)
            self._reader_from = min(self._reader_from, sent.at)
            self._reader = asyncio.create_task(self._read(_before(self._reader_from)))
        return sent.at >= self._reader_from

    async def _answer(self, request_id: str, sent: _SentRequest, *, ended: bool) -> Event:
        future = asyncio.get_running_loop().create_future()
        wait = _Wait(sent, sent.newest, ended, future)
        wait.resolve()
        waiting = self._waiting.setdefault(request_id, set())
        waiting.add(wait)
        try:
            return await wait.future
        finally:
            waiting.discard(wait)
            if not waiting and self._waiting.get(request_id) is waiting:
                del self._waiting[request_id]
                if wait.attempt.matcher.request_type in _FORGOTTEN_REQUESTS:
                    self._forget(request_id, wait)

    def _forget(self, request_id: str, wait: _Wait) -> None:
        """Forget the request of a wait, unless it was sent once more since."""
        if self._sent.get(request_id) is wait.request and wait.request.newest is wait.attempt:
            self._drop(request_id)

    async def _read(self, start: Start) -> None:
        """Read for all waits; ends only with the publisher, or if there is no stream."""
        try:
            async with aclosing(follow(self._connection, start, self._stream)) as stream:
                async for record in stream:
                    self._handle(record)
        except PublisherError as exc:
            self._fail(exc)
        except Exception as exc:  # a failing reader must leave no caller waiting
            self._fail(PublisherError(f"reading events failed ({type(exc).__name__})"))
            raise

    def _handle(self, record: StreamRecord) -> None:
        if any(one in self._sent or one in self._waiting for one in claimed_ids(record.body)):
            for one in self._verifier.traced_events(record):
                self._receive(one.event, one.traceparent)

    def _receive(self, event: Event, traceparent: str) -> None:
        waiting = self._waiting.get(request_id(event), ())
        # A wait may be for a forgotten request or attempt.
        attempts = {wait.attempt for wait in waiting}
        for wait in waiting:
            attempts.update(wait.request.attempts)
        if (sent := self._sent.get(request_id(event))) is not None:
            attempts.update(sent.attempts)
        answered = [one for one in attempts if one.is_answered_by(event)]
        if answered and is_answer(event) and self._on_answer is not None:
            self._on_answer(event, traceparent)
        for attempt in answered:
            attempt.record(event)
        self._resolve(request_id(event))

    def _fail(self, error: PublisherError) -> None:
        for waiting in self._waiting.values():
            for wait in waiting:
                if not wait.future.done():
                    wait.future.set_exception(error)


def _outcome_of(body: bytes) -> ObjectDeleted | DeleteRejected:
    event = parse_event(body)
    if not isinstance(event, ObjectDeleted | DeleteRejected):
        raise TypeError(f"{event.type} is not an outcome of a delete")
    return event


def _before(moment: datetime) -> datetime:
    return moment - timedelta(seconds=CLOCK_TOLERANCE_S)


def claimed_ids(body: bytes) -> tuple[str, ...]:
    """Return the ids of the requests that an unverified message, or a batch, claims to answer."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return ()
    if not isinstance(document, dict) or not isinstance(kind := document.get("type"), str):
        return ()
    name, members = _ID_FIELDS.get(kind, ""), document.get("events")
    events = members if isinstance(members, list) else [document]
    ids = (each.get(name) for each in events if isinstance(each, dict))
    return tuple(one for one in ids if isinstance(one, str))
