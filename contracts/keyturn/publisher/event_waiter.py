"""Waiting for the event that answers a request (SPEC 6.7).

One reader of the stream serves every wait for what this publisher itself has sent: it
begins a little before the publication, so that an event that is published before anyone
waits is found all the same. A wait for another process's request reads the stream alone.

Most requests are answered once, and that ends them. A rotation is answered by
`rotation.accepted` and ended by `rotation.completed`; `sweep.progressed` answers nothing.

A request that is sent again under its id is a new try with an answer of its own: a wait
takes the answer to the try that was the newest when it began, and looks at others only
where nobody knows whether that one is on the queue.

Memory is bounded: of at most `max_tracked` requests sent here is it known when they
were sent and how they were answered; the oldest are forgotten first, and a wait for a
forgotten one is as a wait for another process's.
It must never believe an event by its id alone: the signature is checked first, then
everything else that `EventMatcher` asks for.
"""

import asyncio
import enum
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from keyturn.errors import NotDeliveredError, NotSentHereError, PublisherError, WaitTimeoutError
from keyturn.messages import (
    Event,
    Failed,
    Rejected,
    Request,
    RotationAccepted,
    id_field,
    parse_event,
)
from keyturn.publisher.connection import BrokerConnection
from keyturn.publisher.event_matcher import EventMatcher, RequestType, is_answer, is_end
from keyturn.publisher.event_stream import Start, StreamRecord, Verifier, follow
from keyturn.topology import EVENTS, EVENTS_STREAM, publisher_stream

MAX_TRACKED: Final = 100_000
# The stream's times are the broker's, to the second; ours may run ahead of them.
CLOCK_TOLERANCE_S: Final = 30
_LOOK_BACK: Final = timedelta(minutes=15)
_SCANS_AT_ONCE: Final = 64
_MAX_TRIES: Final = 8
_ID_FIELDS: Final = {event_type: id_field(event_type) for event_type in EVENTS}
# Only these have events that older workers published without naming a publisher.
_WITH_SWEEPS: Final = ("rotation.requested", "sweep.requested")


class _Delivery(enum.Enum):
    """Whether a try is on its queue."""

    IN_FLIGHT = enum.auto()
    CONFIRMED = enum.auto()
    UNKNOWN = enum.auto()
    NONE = enum.auto()


@dataclass(slots=True, eq=False)
class _Try:
    """One sending of a request, and what is known of its answer.

    `earlier` is the try before it, for as long as this one may not have arrived. `over` are
    the ends of earlier tries, as bytes: published again, they end nothing.
    """

    matcher: EventMatcher
    at: datetime
    earlier: "_Try | None" = None
    over: tuple[bytes, ...] = ()
    delivery: _Delivery = _Delivery.IN_FLIGHT
    # The bodies of events whose signatures were checked.
    accepted: bytes | None = None
    end: bytes | None = None
    is_refused: bool = False
    is_failed: bool = False

    @property
    def is_doubtful(self) -> bool:
        """Whether nobody knows that it is on its queue, now that the broker was asked."""
        return self.delivery in (_Delivery.UNKNOWN, _Delivery.NONE)

    @property
    def answering(self) -> "Iterator[_Try]":
        """This try, and earlier ones for as long as the later may not have arrived."""
        for one in self.all:
            yield one
            if not one.is_doubtful:
                return

    @property
    def all(self) -> "Iterator[_Try]":
        """This try and all earlier ones that are kept."""
        one: _Try | None = self
        while one is not None:
            yield one
            one = one.earlier

    def is_answered_by(self, event: Event, body: bytes) -> bool:
        """Whether this event belongs to this try."""
        return self.matcher.matches(event) and body not in self.over

    def take(self, event: Event, body: bytes) -> None:
        """Keep the event that answers this try, and the one that ends it."""
        if not self.is_answered_by(event, body):
            return
        if isinstance(event, RotationAccepted):
            self.accepted = body
            if self.is_refused or self.is_failed:  # an operator replayed it: it goes on
                self.end, self.is_refused, self.is_failed = None, False, False
        elif isinstance(event, Rejected):
            # The same bytes, delivered twice: a refusal of the copy undoes nothing.
            if self.accepted is None and (self.end is None or self.is_refused):
                self.end, self.is_refused = body, True
        elif is_end(event):
            self.end, self.is_refused, self.is_failed = body, False, isinstance(event, Failed)

    def told(self, *, ended: bool) -> bytes | None:
        """What there is to say to a wait for the answer, or for the end."""
        return self.end if ended else self.accepted or self.end

    def ends(self) -> tuple[bytes, ...]:
        """The ends of this try and of those before it, which the next one passes over."""
        if self.end is None or self.is_refused:
            return self.over
        return (*self.over, self.end)[-_MAX_TRIES:]


