"""The request handler of the control worker (SPEC 6.1, 6.7)."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from keyturn.errors import CodedError, MalformedRequestError, PermanentError
from keyturn.identifiers import format_time, parse_time
from keyturn.messages.events import (
    DeleteRejected,
    Event,
    ObjectDeleted,
    ProjectEnrolled,
    ProjectRecovered,
    RotationAccepted,
    StatusReported,
)
from keyturn.messages.requests import (
    DeadLettersRequested,
    DeleteRequested,
    EnrollRequested,
    EraseRequested,
    RecoverRequested,
    Request,
    RotationRequested,
    StatusRequested,
    SweepRequested,
)
from keyturn.request_origin import RequestOrigin
from keyturn.topology import CONTROL_QUEUE, CONTROL_REQUESTS
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import Origin
from keyturn_workers.keys.keyring.marks import KeyringContradictedError, KeyringUnknownError
from keyturn_workers.pipeline.amqp.outcomes import Handled
from keyturn_workers.pipeline.control.dead_letters import DeadLetterMover
from keyturn_workers.pipeline.control.deletion import Deleter, Outcomes
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.control.recovery import Recoverer
from keyturn_workers.pipeline.control.rotation import RotationResult, Rotator
from keyturn_workers.pipeline.sweep.messages import end_event
from keyturn_workers.pipeline.sweep.starter import SweepStarter, new_origin
from keyturn_workers.reports.status.reader import StatusReader

# A worker that put a project's first keyring marks it at once, or its request is redelivered.
_MARKED_WITHIN: Final = timedelta(minutes=1)


class ControlHandler:
    """Serves `keyturn.control`: whatever concerns projects, and deletes, letters and reports."""

    queue: Final = CONTROL_QUEUE
    served: Final = CONTROL_REQUESTS

    def __init__(
        self,
        enroller: Enroller,
        rotator: Rotator,
        starter: SweepStarter,
        deleter: Deleter,
        *,
        dead_letter_mover: DeadLetterMover | None = None,
        status_reader: StatusReader | None = None,
        recoverer: Recoverer | None = None,
    ) -> None:
        self._enroller = enroller
        self._rotator = rotator
        self._starter = starter
        self._deleter = deleter
        self._dead_letter_mover = dead_letter_mover
        self._status_reader = status_reader
        self._recoverer = recoverer

    async def serve(
        self, request: Request, origin: RequestOrigin, *, seen_before: bool, attempts: int = 0
    ) -> Handled:
        """Serve one request; a repeated request changes nothing."""
        del seen_before
        match request:
            case EnrollRequested():
                handled = _enrolled(request, await self._enroller.enroll(request, origin))
            case RotationRequested():
                handled = _rotated(request, await self._rotator.rotate(request, origin))
            case SweepRequested() | EraseRequested():
                handled = await self._start(request, origin)
            case DeleteRequested():
                handled = await self._delete(request, attempts)
            case RecoverRequested() if self._recoverer is not None:
                handled = _recovered(request, await self._recoverer.recover(request))
            case DeadLettersRequested() if self._dead_letter_mover is not None:
                handled = await self._dead_letter_mover.serve(request, origin)
            case StatusRequested() if self._status_reader is not None:
                handled = _reported(request, await self._status_reader.report(request))
            case _:
                raise MalformedRequestError(f"{request.type} is not served here")
        return handled

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Handled | None:
        """The result of an expired request that was completed before; else None (SPEC 6.3).

        Changes nothing, except that an existing sweep continues.

        Raises:
            TransientError: try again later.
            DeferError: the delete is done except for the wait.
        """
        handled: Handled | None = None
        try:
            match request:
                case EnrollRequested():
                    enrolled = await self._enroller.find_enrolled(request, origin)
                    handled = None if enrolled is None else _enrolled(request, enrolled)
                case RotationRequested():
                    rotated = await self._rotator.find_rotated(request, origin)
                    handled = None if rotated is None else _rotated(request, rotated)
                case SweepRequested() | EraseRequested():
                    if await self._starter.find(request.project, _origin(request, origin)):
                        handled = await self._start(request, origin)
                case DeleteRequested(key=str(key)):
                    if await self._deleter.find_deleted(request):
                        handled = _deleted(request, key)
                case DeleteRequested():
                    outcomes = await self._deleter.find_deleted_many(request)
                    handled = None if outcomes is None else _deleted_many(request, outcomes)
                case RecoverRequested() if self._recoverer is not None:
                    keyring = await self._recoverer.find_recovered(request)
                    handled = None if keyring is None else _recovered(request, keyring)
        except PermanentError:
            # Another request's keyring, or no keyring: this request had no effect.
            return None
        return handled

    async def _start(
        self, request: SweepRequested | EraseRequested, origin: RequestOrigin
    ) -> Handled:
        added = _origin(request, origin)
        started = await self._starter.start(request.project, added, limited=True)
        logged = {"project": request.project, f"{added.kind}_id": added.id}
        return Handled(None, logged, more=_end(request.project, started))

    async def _delete(self, request: DeleteRequested, attempts: int) -> Handled:
        if request.key is None:
            return _deleted_many(request, await self._deleter.delete_many(request, attempts))
        await self._deleter.delete(request)
        return _deleted(request, request.key)

    def gives_up(self, error: CodedError) -> bool:
        """Return True if a transient error ends a control request (SPEC 5.5).

        No retry changes a keyring that a mark contradicts. But a keyring without a mark may be
        another enrollment's, whose worker is about to mark it.
        """
        if isinstance(error, KeyringUnknownError):
            age = datetime.now(UTC) - parse_time(error.keyring.current.at)
            return age > _MARKED_WITHIN
        return isinstance(error, KeyringContradictedError)

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: CodedError
    ) -> None:
        """A refused control request leaves nothing behind."""
        del request, origin, error


def _enrolled(request: EnrollRequested, generation: int) -> Handled:
    event = ProjectEnrolled(
        request_id=request.request_id,
        project=request.project,
        at=_now(),
        generation=generation,
    )
    return Handled(event, _logged(request, generation=generation))


def _rotated(request: RotationRequested, rotated: RotationResult) -> Handled:
    event = RotationAccepted(
        rotation_id=request.rotation_id,
        project=request.project,
        at=_now(),
        generation=rotated.generation,
    )
    logged = {
        "project": request.project,
        "rotation_id": request.rotation_id,
        "generation": rotated.generation,
    }
    return Handled(event, logged, more=_end(request.project, rotated.origin))


def _origin(request: SweepRequested | EraseRequested, origin: RequestOrigin) -> Origin:
    if isinstance(request, EraseRequested):
        added = new_origin("erase", request.request_id, request.requested_at, origin)
        return replace(added, reason=request.reason)
    options = SweepOptions(request.master_key, request.encrypt_plaintext, request.repair)
    return new_origin("sweep", request.sweep_id, request.requested_at, origin, options=options)


def _deleted(request: DeleteRequested, key: str) -> Handled:
    return Handled(_outcome(request, key, None), _logged(request, key=key))


def _deleted_many(request: DeleteRequested, outcomes: Outcomes) -> Handled:
    refused = Counter(error.code for error in outcomes.values() if error is not None)
    events = tuple(_outcome(request, key, error) for key, error in outcomes.items())
    logged = _logged(request, keys=len(outcomes), refused=dict(refused))
    return Handled(None, logged, more=events)


def _outcome(
    request: DeleteRequested, key: str, error: CodedError | None
) -> ObjectDeleted | DeleteRejected:
    fields: dict[str, Any] = {
        "request_id": request.request_id,
        "project": request.project,
        "at": _now(),
    }
    if error is None:
        return ObjectDeleted(**fields, key=key)
    return DeleteRejected(**fields, key=key, code=error.code, detail=error.detail)


def _recovered(request: RecoverRequested, keyring: Keyring) -> Handled:
    event = ProjectRecovered(
        request_id=request.request_id,
        project=request.project,
        at=_now(),
        generation=keyring.current.generation,
        serial=keyring.serial,
    )
    return Handled(event, _logged(request, serial=keyring.serial))


def _reported(request: StatusRequested, report: StatusReported) -> Handled:
    return Handled(report, _logged(request, view=request.view, code=report.code))


def _end(project: str, origin: Origin) -> tuple[Event, ...]:
    """The end event of a finished sweep: it answers this request too.

    The record notes only later that an end was published. Whoever began to listen between the two,
    and then sent this request, has missed that event.
    """
    return () if origin.is_open else (end_event(project, origin),)


def _logged(
    request: EnrollRequested | DeleteRequested | RecoverRequested | StatusRequested, **more: Any
) -> dict[str, Any]:
    return {"project": request.project, "request_id": request.request_id, **more}


def _now() -> str:
    return format_time(datetime.now(UTC))
