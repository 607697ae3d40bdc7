"""The common part of commands that publish requests (SPEC 6.2, 14).

Each request has its id before it is sent. So a second attempt is the same request, and a user who
stops waiting learns which id to follow.
"""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
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
from keyturn_workers.cli.bucket import optional_task
from keyturn_workers.cli.errors import CommandError, command_line, note
from keyturn_workers.cli.output import print_line, print_rows

PUBLISH_ATTEMPTS: Final = 2
_TICK_S: Final = 1.0
_NOTICEABLE_S: Final = 2
_NOTE_EVERY_S: Final = 10


@dataclass(slots=True)
class PendingRequest:
    """One request.

    Attributes:
        sent: True if the broker has confirmed it.
        repeated: True if it took more than one attempt, each of which may have arrived.
        new_key: Where the API key is that the project gets if the request is served: a file, or
            words for it; None without a new key, or once the outcome is known.
    """

    id: str = field(default_factory=new_id)
    project: str | None = None
    sent: bool = False
    repeated: bool = False
    new_key: str | None = None

    async def send(self, publish: Callable[[], Awaitable[str]]) -> None:
        """Publish the request; errors as `publish_with_retry`."""
        self.repeated = await publish_with_retry(publish) > 1
        self.sent = True

    def keep_new_key(self, file: Path | None, saved_to: Path | None, *, generated: bool) -> None:
        """Note where the new API key is, if it is not with the user alone."""
        path = saved_to or file
        self.new_key = str(path) if path is not None else "the API key above" if generated else None

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
    """If the wait ends early, say that the work continues and how to follow it.

    If no outcome is known yet, a new API key may have become the only one.
    """
    named = request.project not in (None, ALL_PROJECTS)
    option = (f"--project {request.project}",) if named else ()
    follow = command_line("status", request.id, *option, "--watch")
    hint = f"it continues in the background; to follow it: {follow}"
    try:
        yield
    except KeyboardInterrupt:
        if request.sent:
            _keep(request)
            note(hint)
        raise
    except WaitTimeoutError as exc:
        _keep(request)
        raise CommandError(f"{exc}. Otherwise {hint}") from exc
    except OutcomeUnknownError:
        _keep(request)
        raise


def _keep(request: PendingRequest) -> None:
    if request.new_key is not None:
        note(f"keep {request.new_key}: it may become the only key of {request.project}")


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


class Outcomes:
    """Counts requests and their outcomes, to say what a command waits for.

    Attributes:
        total: The number of items, such as files; 0 if it is not known.
        sent: How many are published.
        answered: How many have their outcome.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.sent = 0
        self.answered = 0
        self._clock = clock
        self._changed_s = clock()

    def add_sent(self, count: int = 1) -> None:
        """Count published items."""
        self.sent += count
        self._changed_s = self._clock()

    def add_answered(self, count: int = 1) -> None:
        """Count items with an outcome."""
        self.answered += count
        self._changed_s = self._clock()

    @property
    def waited_s(self) -> int:
        """For how many seconds nothing has been sent or answered; 0 if nothing is awaited."""
        return int(self._clock() - self._changed_s) if self.sent > self.answered else 0

    def __str__(self) -> str:
        """What is done, and what is awaited since when."""
        wait = f"waiting for a worker ({self.waited_s} s)"
        if self.total == 1:
            return f"sent; {wait}"
        of = f" of {self.total:,}" if self.total else ""
        if not self.answered:
            return f"{self.sent:,}{of} sent; {wait}"
        done = f"{self.answered:,}{of} answered"
        return f"{done}; {wait}" if self.waited_s >= _NOTICEABLE_S else done


@asynccontextmanager
async def showing_waits(
    outcomes: Outcomes, label: Callable[[str], None], *, as_json: bool
) -> AsyncIterator[None]:
    """Show what is awaited, within; outside a terminal, in a line every ten seconds."""

    async def show() -> None:
        noted_s = 0
        while True:
            await asyncio.sleep(_TICK_S)
            waited_s = outcomes.waited_s
            if waited_s and sys.stderr.isatty():
                label(str(outcomes))
            elif waited_s >= noted_s + _NOTE_EVERY_S and not as_json:
                note(str(outcomes))
                noted_s = waited_s
            elif waited_s < noted_s:
                noted_s = 0

    async with optional_task(show):
        yield


def _short(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row for a table: the possible causes of silence are only in the error."""
    if row["status"] != "pending":
        return row
    return row | {"detail": row["detail"].partition(": ")[0]}


def print_request_rows(
    columns: Sequence[str],
    rows: Sequence[dict[str, Any]],
    label: str,
    done: str,
    *,
    as_json: bool,
    summary: str | None = None,
) -> None:
    """Print the columns that have a value, and fail if any request did.

    With a `summary`, a table has only the failures, and the summary follows it.

    `label` is the column that identifies a row, `done` the status of a successful request.

    Raises:
        CommandError: the first failure, and the number of failures.
    """
    failed = [row for row in rows if row["status"] not in ("queued", done)]
    shown = rows if summary is None or as_json else failed
    used = [name for name in columns if any(row.get(name) is not None for row in shown)]
    if as_json:
        print_rows(used, shown, as_json=True)
    elif shown or summary is None:
        print_rows(used, [_short(row) for row in shown])
    if summary is not None and not as_json:
        print_line(summary)
    if failed:
        first = failed[0]
        reason = ": ".join(part for part in (first["code"], first["detail"]) if part)
        if len(rows) > 1:
            reason = f"{len(failed)} of {len(rows)} failed; the first was {first[label]}: {reason}"
        raise CommandError(reason)
