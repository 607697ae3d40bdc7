"""The common part of commands that publish requests (SPEC 6.2, 14).

Each request has its id before it is sent. So a second attempt is the same request, and a user who
stops waiting learns which id to follow.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from keyturn.errors import (
    CodedError,
    KeyringRolledBackError,
    NotDeliveredError,
    OutcomeUnknownError,
    PublisherError,
    WaitTimeoutError,
)
from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages.events import Event, Failed, ProjectEnrolled, Rejected, RotationAccepted
from keyturn.publisher.requests import new_id
from keyturn_workers.cli.errors import CommandError, note
from keyturn_workers.cli.output import print_rows

PUBLISH_ATTEMPTS: Final = 2


@dataclass(slots=True)
class PendingRequest:
    """One request.

    Attributes:
        sent: True if the broker has confirmed it.
        repeated: True if it took more than one attempt, each of which may have arrived.
    """

    id: str = field(default_factory=new_id)
    project: str | None = None
    sent: bool = False
    repeated: bool = False

    async def send(self, publish: Callable[[], Awaitable[str]]) -> None:
        """Publish the request; errors as `publish_with_retry`."""
        self.repeated = await publish_with_retry(publish) > 1
        self.sent = True

    def discard_key_if_refused(self, event: Event | None, saved_to: Path | None) -> None:
        """Delete the file of an API key generated for this request, if the request was refused.

        Only for the refusal of the only attempt: after anything else, the project may have the key.
        It may also have it if its keyring was rolled back: the request may have been served before
        that, and been delivered again.
        """
        if saved_to is None or not isinstance(event, Rejected) or self.repeated:
            return
        if event.code != KeyringRolledBackError.code:
            saved_to.unlink(missing_ok=True)
            note(f"{saved_to} deleted: the request was refused, so its API key opens nothing")


async def publish_with_retry(
    publish: Callable[[], Awaitable[str]], *, attempts: int = PUBLISH_ATTEMPTS
) -> int:
    """Publish under one id, again if unconfirmed; return the number of attempts.

    Raises:
        OutcomeUnknownError: an attempt was not confirmed, nor any later one.
    """
    attempt = 1
    unknown: OutcomeUnknownError | None = None
    while True:
        try:
            await publish()
        except OutcomeUnknownError as exc:
            if attempt == attempts:
                raise
            attempt, unknown = attempt + 1, exc
        except NotDeliveredError as exc:
            if unknown is not None:
                raise unknown from exc  # that attempt may still arrive
            raise
        else:
            return attempt


@contextmanager
def resumable(request: PendingRequest) -> Iterator[None]:
    """If the wait ends early, say that the work continues and how to follow it."""
    named = request.project not in (None, ALL_PROJECTS)
    option = f" --project {request.project}" if named else ""
    hint = (
        f"it continues in the background; to follow it: keyturn status {request.id}{option} --watch"
    )
    try:
        yield
    except KeyboardInterrupt:
        if request.sent:
            note(hint)
        raise
    except WaitTimeoutError as exc:
        raise CommandError(f"{exc}. Otherwise {hint}") from exc


def request_status(event: Event | None) -> str:
    """Return the status of an enrollment, rotation or sweep after its last event, if any."""
    match event:
        case None:
            return "queued"
        case ProjectEnrolled():
            return "enrolled"
        case RotationAccepted():
            return "accepted"
        case _ if isinstance(event, Rejected):
            return "rejected"
        case _ if isinstance(event, Failed):
            return "failed"
        case _:
            return "completed"


def result_document(ids: dict[str, str], status: str, event: Event | None) -> dict[str, Any]:
    """Return a command's JSON output: ids, status and the last event."""
    return ids | {"status": status, "event": event and event.model_dump(mode="json")}


def event_error(event: Rejected | Failed) -> CommandError:
    """Return the error for a rejected request, or for a failed sweep."""
    return CommandError(f"{event.code}: {event.detail}" if event.detail else event.code)


# Commands with many requests: a row each.


def request_row(**ids: str) -> dict[str, Any]:
    """Return the row of a request that is not sent yet."""
    return {**ids, "status": "failed", "code": None, "detail": None, "event": None}


async def publish_row(
    row: dict[str, Any],
    publish: Callable[[], Awaitable[str]],
    *,
    attempts: int = PUBLISH_ATTEMPTS,
) -> bool:
    """Publish the request of a row, as `publish_with_retry`; note an error in the row."""
    try:
        await publish_with_retry(publish, attempts=attempts)
    except CodedError as exc:
        row.update(code=exc.code, detail=exc.detail)
        return False
    except PublisherError as exc:
        unknown = isinstance(exc, OutcomeUnknownError)
        row.update(status="unknown" if unknown else "failed", detail=str(exc))
        return False
    row["status"] = "queued"
    return True


async def wait_for_row(row: dict[str, Any], event: Awaitable[Event], done: str) -> None:
    """Wait for the event of a sent row; `done` is its status unless it is rejected."""
    try:
        outcome = await event
    except PublisherError as exc:
        row.update(status="pending", detail=str(exc))
        return
    row.update(status=done, event=outcome.model_dump(mode="json"))
    if isinstance(outcome, Rejected):
        row.update(status="rejected", code=outcome.code, detail=outcome.detail)


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row for a table: the possible causes of silence are only in the error."""
    if row["status"] != "pending":
        return row
    return row | {"detail": row["detail"].partition(": ")[0]}


def print_request_rows(
    columns: Sequence[str], rows: Sequence[dict[str, Any]], label: str, done: str, *, as_json: bool
) -> None:
    """Print the columns that have a value, and fail if any request did.

    `label` is the column that identifies a row, `done` the status of a successful request.

    Raises:
        CommandError: the first failure, and the number of failures.
    """
    used = [name for name in columns if any(row.get(name) is not None for row in rows)]
    print_rows(used, rows if as_json else [_short(row) for row in rows], as_json=as_json)
    if failed := [row for row in rows if row["status"] not in ("queued", done)]:
        first = failed[0]
        reason = ": ".join(part for part in (first["code"], first["detail"]) if part)
        if len(rows) > 1:
            reason = f"{len(failed)} of {len(rows)} failed; the first was {first[label]}: {reason}"
        raise CommandError(reason)
