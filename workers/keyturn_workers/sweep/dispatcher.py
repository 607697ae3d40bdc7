"""What a sweep sends: hints to workers, and events about its progress and end (SPEC 6.7, 8.6)."""

from datetime import UTC, datetime
from typing import Any, Protocol

from keyturn.errors import CodedError
from keyturn.identifiers import format_time
from keyturn.messages import EVENT_MODELS, Event, RequestOrigin, id_field, with_origin
from keyturn_workers.amqp.retry import longest_delay_s
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.messages import Hint, SweepPage, SweepStep, encode, queue_of
from keyturn_workers.sweep.plan import (
    AllPlan,
    OpenPage,
    Origins,
    Plan,
    SweepRequest,
    one_per_publisher,
)


class Sender(Protocol):
    """Sends messages: `keyturn_workers.amqp.WorkerPublisher`, or a queue in memory."""

    async def publish_event(self, event: Event) -> None:
        """Publish a signed event, and return once it is durable."""
        ...

    async def send(self, body: bytes, queue: str, delay_s: int) -> None:
        """Put a message of a worker into a queue, now or after a delay, and return once durable."""
        ...


class SweepDispatcher:
    """Sends the hints of sweeps and publishes their events."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    async def send_step(self, plan: Plan | AllPlan, wait_s: float = 0) -> None:
        """Send the step that the plan waits for, in about `wait_s` seconds."""
        hint = SweepStep(sweep_id=plan.ask.sweep_id, project=plan.ask.project, step=plan.step)
        await self._send(hint, longest_delay_s(wait_s))

    async def send_page(self, plan: Plan, open_page: OpenPage) -> None:
        """Send the current attempt at a page."""
        await self._send(
            SweepPage(
                sweep_id=plan.ask.sweep_id,
                project=plan.ask.project,
                round=plan.round,
                page=open_page.page,
                take=open_page.take,
            ),
            0,
        )

    async def _send(self, hint: Hint, delay_s: int) -> None:
        await self._sender.send(encode(hint), queue_of(hint), delay_s)

    async def publish_progress(
        self, request: SweepRequest, counts: Counts, origins: Origins, *, clean: bool = False
    ) -> None:
        """Publish how far a sweep of one project is, once to each publisher that requested it."""
        event = _counted("sweep.progressed", request, counts, clean=clean)
        for origin in one_per_publisher(origins):
            await self._sender.publish_event(with_origin(event, origin))

    async def publish_end(self, plan: Plan | AllPlan, origin: RequestOrigin | None) -> None:
        """Publish how a rotation or a sweep ended, as the response to this request."""
        await self._sender.publish_event(with_origin(completed_event(plan), origin))

    async def publish_failure(
        self, request: SweepRequest, error: CodedError, origin: RequestOrigin | None
    ) -> None:
        """Publish that a rotation or a sweep cannot continue, as the response to this request.

        This does not reject the request, which was accepted (SPEC 6.7).
        """
        await self._sender.publish_event(with_origin(failed_event(request, error), origin))


def failed_event(request: SweepRequest, error: CodedError) -> Event:
    """The event that a rotation or a sweep cannot continue."""
    event_type = f"{request.kind}.failed"
    fields = {"code": error.code, "detail": error.detail, "at": _now()}
    event: Any = EVENT_MODELS[event_type](
        **{id_field(event_type): request.sweep_id}, project=request.project, **fields
    )
    failed: Event = event
    return failed


def completed_event(plan: Plan | AllPlan) -> Event:
    """The event of how a rotation or a sweep ended."""
    counts = plan.counts if isinstance(plan, Plan) else plan.sums
    evidence = plan.evidence if isinstance(plan, Plan) else None
    return _counted(
        f"{plan.ask.kind}.completed",
        plan.ask,
        counts,
        clean=plan.clean,
        late_writes_refused=plan.late_writes_refused,
        evidence=evidence,
    )


def _counted(
    event_type: str, request: SweepRequest, counts: Counts, *, clean: bool, **more: Any
) -> Event:
    fields: dict[str, Any] = {
        **more,
        id_field(event_type): request.sweep_id,
        "project": request.project,
        "at": _now(),
        "clean": clean,
        **counts.to_json(),
    }
    event: Any = EVENT_MODELS[event_type](**fields)
    counted: Event = event
    return counted


def _now() -> str:
    return format_time(datetime.now(UTC))
