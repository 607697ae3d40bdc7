"""From a delivery to its acknowledgement, the same for every role (SPEC 6.2, 6.3, 12).

A message is acknowledged only after its effect and its event are durable, or after its
copy stands in a retry or dead-letter queue. Whatever else happens, it comes again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import structlog

from keyturn.errors import (
    BadSignatureError,
    CodedError,
    NotPermittedError,
    PermanentError,
    RequestExpiredError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time
from keyturn.messages import Event, Request, RequestOrigin, request_id, with_origin
from keyturn.topology import PUBLISHER_HEADER
from keyturn_workers.amqp.direct import Delivered
from keyturn_workers.amqp.publisher import NotConfirmedError, WorkerPublisher
from keyturn_workers.amqp.retry import Retry, attempts, retry_delay_s, utc_now
from keyturn_workers.worker.authorization import (
    Arrival,
    Rules,
    Signer,
    check_age,
    permit,
    refusal_of,
    verify,
)
from keyturn_workers.worker.grants import GrantsKeeper
from keyturn_workers.worker.metrics import Delivery, WorkerMetrics

# While disconnected, publishing fails at once; without a pause this would spin.
_PAUSE_S: Final = 1
# So long a request past its age waits for a storage that cannot say what is done of it.
_LOOK_AT_LEAST: Final = timedelta(days=1)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Handled:
    """A request that was served: the events to tell, what to log, and what follows the telling.

    `event` is None where nothing is told yet; `more` are told after it.
    """

    event: Event | None
    logged: dict[str, Any]
    after: Callable[[], Awaitable[None]] | None = None
    more: tuple[Event, ...] = ()


class DeferError(Exception):
    """The request is done, but for a wait: it is to come again in about so many seconds.

    The wait is the broker's: whoever holds the request may die meanwhile.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"in {wait_s:.0f} s")
        self.wait_s = wait_s


