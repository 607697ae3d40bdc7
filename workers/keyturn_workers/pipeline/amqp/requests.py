"""The parts of a queue of requests: codec, expiry check, settlement (SPEC 6.2, 6.3)."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, Final, Protocol, cast

import structlog
from aio_pika.abc import AbstractIncomingMessage
from faststream import BaseMiddleware, ContextRepo
from faststream.message import StreamMessage

from keyturn.errors import (
    BadSignatureError,
    CodedError,
    NotPermittedError,
    PermanentError,
    RequestExpiredError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time
from keyturn.messages.codec import request_id, with_origin
from keyturn.messages.events import Event
from keyturn.messages.requests import Request, UploadRequested
from keyturn.request_origin import RequestOrigin
from keyturn.topology import PUBLISHER_HEADER
from keyturn_workers.core.authorization import (
    Arrival,
    Rules,
    Signer,
    authorize,
    check_age,
    rejection_of,
    verify,
)
from keyturn_workers.pipeline.amqp.failures import retry_delay_s
from keyturn_workers.pipeline.amqp.outcomes import DeferError, Handled
from keyturn_workers.pipeline.amqp.routes import CallNext, Codec, Route
from keyturn_workers.pipeline.amqp.settlement import (
    DeliveryContext,
    Job,
    NotAdmittedError,
    Report,
    Settlement,
)
from keyturn_workers.process.grants_file import GrantsKeeper
from keyturn_workers.process.wall_clock import utc_now

# How long an expired request is retried while the storage cannot show if it was completed.
_EXPIRED_RETRIES: Final = timedelta(days=1)
# The wait for a new publisher's stream, in a retry queue: any message can name the publisher, so
# waiting must not occupy the prefetch.
_NO_STREAM_WAIT_S: Final = 30.0
_SAME_TIME: Final = timedelta(minutes=1)

_log = structlog.get_logger()


class RequestHandler(Protocol):
    """Serves the requests of one queue."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        ...

    @property
    def served(self) -> tuple[str, ...]:
        """The types of requests that the queue carries."""
        ...

    async def serve(
        self, request: Request, origin: RequestOrigin, *, seen_before: bool, attempts: int = 0
    ) -> Handled:
        """Do what the request asks for.

        If `seen_before`, an earlier delivery may have done part of it. `attempts` is the number of
        deliveries in a row that ended with the same transient error.

        Raises:
            CodedError: the reason to refuse or retry it.
            DeferError: redeliver it later.
        """
        ...

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Handled | None:
        """The result of an expired request, read from its target; None if it was not completed.

        Starts nothing that the request asks for (SPEC 6.3).

        Raises:
            CodedError: this cannot be determined; transient errors are retried.
        """
        ...

    def gives_up(self, error: CodedError) -> bool:
        """Return True if a transient error is final for these requests all the same."""
        ...

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: CodedError
    ) -> None:
        """Clean up after the final refusal of an admitted request was published.

        May be called more than once; never for a message that is handled as a bad signature.
        """
        ...


class RequestAudit(Protocol):
    """Records requests in the audit trail (SPEC 15.3)."""

    async def served(self, request: Request, origin: RequestOrigin, event: Event | None) -> None:
        """Record that the request was served with this event; returns once recorded."""

    async def refused(self, body: bytes, publisher: str, error: CodedError) -> None:
        """Record that this publisher's message was refused for good; returns once recorded."""


@dataclass(slots=True)
class RequestJob(Job):
    """An admitted request."""

    request: Request
    signer: Signer
    origin: RequestOrigin

    @property
    def log_fields(self) -> dict[str, Any]:
        """See `Job.log_fields`."""
        return {"request_id": request_id(self.request)}


async def _nothing_to_learn() -> None:
    return None


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class TimeSource:
    """The storage's clock, by which a worker refuses expired requests.

    `learn` asks the storage for its time again; `is_known` says if the time is known well enough
    to refuse a request for good.
    """

    learn: Callable[[], Awaitable[None]] = _nothing_to_learn
    is_known: Callable[[], bool] = _always


@dataclass(frozen=True, slots=True)
class RequestQueue:
    """The objects that all deliveries of one queue of requests share."""

    handler: RequestHandler
    rules: Rules
    shared: DeliveryContext
    time: TimeSource = field(default_factory=TimeSource)
    grants: GrantsKeeper | None = None
    audit: RequestAudit | None = None

    @property
    def name(self) -> str:
        """The queue's name."""
        return self.handler.queue


