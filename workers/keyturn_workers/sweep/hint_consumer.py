"""From a hint's delivery to its acknowledgement (SPEC 6.2, 8.5, 12).

As with requests: acknowledged only after what it asks for is durable, or after its copy
stands in a retry or dead-letter queue. A hint is nobody's word: what is no hint, or names
no sweep, changes nothing.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog
from aio_pika.exceptions import AMQPException

from keyturn.errors import CodedError, MalformedRequestError, NotFoundError, StorageUnavailableError
from keyturn.topology import RETRY_DELAYS_S
from keyturn_workers.amqp import NotConfirmedError, WorkerPublisher
from keyturn_workers.amqp.direct import Delivered
from keyturn_workers.amqp.retry import Retry, attempts, retry_delay_s, utc_now
from keyturn_workers.errors import StorageAnswerError
from keyturn_workers.sweep.handler import SweepRole
from keyturn_workers.sweep.messages import Hint, SweepPage, SweepStep, parse, queue_of
from keyturn_workers.worker.metrics import WorkerMetrics

_PAUSE_S: Final = 1

_log = structlog.get_logger()


class HintConsumer:
    """Takes the deliveries of one of the sweep's queues."""

    def __init__(
        self,
        role: SweepRole,
        teller: WorkerPublisher,
        queue: str,
        max_age: timedelta,
        metrics: WorkerMetrics | None = None,
        *,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._now = now
        self._role = role
        self._teller = teller
        self._queue = queue
        self._max_age = max_age
        self._metrics = (metrics or WorkerMetrics()).queue(queue)

    @property
    def in_flight(self) -> int:
        """Deliveries being served."""
        return self._metrics.in_flight

    async def __call__(self, message: Delivered) -> None:
        """Serve one delivery to its end; raises only where it is cancelled."""
        with self._metrics.delivery():
            try:
                await self._consume(message)
                await message.ack()
            except Exception:  # noqa: BLE001  # nothing may be lost, whatever it was
                _log.exception("delivery not finished")
                await asyncio.sleep(_PAUSE_S)
                await _give_back(message)

    async def _consume(self, message: Delivered) -> None:
        try:
            hint = _parsed(message.body, self._queue)
        except MalformedRequestError as exc:
            await self._dead_letter(message, exc)
            _log.warning("refused", queue=self._queue, code=exc.code, detail=exc.detail)
            return
        retry = self._teller.retry_of(message, self._queue)
        if retry is not None and retry.early_s(self._now()):
            # Moved out of its retry queue: it neither counts nor shortens the wait.
            await self._teller.put_back(message, self._queue, retry)
            return
        try:
            with self._metrics.stage("serve"):
                await self._serve(hint, message, retry)
        except NotFoundError as exc:
            # Forged, or left over from a sweep whose records were removed.
            _log.warning("hint without a sweep", sweep_id=hint.sweep_id, detail=exc.detail)
        except CodedError as exc:
            await self._put_off_or_fail(hint, message, retry, exc)
        except StorageAnswerError as exc:
            error = StorageUnavailableError(f"{type(exc).__name__}: {exc}")
            await self._put_off_or_fail(hint, message, retry, error)
        except (AMQPException, NotConfirmedError):
            raise  # nothing was confirmed: the broker gives it again
        except Exception as exc:  # noqa: BLE001  # a bug of ours must not make a loop
            _log.exception("unexpected failure", sweep_id=hint.sweep_id)
            error = StorageUnavailableError(f"internal failure: {type(exc).__name__}")
            await self._put_off_or_fail(hint, message, retry, error)

    async def _serve(self, hint: Hint, message: Delivered, retry: Retry | None) -> None:
        # The delay queues leave their own marks on every step: only what the broker or a worker
        # says of a second try counts.
        again = bool(message.redelivered) or retry is not None
        match hint:
            case SweepStep():
                await self._role.step(hint, again=again)
            case SweepPage():
                await self._role.page(hint)

    async def _put_off_or_fail(
        self, hint: Hint, message: Delivered, retry: Retry | None, error: CodedError
    ) -> None:
        attempt = attempts(retry, error)
        delay_s = self._delay_s(hint, error, attempt)
        said = {"sweep_id": hint.sweep_id, "project": hint.project, "code": error.code}
        if delay_s is not None:
            await self._teller.schedule_retry(message, self._queue, error, attempt, delay_s)
            self._metrics.schedule_retry(error)
            log = _log.error if error.code == "keyring_rolled_back" else _log.warning
            log("put off", **said, detail=error.detail, delay_s=delay_s)
            return
        if isinstance(hint, SweepStep):
            await self._fail(hint, error)
        await self._dead_letter(message, error)
        _log.error("gave up", **said, detail=error.detail)

    async def _dead_letter(self, message: Delivered, error: CodedError) -> None:
        await self._teller.dead_letter(message, self._queue, error)
        self._metrics.refused(error)

    async def _fail(self, hint: SweepStep, error: CodedError) -> None:
        try:
            await self._role.fail(hint, error)
        except (CodedError, StorageAnswerError) as exc:
            # Its record cannot be changed (by this process, perhaps for want of a master
            # key): the dead letter alone tells of it then.
            _log.error("failure not recorded", sweep_id=hint.sweep_id, problem=type(exc).__name__)

    def _delay_s(self, hint: Hint, error: CodedError, attempt: int) -> int | None:
        """Seconds until the next try, or None where the sweep ends here.

        A page never ends a sweep: what it meets for good, the next step meets as well.
        """
        now = self._now()
        if isinstance(hint, SweepPage) and not error.transient:
            error = StorageUnavailableError(error.detail)
        waited = timedelta(seconds=_waited_s(attempt))
        return retry_delay_s(
            error, attempt, requested_at=now - waited, max_age=self._max_age, now=now
        )


async def _give_back(message: Delivered) -> None:
    try:
        await message.nack(requeue=True)
    except Exception as exc:  # noqa: BLE001  # the channel is gone: it comes again
        _log.debug("delivery lost with its channel", problem=type(exc).__name__)


def _parsed(body: bytes, queue: str) -> Hint:
    hint = parse(body)
    if queue_of(hint) != queue:
        raise MalformedRequestError("this hint travels on another queue")
    return hint


def _waited_s(attempt: int) -> int:
    """The delays of all tries before this one, added up."""
    more = max(0, attempt - len(RETRY_DELAYS_S))
    return sum(RETRY_DELAYS_S[:attempt]) + RETRY_DELAYS_S[-1] * more
