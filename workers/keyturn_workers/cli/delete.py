"""`keyturn delete`: some objects, or all under a prefix (SPEC 6.6, 8.7, 14).

A request deletes up to a thousand objects, and takes about as long as the delete of one. The
objects under a prefix are first listed in the bucket and counted. Only those are deleted, and none
that is uploaded in the meantime; a second run lists the rest.
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

import typer

from keyturn.identifiers import object_s3_key
from keyturn.messages.events import Event, Rejected
from keyturn.messages.fields import DELETED_KEYS
from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn.settings import PublisherSettings, S3Settings
from keyturn_workers.cli.arguments import AsJson, Project, TimeoutS, validate_object_key
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.objects import read_claims, require_enrolled
from keyturn_workers.cli.output import count_progress, print_json, print_line, printable
from keyturn_workers.cli.publishing import (
    Outcomes,
    print_request_rows,
    publish_row,
    request_row,
    showing_waits,
    wait_for_row,
)

_COLUMNS: Final = ("key", "status", "request_id", "code", "detail")
_REQUESTS_AT_ONCE: Final = 10
_HEADS_AT_ONCE: Final = 16

Row = dict[str, Any]


def _validate_object_keys(values: list[str]) -> list[str]:
    return [validate_object_key(value) for value in dict.fromkeys(values)]


def delete(
    project: Project,
    keys: Annotated[
        list[str] | None,
        typer.Argument(
            help="The object keys, without the project.",
            callback=lambda values: _validate_object_keys(values or []),
        ),
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="Delete all objects whose keys begin with this.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="With --prefix: do not ask for confirmation.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until each is deleted or rejected.")] = True,
    timeout_s: TimeoutS = 300,
    as_json: AsJson = False,
) -> None:
    """Delete objects permanently. Their keys can never be used again.

    That includes a key you name that holds no object.

    With --prefix, the objects are listed in the bucket (KEYTURN_S3_…) and counted, and you are
    asked for confirmation. Run it again to continue after an interruption.
    """
    if bool(keys) == (prefix is not None):
        raise typer.BadParameter("give object keys, or --prefix to delete all objects under it")
    command = _Command(project, prefix or "", timeout_s if wait else None, as_json)
    settings = PublisherSettings.read()
    found = keys or []
    if prefix is not None:
        found = asyncio.run(_list(S3Settings.read(), command))
    if found and prefix is not None and not yes:
        _confirm(command, len(found))
    rows = asyncio.run(_delete(settings, command, found)) if found else []
    if prefix is None:
        print_request_rows(_COLUMNS, rows, "key", "deleted", as_json=as_json)
    else:
        _print_summary(rows, project, prefix, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Command:
    """The keys that one run of the command deletes.

    `prefix` limits the listed keys, `timeout_s` the wait for a request; None means no wait.
    """

    project: str
    prefix: str
    timeout_s: float | None
    as_json: bool


async def _list(settings: S3Settings, command: _Command) -> list[str]:
    """Return the keys under the prefix, without deleted ones."""
    root = object_s3_key(command.project, "")
    slots = asyncio.Semaphore(_HEADS_AT_ONCE)
    found, empty = list[str](), list[str]()
    async with open_bucket(settings, max_connections=_HEADS_AT_ONCE + 1) as storage:

        async def is_deleted(s3_key: str) -> bool:
            async with slots:
                claims = await read_claims(storage, s3_key)
            return claims["kind"] in ("tombstone", "gone")

        await require_enrolled(storage, command.project)
        with count_progress(None) as progress:
            async for row in storage.list(root + command.prefix):
                if not row.size_bytes:
                    empty.append(row.key)
                    continue
                found.append(row.key)
                progress.advance(1)
            # A tombstone is an empty object, and plaintext may be empty, too: only metadata
            # decides.
            for at in range(0, len(empty), DELETED_KEYS):
                some = empty[at : at + DELETED_KEYS]
                deleted = await asyncio.gather(*map(is_deleted, some))
                left = [key for key, is_gone in zip(some, deleted, strict=True) if not is_gone]
                found += left
                progress.advance(len(left))
    return [s3_key.removeprefix(root) for s3_key in found]


def _confirm(command: _Command, count: int) -> None:
    what = f"{count:,} object{'s' if count > 1 else ''}"
    where = f"under {printable(command.prefix)} " if command.prefix else ""
    question = f"Permanently delete {what} {where}of {command.project}?"
    try:
        is_confirmed = typer.confirm(question, err=True)
    except typer.Abort:  # no reply
        if sys.stdin.isatty():
            raise
        typer.echo(err=True)
        raise typer.BadParameter("without a terminal, delete --prefix needs --yes") from None
    if not is_confirmed:
        raise typer.Abort


async def _delete(settings: PublisherSettings, command: _Command, keys: Sequence[str]) -> list[Row]:
    """Delete any number of keys, some requests at once; return a row for each, in their order."""
    requests = [keys[at : at + DELETED_KEYS] for at in range(0, len(keys), DELETED_KEYS)]
    slots = asyncio.Semaphore(_REQUESTS_AT_ONCE)
    outcomes = Outcomes(len(keys))
    async with Publisher.open(settings) as publisher:
        with count_progress(len(keys)) as progress:

            async def delete_some(some: Sequence[str]) -> list[Row]:
                async with slots:
                    rows = await _publish(publisher, command, some, outcomes)
                progress.advance(len(some))
                return rows

            waits = showing_waits(outcomes, progress.label, as_json=command.as_json)
            try:
                async with waits, asyncio.TaskGroup() as group:
                    tasks = [group.create_task(delete_some(some)) for some in requests]
            except asyncio.CancelledError:
                note("not finished: run the same command again to continue")
                raise
        return [row for task in tasks for row in task.result()]


async def _publish(
    publisher: Publisher, command: _Command, keys: Sequence[str], waits: Outcomes
) -> list[Row]:
    """Delete up to 1,000 keys by one request; return a row for each."""
    request = request_row(request_id=new_id())
    request_id = request["request_id"]
    publish = partial(publisher.delete_many, command.project, keys, request_id=request_id)
    outcomes: dict[str, Event] = {}
    if await publish_row(request, publish) and command.timeout_s is not None:
        waits.add_sent(len(keys))
        event = publisher.wait(
            request_id,
            timeout_s=command.timeout_s,
            project=command.project,
            request_type="delete.requested",
        )
        await wait_for_row(request, event, "deleted")
        waits.add_answered(len(keys))
        outcomes |= publisher.delete_outcomes(request_id)
    return [_row_of(request, key, outcomes.get(key)) for key in keys]


def _row_of(request: Row, key: str, event: Event | None) -> Row:
    """Return the row of a key: by its event, or by its request if it has none."""
    row = {"key": key, **request, "event": None}
    if event is not None:
        row |= {"status": "deleted", "event": event.model_dump(mode="json")}
        row |= {"code": None, "detail": None}
        if isinstance(event, Rejected):
            row |= {"status": "rejected", "code": event.code, "detail": event.detail}
    return row


def _print_summary(rows: list[Row], project: str, prefix: str, *, as_json: bool) -> None:
    """Print the number of deleted objects, and a row for each failure.

    Raises:
        CommandError: a delete failed.
    """
    counts = {status: [row for row in rows if row["status"] == status] for status in _DONE}
    failed = [row for row in rows if row["status"] not in _DONE]
    if as_json:
        numbers = {status: len(some) for status, some in counts.items()}
        print_json({"project": project, "prefix": prefix, **numbers, "failed": failed})
    elif not rows:
        print_line(f"no objects under {prefix}" if prefix else "no objects")
    else:
        for status, some in counts.items():
            if some:
                print_line(f"{len(some):,} object{'s' if len(some) > 1 else ''} {status}")
    if failed:
        print_request_rows(_COLUMNS, failed, "key", "deleted", as_json=as_json)


_DONE: Final = ("deleted", "queued")
