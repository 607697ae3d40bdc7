"""From a delivery to its acknowledgement, the same for every role (SPEC 6.2, 6.3, 12).

A message is acknowledged only after its effect and its event are durable, or after its
copy stands in a retry or dead-letter queue. Whatever else happens, it comes again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog

from contracts.errors import (
    BadSignatureError,
    KeyturnError,
    PermanentError,
    StorageUnavailableError,
)
from contracts.messages import (
    Event,
    Request,
    RequestOrigin,
    identity,
    rejection,
    request_id,
    with_origin,
)
from contracts.names import format_time
from contracts.topology import REQUESTS
from workers.admission import Rules, admit, verify
from workers.broker.delivery import attempts, retry_delay_s, was_put_off
from workers.broker.direct import Delivered
from workers.broker.teller import NotConfirmedError, Teller
from workers.metrics import Delivery, WorkerMetrics

# While disconnected, publishing fails at once; without a pause this would spin.
_PAUSE_S: Final = 1

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Done:
    """A request that was served: the events to tell, what to log, and what follows the telling.

    `event` is None where nothing is told yet; `more` are told after it.
    """

    event: Event | None
    logged: dict[str, Any]
    after: Callable[[], Awaitable[None]] | None = None
    more: tuple[Event, ...] = ()


class NotYetError(Exception):
    """The request is done, but for a wait: it is to come again in about so many seconds.

    The wait is the broker's: whoever holds the request may die meanwhile.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"in {wait_s:.0f} s")
        self.wait_s = wait_s


class Role(Protocol):
    """What serves the requests of one queue."""

    @property
    def queue(self) -> str:
        """The queue's name."""
        ...

    @property
    def served(self) -> tuple[str, ...]:
        """The types of requests that the queue carries."""
        ...

    async def serve(self, request: Request, origin: RequestOrigin, *, seen_before: bool) -> Done:
        """Do what the request asks.

        Raises:
            KeyturnError: the refusal that it meets.
            NotYetError: it is to come again.
        """
        ...


class Consumer:
    """Takes the deliveries of one role's queue."""

    def __init__(
        self, role: Role, rules: Rules, teller: Teller, metrics: WorkerMetrics | None = None
    ) -> None:
        self._role = role
        self._rules = rules
        self._teller = teller
        self._metrics = (metrics or WorkerMetrics()).queue(role.queue)

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

    async def _consume(self, message: Delivered, delivery: Delivery) -> None:
        try:
            with self._metrics.stage("admit"):
                publisher = verify(message.body, message.headers, self._rules)
                request = self._admit(message, publisher)
        except BadSignatureError as exc:
            # Nobody's word: told in no event, and its content is not looked at.
            await self._refuse(message, exc, tell=False)
            return
        except PermanentError as exc:
            await self._refuse(message, exc)
            return
        delivery.admitted(request.requested_at)
        origin = RequestOrigin.of(publisher, message.body)
        await self._serve(message, request, origin, delivery)

    def _admit(self, message: Delivered, publisher: str) -> Request:
        return admit(
            message.body,
            publisher,
            self._rules,
            served=self._role.served,
            routed_as=message.routing_key or "",
            now=datetime.now(UTC),
        )

    async def _serve(
        self,
        message: Delivered,
        request: Request,
        origin: RequestOrigin,
        delivery: Delivery,
    ) -> None:
        seen_before = bool(message.redelivered) or was_put_off(message.headers)
        try:
            with self._metrics.stage("serve"):
                done = await self._role.serve(request, origin, seen_before=seen_before)
        except NotYetError as exc:
            await self._teller.put_off_quietly(message, self._role.queue, exc.wait_s)
            self._metrics.waits()
            await message.ack()
            return
        except KeyturnError as exc:
            await self._put_off_or_refuse(message, request, exc)
            return
        except NotConfirmedError:
            raise  # what it sends itself was not confirmed: the broker gives the request again
        except Exception as exc:  # noqa: BLE001  # a bug of ours must not lose a message
            _log.exception("unexpected failure", request_id=request_id(request))
            error = StorageUnavailableError(f"internal failure: {type(exc).__name__}")
            await self._put_off_or_refuse(message, request, error)
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
            again=seen_before,
            **done.logged,
        )

    async def _put_off_or_refuse(
        self, message: Delivered, request: Request, error: KeyturnError
    ) -> None:
        attempt = attempts(message.headers, error)
        delay_s = retry_delay_s(
            error,
            attempt,
            requested_at=request.requested_at_instant,
            max_age=self._rules.max_age,
            now=datetime.now(UTC),
        )
        if delay_s is None:
            await self._refuse(message, error)
            return
        await self._teller.put_off(message, self._role.queue, error, attempt, delay_s)
        self._metrics.put_off(error)
        await message.ack()
        _log.warning(
            "put off",
            request_id=request_id(request),
            code=error.code,
            detail=error.detail,
            delay_s=delay_s,
        )

    async def _refuse(self, message: Delivered, error: KeyturnError, *, tell: bool = True) -> None:
        routed_as = message.routing_key if message.routing_key in REQUESTS else None
        claimed = identity(message.body, routed_as or self._role.served[0]) if tell else None
        # Dead first, told second: whoever hears of a refusal finds the letter.
        await self._teller.dead_letter(message, self._role.queue, error)
        self._metrics.refused(error)
        if claimed is not None:
            at = format_time(datetime.now(UTC))
            await self._teller.tell(rejection(*claimed, error, at))
        await message.ack()
        _log.warning(
            "refused",
            request_id=claimed[1] if claimed else None,
            code=error.code,
            detail=error.detail,
        )


async def _give_back(message: Delivered) -> None:
    try:
        await message.nack(requeue=True)
    except Exception as exc:  # noqa: BLE001  # the channel is gone: the broker gives it again
        _log.debug("delivery lost with its channel", problem=type(exc).__name__)
