"""Waiting for the event that answers a request (SPEC 6.7).

One reader of the stream serves every wait for what this publisher itself has sent: it
begins a little before the publication, so that an event told before anyone waited is
found all the same. A wait for somebody else's request reads the stream on its own.

Most requests are answered once, and that ends them. A rotation is answered by
`rotation.accepted` and ended by `rotation.completed`; `sweep.progressed` answers nothing.

Memory is bounded: of at most `max_tracked` requests sent here is it known when they
were sent and how they were answered; the oldest are forgotten first, and a wait for a
forgotten one is as a wait for somebody else's.
It must never believe an event by its id alone: the signature is checked first.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from contracts.messages import Event, Rejected, RotationAccepted, SweepProgressed
from contracts.publisher.errors import PublisherError, WaitTimeoutError
from contracts.publisher.events import Start, Told, Verifier, follow
from contracts.publisher.link import Link
from contracts.topology import REQUEST_ID_FIELDS

MAX_TRACKED: Final = 100_000
# The stream's times are the broker's, to the second; ours may run ahead of them.
CLOCK_TOLERANCE_S: Final = 30
_LOOK_BACK: Final = timedelta(minutes=15)
_SCANS_AT_ONCE: Final = 64
_ID_FIELDS: Final = tuple(dict.fromkeys(REQUEST_ID_FIELDS.values()))


def is_answer(event: Event) -> bool:
    """Whether the event says what became of its request, be it only that it was accepted."""
    return not isinstance(event, SweepProgressed)


def is_end(event: Event) -> bool:
    """Whether nothing more is told of its request."""
    return not isinstance(event, (SweepProgressed, RotationAccepted))


@dataclass(slots=True)
class _Sent:
    """What is known of a request that was sent here."""

    at: datetime
    # Sent again: what was told up to here answers an earlier try.
    after_offset: int = -1
    accepted: Told | None = None
    end: Told | None = None
    refused: bool = False

    def take(self, told: Told, event: Event) -> None:
        """Keep the event that answers the request, and the one that ends it."""
        if isinstance(event, RotationAccepted):
            self.accepted = told
            if self.refused:  # a refused one was replayed by an operator: it goes on
                self.end, self.refused = None, False
        elif is_end(event):
            self.end, self.refused = told, isinstance(event, Rejected)

    def told(self, *, ended: bool) -> Told | None:
        """What there is to say to a wait for the answer, or for the end."""
        return self.end if ended else self.accepted or self.end

    def last_offset(self) -> int:
        """Up to where the stream tells of this try and of those before it."""
        known = [told.offset for told in (self.accepted, self.end) if told is not None]
        return max((self.after_offset, *known))


@dataclass(frozen=True, slots=True, eq=False)
class _Wait:
    """Somebody who waits for the shared reader."""

    future: asyncio.Future[Event]
    wanted: Callable[[Event], bool]


class Waiter:
    """Waits for events of requests.

    Args:
        link: The broker.
        verifier: Decides which events are believed.
        max_tracked: Of how many requests sent here the answer is remembered.
    """

    def __init__(self, link: Link, verifier: Verifier, *, max_tracked: int = MAX_TRACKED) -> None:
        self._link = link
        self._verifier = verifier
        self._max_tracked = max_tracked
        self._opened_at = datetime.now(UTC)
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._waiting: dict[str, set[_Wait]] = {}
        self._reader: asyncio.Task[None] | None = None
        self._reader_from = self._opened_at
        self._scans = asyncio.Semaphore(_SCANS_AT_ONCE)

    def sending(self, request_id: str) -> None:
        """Remember that this request is being sent now, by this publisher."""
        before = self._sent.pop(request_id, None)
        after_offset = -1 if before is None else before.last_offset()
        self._sent[request_id] = _Sent(datetime.now(UTC), after_offset=after_offset)
        while len(self._sent) > self._max_tracked:
            self._sent.popitem(last=False)

    async def wait(
        self, request_id: str, *, since: datetime | None, timeout_s: float, ended: bool = False
    ) -> Event:
        """The event that answers this request, or with `ended` the one that ends it.

        Raises:
            WaitTimeoutError: nothing was told in time.
            EventsUnavailableError: there is no stream to read.
        """
        timeout = asyncio.timeout(timeout_s)
        try:
            async with timeout:
                sent = self._sent.get(request_id)
                if sent is not None and self._covers(sent):
                    return await self._answer(request_id, sent, ended=ended)
                return await self._scan(request_id, since, ended=ended)
        except TimeoutError as exc:
            if not timeout.expired():
                raise
            raise WaitTimeoutError(f"nothing was told of {request_id} in {timeout_s:g} s") from exc

    async def progress(
        self, request_id: str, since: datetime | None
    ) -> AsyncGenerator[Event, None]:
        """Every event of this request, read from the stream for it alone; ends with its end.

        Raises:
            EventsUnavailableError: there is no stream to read.
        """
        sent = self._sent.get(request_id)
        begin = since or (sent.at if sent else self._opened_at)
        after_offset = sent.after_offset if sent else -1
        async with self._scans, aclosing(follow(self._link, _before(begin))) as stream:
            async for told in stream:
                if told.offset <= after_offset or _claimed_id(told.body) != request_id:
                    continue
                event = self._verifier.event(told)
                if event is None:
                    continue
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

    def _covers(self, sent: _Sent) -> bool:
        """Whether the shared reader has seen, or will see, what answers this request."""
        if self._reader is None or self._reader.done():
            earliest = next(s.at for s in self._sent.values() if s.at >= sent.at - _LOOK_BACK)
            self._reader_from = min(earliest, sent.at)
            self._reader = asyncio.create_task(self._read(_before(self._reader_from)))
        return sent.at >= self._reader_from

    async def _answer(self, request_id: str, sent: _Sent, *, ended: bool) -> Event:
        told = sent.told(ended=ended)
        if told is not None and (event := self._verifier.event(told)) is not None:
            return event
        wait = _Wait(asyncio.get_running_loop().create_future(), is_end if ended else is_answer)
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
            async with aclosing(follow(self._link, start)) as stream:
                async for told in stream:
                    self._take(told)
        except PublisherError as exc:
            self._fail(exc)
        except Exception as exc:  # a reader that dies must leave nobody waiting for it
            self._fail(PublisherError(f"reading events failed ({type(exc).__name__})"))
            raise

    def _take(self, told: Told) -> None:
        request_id = _claimed_id(told.body)
        if request_id is None:
            return
        sent = self._sent.get(request_id)
        waiting = self._waiting.get(request_id, ())
        if (sent is None and not waiting) or (sent and told.offset <= sent.after_offset):
            return
        event = self._verifier.event(told)
        if event is None:
            return
        if sent is not None:
            sent.take(told, event)
        for wait in waiting:
            if wait.wanted(event) and not wait.future.done():
                wait.future.set_result(event)

    def _fail(self, error: PublisherError) -> None:
        for waiting in self._waiting.values():
            for wait in waiting:
                if not wait.future.done():
                    wait.future.set_exception(error)

    async def _scan(self, request_id: str, since: datetime | None, *, ended: bool) -> Event:
        """Read the stream for one request alone."""
        wanted = is_end if ended else is_answer
        async with aclosing(self.progress(request_id, since)) as events:
            async for event in events:
                if wanted(event):
                    return event
        raise PublisherError("the stream of events ended")  # it never does


def _before(moment: datetime) -> datetime:
    return moment - timedelta(seconds=CLOCK_TOLERANCE_S)


def _claimed_id(body: bytes) -> str | None:
    """The id that a message claims to answer, read fast and without belief."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(document, dict):
        return None
    for name in _ID_FIELDS:
        if isinstance(value := document.get(name), str):
            return value
    return None
