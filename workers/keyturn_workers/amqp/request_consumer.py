"""Consumes requests: authorizes, serves, and publishes events (SPEC 6.2, 6.3)."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final, Protocol

import structlog
from aio_pika.abc import AbstractIncomingMessage

from keyturn.errors import (
    BadSignatureError,
    CodedError,
    NotPermittedError,
    PermanentError,
    RequestExpiredError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time
from keyturn.messages import (
    Event,
    Request,
    RequestOrigin,
    UploadRequested,
    request_id,
    with_origin,
)
from keyturn.topology import PUBLISHER_HEADER
from keyturn_workers.amqp.consumer import (
    ConsumerContext,
    Job,
    MessageConsumer,
    NotAdmittedError,
    Report,
)
from keyturn_workers.amqp.event_batches import NotConfirmedError
from keyturn_workers.amqp.failures import retry_delay_s, utc_now
from keyturn_workers.worker.authorization import (
    Arrival,
    Rules,
    Signer,
    authorize,
    check_age,
    rejection_of,
    verify,
)
from keyturn_workers.worker.grants import GrantsKeeper
from keyturn_workers.worker.metrics import Delivery

# How long an expired request waits for a storage that cannot say whether it was completed.
_EXPIRED_RETRIES: Final = timedelta(days=1)
_SAME_TIME: Final = timedelta(minutes=1)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handled:
    """A request that was served: the events to publish, what to log, and what follows.

    `event` is None if nothing is published yet; `more` are published after it, all at once, and
    `after` is called once all of them are confirmed.
    """

    event: Event | None
    logged: dict[str, Any]
    after: Callable[[], Awaitable[None]] | None = None
    more: tuple[Event, ...] = ()


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

        Args:
            request: The request.
            origin: Who signed it.
            seen_before: Whether an earlier delivery may have done part of it.
            attempts: How many deliveries in a row ended with the same transient error.

        Raises:
            CodedError: why it is refused, or retried.
            DeferError: it is to be redelivered later.
        """
        ...

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Handled | None:
        """What an expired request already did, read from its target, or None.

        It starts nothing that the request asks for (SPEC 6.3).

        Raises:
            CodedError: why that cannot be determined; transient errors are retried.
        """
        ...

    def gives_up(self, error: CodedError) -> bool:
        """Whether a transient error is final for these requests all the same."""
        ...

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: CodedError
    ) -> None:
        """Clean up after an admitted request was refused for good, and that was published.

        It may be called more than once, and never for what is handled as a bad signature.
        """
        ...


class RequestAudit(Protocol):
    """Records requests in the audit trail (SPEC 15.3)."""

    async def served(self, request: Request, origin: RequestOrigin) -> None:
        """The request was served; returns once that is recorded."""

    async def refused(self, body: bytes, publisher: str, error: CodedError) -> None:
        """What this publisher signed was refused for good; returns once that is recorded."""


@dataclass(frozen=True, slots=True)
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
    """The storage's clock, by which a worker refuses what has expired.

    `learn` asks the storage for its time anew; `is_known` says whether the time is known well
    enough to refuse a request for good.
    """

    learn: Callable[[], Awaitable[None]] = _nothing_to_learn
    is_known: Callable[[], bool] = _always


