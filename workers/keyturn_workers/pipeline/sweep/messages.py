"""The messages of sweeps: hints between workers, and events (SPEC 6.7, 8.5, 8.6).

Hints ask for a step or for a page. They are not signed and prove nothing: the project's sealed
record decides. A forged or stale hint finds nothing to do there, or does work that had to be done
anyway.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, Protocol

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keyturn.counts import Counts
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import format_time
from keyturn.messages.codec import id_field, with_origin
from keyturn.messages.events import EVENT_MODELS, EraseRejected, Event, ProjectErased
from keyturn.messages.fields import Project, RequestId
from keyturn.messages.json_text import as_text, load_json, problems
from keyturn.progress import Progress
from keyturn.topology import PLAN_QUEUE, SWEEP_QUEUE
from keyturn_workers.core.sweep_record import AllRecord, End, OpenPage, Origin, ProjectRecord
from keyturn_workers.pipeline.amqp.failures import longest_delay_s

_MAX: Final = 2**53 - 1
Number = Annotated[int, Field(ge=0, le=_MAX)]


class _Hint(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


class SweepStep(_Hint):
    """Make this step of a project's record, or of the record of all projects (`*`)."""

    type: Literal["sweep.step"] = "sweep.step"
    project: Project | Literal["*"]
    step: Number


class SweepPage(_Hint):
    """Make an attempt at a page of a round; `attempt` is the number of earlier attempts."""

    type: Literal["sweep.page"] = "sweep.page"
    project: Project
    round: RequestId
    page: Number
    attempt: Number


Hint = SweepStep | SweepPage


def queue_of(hint: Hint) -> str:
    """The queue on which a hint travels."""
    return PLAN_QUEUE if isinstance(hint, SweepStep) else SWEEP_QUEUE


def encode(hint: Hint) -> bytes:
    """The bytes of a hint."""
    return orjson.dumps(hint.model_dump(mode="json"))


def parse(body: bytes) -> Hint:
    """The hint in these bytes.

    Raises:
        MalformedRequestError: the bytes are no hint.
    """
    document = load_json(body)
    models: dict[object, type[Hint]] = {"sweep.step": SweepStep, "sweep.page": SweepPage}
    model = models.get(as_text(document.get("type")))
    if model is None:
        raise MalformedRequestError("unknown type")
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None


class Sender(Protocol):
    """Sends messages: `WorkerPublisher`, or a queue in memory."""

    async def publish_event(self, event: Event) -> None:
        """Publish a signed event; returns once it is durable."""
        ...

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        """Send a worker's message to a queue, now or after a delay; returns once it is durable."""
        ...


class SweepDispatcher:
    """Sends the hints of sweeps and publishes their events."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    async def send_step(self, record: ProjectRecord | AllRecord, wait_s: float = 0) -> None:
        """Send the step that the record waits for, in about `wait_s` seconds."""
        hint = SweepStep(project=record.project, step=record.step)
        await self._send(hint, longest_delay_s(wait_s))

    async def send_page(self, project: str, round_id: str, page: OpenPage) -> None:
        """Send the current attempt at a page."""
        hint = SweepPage(project=project, round=round_id, page=page.page, attempt=page.attempts)
        await self._send(hint, 0)

    async def _send(self, hint: Hint, delay_s: int) -> None:
        await self._sender.send(encode(hint), queue_of(hint), delay_s)

    async def publish_progress(
        self,
        project: str,
        origin: Origin,
        counts: Counts,
        *,
        progress: Progress,
        clean: bool = False,
    ) -> None:
        """Publish the progress of a project's sweep, once to the publisher of this origin."""
        event = _counted(
            "sweep.progressed", project, origin.id, counts, clean=clean, progress=progress
        )
        # Publishers match progress by all fields but the digest (SPEC 6.7).
        await self._sender.publish_event(with_origin(event, origin.requests[0]))

    async def publish_end(self, project: str, origin: Origin) -> None:
        """Publish an origin's end, as the answer to each of its requests."""
        event = end_event(project, origin)
        for request in origin.requests:
            await self._sender.publish_event(with_origin(event, request))


def end_event(project: str, origin: Origin) -> Event:
    """The event for the end of a rotation, a sweep or an erasure.

    If it cannot continue, it has failed. That does not reject the request, which was accepted
    (SPEC 6.7).
    """
    end = origin.end
    if end is None:
        raise ValueError("it has not ended")
    if origin.kind == "erase":
        return _erasure_end(project, origin, end)
    if end.code:
        event_type = f"{origin.kind}.failed"
        failed: Any = EVENT_MODELS[event_type](
            **{id_field(event_type): origin.id},
            project=project,
            code=end.code,
            detail=end.detail,
            at=_now(),
        )
        event: Event = failed
        return event
    return _counted(
        f"{origin.kind}.completed",
        project,
        origin.id,
        end.counts,
        clean=end.clean,
        late_writes_refused=end.late_writes_refused,
        evidence=end.evidence,
    )


def _erasure_end(project: str, origin: Origin, end: End) -> Event:
    if end.state is None or end.evidence is None:
        return EraseRejected(
            request_id=origin.id, project=project, at=_now(), code=end.code, detail=end.detail
        )
    return ProjectErased(
        request_id=origin.id,
        project=project,
        at=_now(),
        generation=end.state.generation,
        evidence=end.evidence,
    )


def _counted(
    event_type: str, project: str, origin_id: str, counts: Counts, *, clean: bool, **more: Any
) -> Event:
    fields: dict[str, Any] = {
        **more,
        id_field(event_type): origin_id,
        "project": project,
        "at": _now(),
        "clean": clean,
        **counts.to_json(),
    }
    event: Any = EVENT_MODELS[event_type](**fields)
    counted: Event = event
    return counted


def _now() -> str:
    return format_time(datetime.now(UTC))