class RequestCodec(Codec):
    """Verifies the signature over the raw bytes of a message, then parses and authorizes it."""

    def __init__(self, queue: RequestQueue) -> None:
        self._queue = queue
        self._metrics = queue.shared.metrics.queue(queue.name)

    async def decode(self, msg: StreamMessage[Any]) -> RequestJob:
        """Return the admitted request.

        Raises:
            NotAdmittedError: the message must not be served.
            DeferError: its publisher is known now, but has no stream yet.
        """
        message: AbstractIncomingMessage = msg.raw_message
        try:
            return self._authorize(message)
        except NotAdmittedError as exc:
            if not isinstance(exc.error, (BadSignatureError, NotPermittedError)):
                raise
            if not await self._grants_changed(message):
                raise
        return self._authorize(message)

    def _authorize(self, message: AbstractIncomingMessage) -> RequestJob:
        queue, signer = self._queue, None
        arrival = Arrival(queue.name, queue.handler.served, message.routing_key or "")
        try:
            with self._metrics.stage("admit"):
                signer = verify(message.body, message.headers, queue.rules)
                request = authorize(message.body, signer, arrival)
        except BadSignatureError as exc:
            # Forged, or genuine and moved by an attacker: publish no event, since a moved message
            # may be served elsewhere.
            raise NotAdmittedError(exc) from exc
        except PermanentError as exc:
            raise NotAdmittedError(exc, signer) from exc
        publisher = queue.shared.worker_publisher
        retry = publisher.retry_of(message, queue.name, publisher=signer.name)
        actor = None if isinstance(request, UploadRequested) else request.actor
        origin = RequestOrigin.of(signer.name, message.body, actor)
        redelivered = bool(message.redelivered)
        return RequestJob(redelivered, retry, signer.name, request, signer, origin)

    async def _grants_changed(self, message: AbstractIncomingMessage) -> bool:
        """Re-read the publishers; return True if they have changed (SPEC 6.3).

        Raises:
            DeferError: the message's publisher is known now, but has no stream yet.
        """
        grants = self._queue.grants
        if grants is None:
            return False
        changed = await grants.refresh()
        if grants.is_pending(message.headers.get(PUBLISHER_HEADER)):
            raise DeferError(_NO_STREAM_WAIT_S)
        return changed


class ExpiryCheck(BaseMiddleware[Any, Any]):
    """Serves no request that has expired; if it was completed before, its events are published."""

    def __init__(
        self,
        queue: RequestQueue,
        message: AbstractIncomingMessage,
        /,
        *,
        context: ContextRepo,
    ) -> None:
        super().__init__(message, context=context)
        self._queue = queue
        self._time = queue.time
        self._now = queue.shared.now

    async def consume_scope(self, call_next: CallNext, msg: StreamMessage[Any]) -> Handled:
        """Call the handler, unless the request has expired by the storage's clock.

        Raises:
            RequestExpiredError: it was not completed before.
            StorageUnavailableError: the storage's time is not known well enough.
        """
        job = cast("RequestJob", await msg.decode())
        expired = await self._expired(job.request)
        if expired is None:
            served: Handled = await call_next(msg)
            return served
        # A redelivery may have waited long: if the request was completed, publish that.
        completed = await self._queue.handler.find_completed(job.request, job.origin)
        if completed is not None:
            return completed
        if not self._time.is_known() and not self._clocks_agree():
            # A single wrong `Date`, seen first, must not refuse a fresh request for good. If this
            # machine's own clock agrees, both would have to be wrong by the same amount.
            raise StorageUnavailableError(
                "the storage's clock has not been known for two leases yet"
            )
        raise RequestExpiredError(expired)

    def _clocks_agree(self) -> bool:
        """Check that this machine's own clock agrees with the storage's to within a minute."""
        return abs(self._now() - utc_now()) <= _SAME_TIME

    async def _expired(self, request: Request) -> str | None:
        """The reason why a request has expired, by the storage's clock now; None if it has not.

        Returns a text: an error in a variable of a frame of its own traceback is a cycle, which
        would keep the request in memory.
        """
        for learn in (False, True):
            if learn:
                # A worker whose own clock is wrong must not refuse a fresh request for good.
                await self._time.learn()
            try:
                check_age(request, self._queue.rules.max_age, self._now())
            except RequestExpiredError as exc:
                expired = exc.detail
            else:
                return None
        return expired