@dataclass(slots=True, eq=False)
class _Wait:
    """A caller that waits for the shared reader, and the tries whose answers count."""

    future: asyncio.Future[Event]
    ended: bool
    tries: list[_Try] = field(default_factory=list)

    def add(self, tries: Iterable[_Try]) -> None:
        """Let answers to these tries count too."""
        self.tries.extend(one for one in tries if one not in self.tries)

    def resolve(self) -> None:
        """End it where there is something to say."""
        answers = (one.told(ended=self.ended) for one in self.tries)
        body = next((told for told in answers if told is not None), None)
        if body is not None and not self.future.done():
            self.future.set_result(parse_event(body))


class EventWaiter:
    """Waits for events of requests.

    Args:
        connection: The broker.
        verifier: Decides which events are believed.
        publisher: The name under which requests are signed here.
        max_tracked: Of how many requests sent here the answer is remembered.
    """

    def __init__(
        self,
        connection: BrokerConnection,
        verifier: Verifier,
        publisher: str,
        *,
        max_tracked: int = MAX_TRACKED,
    ) -> None:
        self._connection = connection
        self._verifier = verifier
        self._publisher = publisher
        self._max_tracked = max_tracked
        self._opened_at = datetime.now(UTC)
        self._sent: OrderedDict[str, _Try] = OrderedDict()
        self._waiting: dict[str, set[_Wait]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._reader_from = self._opened_at
        self._scans = asyncio.Semaphore(_SCANS_AT_ONCE)

    @contextmanager
    def sending(self, request: Request, body: bytes) -> Iterator[None]:
        """Around the publication of a request that was signed as `body`."""
        one = self._begin(EventMatcher.of(self._publisher, request, body))
        try:
            yield
        except NotDeliveredError:
            self._settle(one, _Delivery.NONE)
            raise
        except BaseException:  # cancelled, too: it may be on its queue, or may not
            self._settle(one, _Delivery.UNKNOWN)
            raise
        self._settle(one, _Delivery.CONFIRMED)

    def _begin(self, matcher: EventMatcher) -> _Try:
        request_id = matcher.request_id
        earlier = self._sent.pop(request_id, None)
        if earlier is not None and not _is_same_request(earlier.matcher, matcher):
            earlier = None  # a waiter for that other request keeps its own matcher
        one = _Try(matcher, datetime.now(UTC), earlier)
        if earlier is not None:
            one.over = earlier.ends()
            _cut_short(one)
        self._sent[request_id] = one
        while len(self._sent) > self._max_tracked:
            self._sent.popitem(last=False)
        for wait in self._waiting.get(request_id, ()):
            if any(t.is_doubtful and _is_same_request(t.matcher, matcher) for t in wait.tries):
                wait.add((one,))
        return one

    def _settle(self, one: _Try, delivery: _Delivery) -> None:
        """Note what became of a try; where it may not have arrived, others answer for it."""
        request_id = one.matcher.request_id
        one.delivery = delivery
        if delivery is _Delivery.CONFIRMED:
            one.earlier = None
            return
        newest = self._sent.get(request_id)
        if newest is None or not _is_same_request(newest.matcher, one.matcher):
            newest = one  # forgotten, or its id was used for something else
        newer = [*itertools.takewhile(lambda t: t is not one, newest.all)]
        for wait in self._waiting.get(request_id, ()):
            if one in wait.tries:
                wait.add((*one.answering, *newer))
                wait.resolve()
        if delivery is _Delivery.NONE and one.earlier is not None:
            if newer and newer[-1].earlier is one:
                newer[-1].earlier = one.earlier
            elif self._sent.get(request_id) is one:
                self._sent[request_id] = one.earlier

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
        """The event that answers this request, or with `ended` the one that ends it.

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
                    return await self._answer(sent, ended=ended)
                events = self.progress(
                    request_id, project=project, request_type=request_type, since=since
                )
                return await _first(events, ended=ended)
        except TimeoutError as exc:
            if not timeout.expired():
                raise
            raise WaitTimeoutError(f"no event of {request_id} in {timeout_s:g} s") from exc

    async def progress(
        self,
        request_id: str,
        *,
        project: str | None = None,
        request_type: RequestType | None = None,
        since: datetime | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Every event of this request, read from the stream for it alone; ends with its end.

        Raises:
            NotSentHereError: it was not sent here, and project or type is missing.
            EventsUnavailableError: there is no stream to read.
        """
        sent = self._sent_here(request_id, project, request_type)
        streams = self._streams
        if sent is not None:
            tries = tuple(sent.answering)
            begin = since or _earliest(sent)
        else:
            begin = since or self._opened_at
            tries = (_Try(self._matcher(request_id, project, request_type), begin),)
            if request_type in _WITH_SWEEPS:
                # A sweep that began before 0.5 is reported without its publisher, so that its
                # events are not in the publisher's own stream.
                streams = streams[::-1]
        begun = False
        start = _before(begin)
        async with self._scans, aclosing(follow(self._connection, start, *streams)) as stream:
            async for told in stream:
                if _claimed_id(told.body) != request_id:
                    continue
                event = self._verifier.event(told)
                if event is None or not any(one.is_answered_by(event, told.body) for one in tries):
                    continue
                if begun and isinstance(event, Rejected):
                    continue  # it answers another try: what was begun goes on
                begun = True
                yield event
                if is_end(event):
                    return
        raise PublisherError("the stream of events ended")  # it never does

    async def close(self) -> None:
        """Stop reading; waits that are under way end with an error."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._fail(PublisherError("the publisher was closed"))

    @property
    def _streams(self) -> tuple[str, ...]:
        """The stream of this publisher's own events; then that of all, which older workers have."""
        return publisher_stream(self._publisher), EVENTS_STREAM

    def _sent_here(
        self, request_id: str, project: str | None, request_type: RequestType | None
    ) -> _Try | None:
        one = self._sent.get(request_id)
        if one is None or project not in (None, one.matcher.project):
            return None
        return one if request_type in (None, one.matcher.request_type) else None

    def _matcher(
        self, request_id: str, project: str | None, request_type: RequestType | None
    ) -> EventMatcher:
        if project is None or request_type is None:
            raise NotSentHereError(
                f"{request_id} was not sent by this publisher, or too long ago: "
                "name its project and request_type"
            )
        return EventMatcher(self._publisher, project, request_type, request_id)

    def _covers(self, sent: _Try) -> bool:
        """Whether the shared reader has seen, or will see, what answers this request."""
        at = _earliest(sent)
        if self._reader is None or self._reader.done():
            recent = next((s.at for s in self._sent.values() if s.at >= at - _LOOK_BACK), at)
            self._reader_from = min(recent, at)
            self._reader = asyncio.create_task(self._read(_before(self._reader_from)))
        return at >= self._reader_from

    async def _answer(self, sent: _Try, *, ended: bool) -> Event:
        wait = _Wait(asyncio.get_running_loop().create_future(), ended)
        wait.add(sent.answering)
        wait.resolve()
        request_id = sent.matcher.request_id
        waiting = self._waiting.setdefault(request_id, set())
        waiting.add(wait)
        try:
            return await wait.future
        finally:
            waiting.discard(wait)
            if not waiting and self._waiting.get(request_id) is waiting:
                del self._waiting[request_id]

    async def _read(self, start: Start) -> None:
        """The shared reader: ends only with the publisher, or where there is no stream."""
        try:
            async with aclosing(follow(self._connection, start, *self._streams)) as stream:
                async for told in stream:
                    self._take(told)
        except PublisherError as exc:
            self._fail(exc)
        except Exception as exc:  # a reader that dies must leave nobody waiting for it
            self._fail(PublisherError(f"reading events failed ({type(exc).__name__})"))
            raise

    def _take(self, told: StreamRecord) -> None:
        request_id = _claimed_id(told.body)
        if request_id is None:
            return
        newest = self._sent.get(request_id)
        waiting = self._waiting.get(request_id, ())
        # A wait may be for a try that was forgotten, or that a later one took the place of.
        tries = {t for wait in waiting for t in wait.tries}
        if newest is not None:
            tries.update(newest.all)
        if not tries or (event := self._verifier.event(told)) is None:
            return
        for one in tries:
            one.take(event, told.body)
        for wait in waiting:
            wait.resolve()

    def _fail(self, error: PublisherError) -> None:
        for waiting in self._waiting.values():
            for wait in waiting:
                if not wait.future.done():
                    wait.future.set_exception(error)


async def _first(events: AsyncGenerator[Event, None], *, ended: bool) -> Event:
    """The first event that answers, or with `ended` that ends."""
    async with aclosing(events):
        async for event in events:
            if is_end(event) if ended else is_answer(event):
                return event
    raise PublisherError("the stream of events ended")  # it never does


def _is_same_request(one: EventMatcher, other: EventMatcher) -> bool:
    """Whether these are tries of one request, whose ids are equal."""
    return (one.request_type, one.project) == (other.request_type, other.project)


def _cut_short(newest: _Try) -> None:
    """Forget all but the last few tries."""
    for oldest in itertools.islice(newest.all, _MAX_TRIES - 1, None):
        oldest.earlier = None
        return


def _earliest(sent: _Try) -> datetime:
    return min(one.at for one in sent.answering)


def _before(moment: datetime) -> datetime:
    return moment - timedelta(seconds=CLOCK_TOLERANCE_S)


def _claimed_id(body: bytes) -> str | None:
    """The id that a message claims to answer, read fast and without belief."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict) or not isinstance(kind := document.get("type"), str):
        return None
    value = document.get(_ID_FIELDS.get(kind, ""))
    return value if isinstance(value, str) else None