class RequestHandler(Protocol):
    """What serves the requests of one queue."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        ...

    @property
    def served(self) -> tuple[str, ...]:
        """The types of requests that the queue carries."""
        ...

    async def serve(self, request: Request, origin: RequestOrigin, *, seen_before: bool) -> Handled:
        """Do what the request asks.

        Raises:
            CodedError: the refusal that it meets.
            NotYetError: it is to come again.
        """
        ...

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Handled | None:
        """What is done already of a request past its age, by reading its target; else None.

        It begins nothing that the request asks for (SPEC 6.3).

        Raises:
            CodedError: why it cannot be said; transient errors are tried again.
        """
        ...

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: CodedError
    ) -> None:
        """Clear up after an admitted request was refused for good, and that was published.

        It may come more than once. Never called for what is handled as a bad signature.
        """
        ...


class Consumer:
    """Takes the deliveries of one role's queue."""

    def __init__(
        self,
        role: RequestHandler,
        rules: Rules,
        teller: WorkerPublisher,
        metrics: WorkerMetrics | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
        learn_time: Callable[[], Awaitable[None]] | None = None,
        time_known: Callable[[], bool] | None = None,
        grants: GrantsKeeper | None = None,
    ) -> None:
        """`now` gives the time that ages are by; `learn_time` asks the storage for it anew.

        `time_known` says whether it is known well enough to refuse a request for good.
        """
        self._time_known = time_known or _always
        self._learn_time = learn_time or _nothing_to_learn
        self._grants = grants
        self._role = role
        self._rules = rules
        self._teller = teller
        self._metrics = (metrics or WorkerMetrics()).queue(role.queue)
        self._now = now

    @property
    def in_flight(self) -> int:
        """Deliveries being served."""
        return self._metrics.in_flight

    async def __call__(self, message: Delivered) -> None:
        """Serve one delivery to its end; raises only where it is cancelled."""
        with self._metrics.delivery() as delivery:
            try:
                await self._consume(message, delivery)
            except Exception:  # noqa: BLE001  # nothing may be lost, whatever it was
                # The broker did not confirm, so nothing is acknowledged: the message comes
                # again, from here or, where the connection is gone, from the broker itself.
                _log.exception("delivery not finished", message_id=message.message_id)
                await asyncio.sleep(_PAUSE_S)
                await _give_back(message)

    async def _consume(
        self, message: Delivered, delivery: Delivery, *, read_again: bool = True
    ) -> None:
        signer = None
        try:
            with self._metrics.stage("admit"):
                signer = verify(message.body, message.headers, self._rules)
                request = permit(message.body, signer, self._arrival(message))
        except (BadSignatureError, NotPermittedError) as exc:
            if read_again and await self._grants_changed(message):
                await self._consume(message, delivery, read_again=False)
                return
            # Where it is forged, or genuine and moved by an attacker, no event says so: what was
            # moved may be served elsewhere.
            forged = isinstance(exc, BadSignatureError)
            await self._refuse(message, exc, None if forged else signer)
            return
        except PermanentError as exc:
            await self._refuse(message, exc, signer)
            return
        delivery.admitted(request.requested_at)
        retry = self._teller.retry_of(message, self._role.queue, signer.name)
        taken = _Taken(message, request, signer, retry)
        if retry is not None and retry.early_s(self._now()):
            # Moved out of its retry queue: it neither counts nor shortens the wait.
            await self._teller.put_back(message, self._role.queue, retry, publisher=signer.name)
            self._metrics.waits()
            await message.ack()
            return
        await self._serve(taken, delivery)

    async def _grants_changed(self, message: Delivered) -> bool:
        """Whether the publishers are others than they were a moment ago (SPEC 6.3).

        Raises:
            NotConfirmedError: its publisher is known by now, and has no stream yet.
        """
        if self._grants is None:
            return False
        changed = await self._grants.refresh()
        if self._grants.is_pending(message.headers.get(PUBLISHER_HEADER)):
            raise NotConfirmedError("the stream of its publisher is not declared")
        return changed

    def _arrival(self, message: Delivered) -> Arrival:
        return Arrival(self._role.queue, self._role.served, message.routing_key or "")

    async def _serve(self, taken: "_Taken", delivery: Delivery) -> None:
        message, request, origin = taken.message, taken.request, taken.origin
        try:
            with self._metrics.stage("serve"):
                done = await self._done(taken)
        except DeferError as exc:
            publisher = origin.publisher
            queue = self._role.queue
            await self._teller.defer(message, queue, exc.wait_s, publisher=publisher)
            self._metrics.waits()
            await message.ack()
            return
        except CodedError as exc:
            await self._put_off_or_refuse(taken, exc)
            return
        except NotConfirmedError:
            raise  # what it sends itself was not confirmed: the broker gives the request again
        except Exception as exc:  # noqa: BLE001  # a bug of ours must not lose a message
            _log.exception("unexpected failure", request_id=request_id(request))
            error = StorageUnavailableError(f"internal failure: {type(exc).__name__}")
            await self._put_off_or_refuse(taken, error)
            return
        with self._metrics.stage("tell"):
            for event in (done.event, *done.more):
                if event is not None:
                    await self._teller.tell(with_origin(event, origin))
            if done.after is not None:
                await done.after()
            await message.ack()
        told = request.type if done.event is None else done.event.type
        self._metrics.served(told)
        _log.info(
            told,
            publisher=origin.publisher,
            ms=round(delivery.held_s() * 1000, 1),
            again=taken.seen_before,
            **done.logged,
        )

    async def _done(self, taken: "_Taken") -> Handled:
        request, origin = taken.request, taken.origin
        expired = await self._expired(request)
        if expired is None:
            return await self._role.serve(request, origin, seen_before=taken.seen_before)
        # A redelivery may have waited long for its turn: what is done is published as done.
        done = await self._role.find_completed(request, origin)
        if done is not None:
            return done
        if not self._time_known() and not self._is_expired_here(request):
            # One wrong `Date`, seen first, must refuse no fresh request for good. Where this
            # machine's own clock says the same, both would have to be wrong alike.
            raise StorageUnavailableError("the storage's clock is not known for two leases yet")
        raise expired

    def _is_expired_here(self, request: Request) -> bool:
        """Whether the request is past its age by this machine's own clock too."""
        try:
            check_age(request, self._rules.max_age, utc_now())
        except RequestExpiredError:
            return True
        return False

    async def _expired(self, request: Request) -> RequestExpiredError | None:
        """The refusal of a request past its age, by the storage's clock of this moment."""
        for learn in (False, True):
            if learn:
                # A worker whose own clock is wrong must refuse no fresh request for good.
                await self._learn_time()
            try:
                check_age(request, self._rules.max_age, self._now())
            except RequestExpiredError as exc:
                expired = exc
            else:
                return None
        return expired

    async def _put_off_or_refuse(self, taken: "_Taken", error: CodedError) -> None:
        message, request = taken.message, taken.request
        attempt = attempts(taken.retry, error)
        requested_at = request.requested_at_instant
        delay_s = retry_delay_s(
            error,
            attempt,
            requested_at=requested_at,
            max_age=self._rules.max_age + _LOOK_AT_LEAST,
            # By a clock that is not known nothing is too old to be tried again.
            now=self._now() if self._time_known() else requested_at,
        )
        if delay_s is None:
            await self._refuse(message, error, taken.signer, request)
            return
        await self._teller.schedule_retry(
            message, self._role.queue, error, attempt, delay_s, publisher=taken.signer.name
        )
        self._metrics.schedule_retry(error)
        await message.ack()
        _log.warning(
            "put off",
            request_id=request_id(request),
            code=error.code,
            detail=error.detail,
            delay_s=delay_s,
        )

    async def _refuse(
        self,
        message: Delivered,
        error: CodedError,
        signer: Signer | None = None,
        request: Request | None = None,
    ) -> None:
        """Refuse for good: without a `signer`, whom the message is from, no event says so."""
        at = format_time(self._now())
        event = None if signer is None else refusal_of(message.body, signer, error, at)
        # Dead first, published second: who hears of a refusal finds the letter.
        await self._teller.dead_letter(message, self._role.queue, error)
        self._metrics.refused(error)
        if event is not None:
            await self._teller.tell(event)
        if signer is not None and request is not None:
            await self._clear_up(request, RequestOrigin.of(signer.name, message.body), error)
        await message.ack()
        _log.warning(
            "refused",
            publisher=None if signer is None else signer.name,
            request_id=None if event is None else request_id(event),
            code=error.code,
            detail=error.detail,
        )

    async def _clear_up(self, request: Request, origin: RequestOrigin, error: CodedError) -> None:
        try:
            await self._role.after_refusal(request, origin, error)
        except Exception as exc:  # noqa: BLE001  # what is left is swept away by its age
            # Given back instead, each delivery would leave one more dead letter.
            _log.warning(
                "not cleared up", request_id=request_id(request), problem=type(exc).__name__
            )


@dataclass(frozen=True, slots=True)
class _Taken:
    """An admitted request, as it was delivered."""

    message: Delivered
    request: Request
    signer: Signer
    retry: Retry | None

    @property
    def origin(self) -> RequestOrigin:
        return RequestOrigin.of(self.signer.name, self.message.body)

    @property
    def seen_before(self) -> bool:
        # An unsigned header of a retry says nothing: by one, anyone who may write to the broker
        # could have an upload abort the multipart uploads at its key.
        return bool(self.message.redelivered) or self.retry is not None


async def _nothing_to_learn() -> None:
    return None


def _always() -> bool:
    return True


async def _give_back(message: Delivered) -> None:
    try:
        await message.nack(requeue=True)
    except Exception as exc:  # noqa: BLE001  # the channel is gone: the broker gives it again
        _log.debug("delivery lost with its channel", problem=type(exc).__name__)