class RequestSettlement(Settlement[RequestJob, Handled]):
    """Settles a request: its events are confirmed before it is acknowledged."""

    def __init__(
        self,
        queue: RequestQueue,
        message: AbstractIncomingMessage,
        /,
        *,
        context: ContextRepo,
    ) -> None:
        super().__init__(queue.name, queue.shared, message, context=context)
        self._handler = queue.handler
        self._rules = queue.rules
        self._time = queue.time
        self._audit = queue.audit

    def _note_admitted(self, job: RequestJob) -> None:
        self._delivery.mark_admitted(job.request.requested_at)
        self._delivery.identify("request", request_id(job.request))
        if not job.seen_before:
            self._metrics.note_wait(job.request.requested_at)

    async def _complete(self, job: RequestJob, result: Handled) -> Report:
        with self._metrics.stage("tell"):
            if self._audit is not None:
                # After the effect and before the acknowledgment: if the change is not recorded, the
                # request is delivered again, and recorded then.
                served = partial(self._audit.served, job.request, job.origin, result.event)
                await self._once("served", served)
            if result.event is not None:
                await self._publish(result.event, job)
            # Together, so that they go out in batches.
            await asyncio.gather(*(self._publish(event, job) for event in result.more))
            if result.after is not None:
                await result.after()
        return partial(self._report_served, job, result)

    async def _publish(self, event: Event, job: RequestJob) -> None:
        await self._worker_publisher.publish_event(with_origin(event, job.origin))

    def _report_served(self, job: RequestJob, result: Handled) -> None:
        event_type = job.request.type if result.event is None else result.event.type
        self._metrics.count_served(event_type)
        _log.info(
            event_type,
            publisher=job.publisher,
            ms=round(self._delivery.held_s() * 1000, 1),
            again=job.seen_before,
            **result.logged,
        )

    def _retry_delay_s(self, job: RequestJob, error: CodedError, attempt: int) -> int | None:
        if self._handler.gives_up(error):
            return None
        requested_at = job.request.requested_at_instant
        return retry_delay_s(
            error,
            attempt,
            requested_at=requested_at,
            max_age=self._rules.max_age + _EXPIRED_RETRIES,
            # While the storage's clock is not known, nothing is too old to be retried.
            now=self._now() if self._time.is_known() else requested_at,
        )

    async def _reject(self, refusal: NotAdmittedError) -> Report:
        return await self._refuse(refusal.error, refusal.signer)

    async def _give_up(self, job: RequestJob, error: CodedError) -> Report:
        return await self._refuse(error, job.signer, job)

    async def _refuse(
        self, error: CodedError, signer: Signer | None, admitted: RequestJob | None = None
    ) -> Report:
        """Refuse for good. Without a `signer`, no event is published."""
        body = self._message.body
        at = format_time(self._now())
        event = None if signer is None else rejection_of(body, signer, error, at)
        if self._audit is not None and signer is not None:
            refused = partial(self._audit.refused, body, signer.name, error)
            await self._once(error.code, refused)
        # The dead letter first, the event second: a reader of the event finds the letter.
        if admitted is None or admitted.request.leaves_letter:
            await self._dead_letter(error)
        if event is not None:
            await self._worker_publisher.publish_event(event)
        if admitted is not None:
            await self._clean_up(admitted, error)
        refused_id = None if event is None else request_id(event)
        publisher = None if signer is None else signer.name
        return partial(self._report_refused, error, publisher, refused_id)

    def _report_refused(
        self, error: CodedError, publisher: str | None, refused_id: str | None
    ) -> None:
        self._metrics.count_refused(error)
        _log.warning(
            "refused",
            publisher=publisher,
            request_id=refused_id,
            code=error.code,
            detail=error.detail,
        )

    async def _clean_up(self, job: RequestJob, error: CodedError) -> None:
        try:
            await self._handler.after_refusal(job.request, job.origin, error)
        except Exception as exc:  # noqa: BLE001  # what is left is removed once it is old enough
            # If it were given back instead, each delivery would leave one more dead letter.
            _log.warning("not cleaned up", **job.log_fields, problem=type(exc).__name__)


def request_route(
    queue: RequestQueue,
    prefetch: int,
    *,
    settlement: type[RequestSettlement] = RequestSettlement,
    expiry_check: type[ExpiryCheck] = ExpiryCheck,
) -> Route:
    """Return the route of a queue of requests."""
    handler = queue.handler

    async def serve(job: RequestJob) -> Handled:
        return await handler.serve(
            job.request, job.origin, seen_before=job.seen_before, attempts=job.attempts
        )

    middlewares = (partial(settlement, queue), partial(expiry_check, queue))
    return Route(queue.name, prefetch, RequestCodec(queue), serve, middlewares)