class RequestConsumer(MessageConsumer[RequestJob, Handled]):
    """Consumes one queue of requests."""

    def __init__(
        self,
        handler: RequestHandler,
        rules: Rules,
        context: ConsumerContext,
        *,
        time: TimeSource | None = None,
        grants: GrantsKeeper | None = None,
        audit: RequestAudit | None = None,
    ) -> None:
        super().__init__(handler.queue, context)
        self._handler = handler
        self._rules = rules
        self._time = time or TimeSource()
        self._grants = grants
        self._audit = audit

    async def _admit(self, message: AbstractIncomingMessage, delivery: Delivery) -> RequestJob:
        try:
            job = self._authorize(message)
        except NotAdmittedError as exc:
            if not isinstance(exc.error, (BadSignatureError, NotPermittedError)):
                raise
            if not await self._grants_changed(message):
                raise
            job = self._authorize(message)
        delivery.mark_admitted(job.request.requested_at)
        delivery.identify("request", request_id(job.request))
        if not job.seen_before:
            self._metrics.note_wait(job.request.requested_at)
        return job

    def _authorize(self, message: AbstractIncomingMessage) -> RequestJob:
        signer = None
        arrival = Arrival(self._queue, self._handler.served, message.routing_key or "")
        try:
            with self._metrics.stage("admit"):
                signer = verify(message.body, message.headers, self._rules)
                request = authorize(message.body, signer, arrival)
        except BadSignatureError as exc:
            # Forged, or genuine and moved by an attacker: no event says so, since what was moved
            # may be served elsewhere.
            raise NotAdmittedError(exc) from exc
        except PermanentError as exc:
            raise NotAdmittedError(exc, signer) from exc
        retry = self._worker_publisher.retry_of(message, self._queue, publisher=signer.name)
        actor = None if isinstance(request, UploadRequested) else request.actor
        origin = RequestOrigin.of(signer.name, message.body, actor)
        return RequestJob(message, retry, signer.name, request, signer, origin)

    async def _grants_changed(self, message: AbstractIncomingMessage) -> bool:
        """Whether the publishers have changed since a moment ago (SPEC 6.3).

        Raises:
            NotConfirmedError: its publisher is known now, but has no stream yet.
        """
        if self._grants is None:
            return False
        changed = await self._grants.refresh()
        if self._grants.is_pending(message.headers.get(PUBLISHER_HEADER)):
            raise NotConfirmedError("the stream of its publisher is not declared")
        return changed

    async def _serve(self, job: RequestJob) -> Handled:
        request, origin = job.request, job.origin
        expired = await self._expired(request)
        if expired is None:
            return await self._handler.serve(
                request, origin, seen_before=job.seen_before, attempts=job.attempts
            )
        # A redelivery may have waited long: what was completed is published as completed.
        handled = await self._handler.find_completed(request, origin)
        if handled is not None:
            return handled
        if not self._time.is_known() and not self._clocks_agree():
            # A single wrong `Date`, seen first, must not refuse a fresh request for good. If this
            # machine's own clock agrees, both would have to be wrong by the same time.
            raise StorageUnavailableError(
                "the storage's clock has not been known for two leases yet"
            )
        raise expired

    def _clocks_agree(self) -> bool:
        """Whether this machine's own clock shows the storage's time to within a minute."""
        return abs(self._now() - utc_now()) <= _SAME_TIME

    async def _expired(self, request: Request) -> RequestExpiredError | None:
        """The refusal of an expired request, by the storage's clock of this moment."""
        for learn in (False, True):
            if learn:
                # A worker whose own clock is wrong must not refuse a fresh request for good.
                await self._time.learn()
            try:
                check_age(request, self._rules.max_age, self._now())
            except RequestExpiredError as exc:
                expired = exc
            else:
                return None
        return expired

    async def _complete(self, job: RequestJob, result: Handled, delivery: Delivery) -> Report:
        with self._metrics.stage("tell"):
            if self._audit is not None:
                # After the effect and before the acknowledgment: what changed and was not
                # recorded is delivered again, and recorded then.
                await self._audit.served(job.request, job.origin)
            if result.event is not None:
                await self._publish(result.event, job)
            # Together, so that they go out in batches.
            await asyncio.gather(*(self._publish(event, job) for event in result.more))
            if result.after is not None:
                await result.after()
        return partial(self._report_served, job, result, delivery)

    async def _publish(self, event: Event, job: RequestJob) -> None:
        await self._worker_publisher.publish_event(with_origin(event, job.origin))

    def _report_served(self, job: RequestJob, result: Handled, delivery: Delivery) -> None:
        event_type = job.request.type if result.event is None else result.event.type
        self._metrics.count_served(event_type)
        _log.info(
            event_type,
            publisher=job.publisher,
            ms=round(delivery.held_s() * 1000, 1),
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

    async def _reject(self, message: AbstractIncomingMessage, refusal: NotAdmittedError) -> Report:
        return await self._refuse(message, refusal.error, refusal.signer)

    async def _give_up(self, job: RequestJob, error: CodedError) -> Report:
        return await self._refuse(job.message, error, job.signer, job)

    async def _refuse(
        self,
        message: AbstractIncomingMessage,
        error: CodedError,
        signer: Signer | None,
        admitted: RequestJob | None = None,
    ) -> Report:
        """Refuse for good. Without a `signer`, no event says so."""
        at = format_time(self._now())
        event = None if signer is None else rejection_of(message.body, signer, error, at)
        if self._audit is not None and signer is not None:
            await self._audit.refused(message.body, signer.name, error)
        # The dead letter first, the event second: a reader of the event finds the letter.
        await self._worker_publisher.dead_letter(message, self._queue, error)
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
            # Given back instead, each delivery would leave one more dead letter.
            _log.warning("not cleaned up", **job.log_fields, problem=type(exc).__name__)
