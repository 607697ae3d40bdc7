"""What the commands that publish requests have in common (SPEC 6.2, 14).

Each request has its id before it is sent, so that a second try is the same request, and
so that whoever stops waiting can be told what to ask for.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages import Failed, Rejected
from keyturn.publisher import OutcomeUnknownError, WaitTimeoutError
from keyturn.publisher.requests import new_id
from keyturn_workers.cli.errors import CommandError, note

PUBLISH_TRIES: Final = 2


@dataclass(slots=True)
class Sending:
    """One request on its way: its id, its project, and whether the broker keeps it by now."""

    id: str = field(default_factory=new_id)
    project: str | None = None
    sent: bool = False

    async def send(self, publish: Callable[[], Awaitable[str]]) -> None:
        """Publish it, and once more where nobody can say what became of it."""
        await publish_twice(publish)
        self.sent = True


async def publish_twice(publish: Callable[[], Awaitable[str]]) -> None:
    """Publish under one id; once more where the broker did not confirm.

    Raises:
        OutcomeUnknownError: the second try was not confirmed either.
    """
    for tries_left in reversed(range(PUBLISH_TRIES)):
        try:
            await publish()
        except OutcomeUnknownError:
            if not tries_left:
                raise
        else:
            return


@contextmanager
def resumable(sending: Sending) -> Iterator[None]:
    """Where waiting ends early, say that the work goes on and how to pick it up again."""
    of = f" --project {sending.project}" if sending.project not in (None, ALL_PROJECTS) else ""
    hint = f"it goes on without you: keyturn status {sending.id}{of} --watch"
    try:
        yield
    except KeyboardInterrupt:
        if sending.sent:
            note(hint)
        raise
    except WaitTimeoutError as exc:
        raise CommandError(f"{exc}; {hint}") from exc


def refusal(event: Rejected | Failed) -> CommandError:
    """The one line of a refusal, or of what cannot go on."""
    return CommandError(f"{event.code}: {event.detail}" if event.detail else event.code)


def not_done(failed: Sequence[dict[str, Any]], count: int, name: str) -> CommandError:
    """The one line where some rows of many failed.

    Args:
        failed: The rows that did, each with `code` and `detail`.
        count: How many rows there are.
        name: The column that a person knows a row by.
    """
    first = failed[0]
    reason = ": ".join(part for part in (first["code"], first["detail"]) if part)
    if count == 1:
        return CommandError(reason)
    return CommandError(f"{len(failed)} of {count} not done; the first, {first[name]}: {reason}")
