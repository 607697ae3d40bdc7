"""Workers' reports about themselves, for consoles (SPEC 16.2). Pure.

A process reports every few seconds on the stream `keyturn.workers`, signed like an event. No
request begins it, and publishers do not read it.
"""

from typing import Annotated, Final, Literal

import orjson
from pydantic import Field, ValidationError

from keyturn.errors import MalformedRequestError
from keyturn.messages.fields import Actor, EventModel, RequestId, Rows, Seconds, ShortName, Time
from keyturn.messages.json_text import load_json, problems
from keyturn.messages.queue_report import QueueReport
from keyturn.topology import WORKER_REPORTED


class WorkerReported(EventModel):
    """One worker process, now.

    Attributes:
        worker_id: A new UUID for each run.
        roles: `upload`, `control`, `sweep`, `ingest`.
        host: The machine's name.
        version: Of Keyturn.
        started_at: When this run began.
        interval_s: How often it reports: one that has missed several is gone.
        is_stopping: Whether this is its last report.
        lease_s: Its `LEASE_S`.
        is_clock_known: Whether it knows the storage's clock well enough to prove (SPEC 8.4).
        active_master_key: What it enrolls projects under.
        master_keys: The ids of those that it holds.
        event_keys: The ids of those that it holds; the first one signs.
        intake_keys: The ids of those that it holds.
    """

    type: Literal["worker.reported"] = "worker.reported"
    worker_id: RequestId
    roles: Rows[ShortName]
    host: Actor
    version: Annotated[str, Field(max_length=64)]
    started_at: Time
    interval_s: Seconds
    is_stopping: bool = False
    lease_s: Annotated[int, Field(ge=1)]
    is_clock_known: bool
    active_master_key: ShortName
    master_keys: Rows[ShortName]
    event_keys: Rows[Annotated[str, Field(max_length=64)]]
    intake_keys: Rows[ShortName]
    queues: Rows[QueueReport]


WORKER_REPORT_MODELS: Final[dict[str, type[WorkerReported]]] = {WORKER_REPORTED: WorkerReported}


def encode_worker_report(report: WorkerReported) -> bytes:
    """Return the bytes to sign and publish, without unset fields."""
    return orjson.dumps(report.model_dump(mode="json", exclude_none=True))


def parse_worker_report(body: bytes) -> WorkerReported:
    """Parse a report. Unknown fields are ignored (SPEC 6.7).

    Raises:
        MalformedRequestError: not a report that this version knows.
    """
    document = load_json(body)
    if document.get("type") != WORKER_REPORTED:
        raise MalformedRequestError(f"type must be {WORKER_REPORTED}")
    try:
        return WorkerReported.model_validate(document)
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None
