"""`keyturn delete`: some objects, or all under a prefix (SPEC 6.6, 8.7, 9.3, 14).

A request deletes up to a thousand objects, and takes about as long as the delete of one. The
objects under a prefix are listed and counted first. Only those are deleted, and none that is
uploaded in the meantime; a second run lists the rest.
"""

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Protocol

import stamina
import typer
from pydantic import SecretStr

from keyturn.errors import (
    CodedError,
    GatewayError,
    MalformedRequestError,
    ResponseLostError,
    TooManyRequestsError,
    UnexpectedResponseError,
)
from keyturn.gateway.client import Client, DeleteManyReceipt
from keyturn.identifiers import object_s3_key
from keyturn.messages.events import Event, Rejected
from keyturn.messages.fields import DELETED_KEYS
from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn.settings import PublisherSettings, S3Settings
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    GatewayUrl,
    Project,
    TimeoutS,
    validate_object_key,
)
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.objects import (
    configured_gateway,
    gateway_client,
    read_claims,
    require_enrolled,
)
from keyturn_workers.cli.output import count_progress, print_json, print_line, printable
from keyturn_workers.cli.publishing import (
    print_request_rows,
    publish_row,
    request_row,
    wait_for_row,
)
from keyturn_workers.cli.secrets import read_api_key

_COLUMNS: Final = ("key", "status", "request_id", "code", "detail")
# A gateway's default limit of pending requests for one project.
_REQUESTS_AT_ONCE: Final = 10
_HEADS_AT_ONCE: Final = 16
_SERVER_ERROR: Final = 500
_NOT_FINAL: Final = "not final when the wait ended; the delete continues in the background"

Row = dict[str, Any]
DeleteKeys = Callable[[Sequence[str]], Awaitable[list[Row]]]
"""Deletes up to 1,000 keys; returns a row for each."""


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
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete objects permanently. Their keys can never be used again.

    On the broker, that includes a key you name that holds no object; a gateway refuses such a key.

    Publishes the requests on the broker, or sends them to a gateway if one is configured. With
    --prefix, the objects are listed and counted, in the bucket or through the gateway, and you are
    asked for confirmation. Run it again to continue after an interruption.
    """
    if bool(keys) == (prefix is not None):
        raise typer.BadParameter("give object keys, or --prefix to delete all objects under it")
    command = _Command(project, prefix or "", timeout_s if wait else None)
    if url := configured_gateway(gateway):
        api_key = read_api_key(api_key_file, project, confirm=False)
        way: _Way = _ByGateway(command, url, api_key)
    elif api_key_file is not None:
        raise typer.BadParameter("--api-key-file needs --gateway or KEYTURN_GATEWAY_URL")
    else:
        way = _ByBroker(command, PublisherSettings.read())
    found = (keys or []) if prefix is None else asyncio.run(_list(way))
    if found and prefix is not None and not yes:
        _confirm(command, len(found))
    rows = asyncio.run(way.delete(found)) if found else []
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


class _Way(Protocol):
    """A way to list and delete objects."""

    def keys(self) -> AsyncGenerator[str, None]:
        """Yield the keys under the prefix, without deleted ones."""
        ...

    async def delete(self, keys: Sequence[str]) -> list[Row]:
        """Delete any number of keys; return a row for each."""
        ...


async def _list(way: _Way) -> list[str]:
    keys = list[str]()
    with count_progress(None) as advance:
        async with aclosing(way.keys()) as listing:
            async for key in listing:
                keys.append(key)
                advance(1)
    return keys


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


async def _delete(keys: Sequence[str], delete_keys: DeleteKeys) -> list[Row]:
    """Delete any number of keys, some requests at once; return a row for each, in their order."""
    requests = [keys[at : at + DELETED_KEYS] for at in range(0, len(keys), DELETED_KEYS)]
    slots = asyncio.Semaphore(_REQUESTS_AT_ONCE)
    with count_progress(len(keys), enabled=len(keys) > 1) as advance:

        async def delete_some(some: Sequence[str]) -> list[Row]:
            async with slots:
                rows = await delete_keys(some)
            advance(len(some))
            return rows

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(delete_some(some)) for some in requests]
        except asyncio.CancelledError:
            note("not finished: run the same command again to continue")
            raise
    return [row for task in tasks for row in task.result()]


class _ByBroker:
    """Publishes the requests; lists a prefix in the bucket."""

    def __init__(self, command: _Command, settings: PublisherSettings) -> None:
        self._command = command
        self._settings = settings

    async def keys(self) -> AsyncGenerator[str, None]:
        """See `_Way`."""
        command = self._command
        root = object_s3_key(command.project, "")
        slots = asyncio.Semaphore(_HEADS_AT_ONCE)
        async with open_bucket(S3Settings.read(), max_connections=_HEADS_AT_ONCE + 1) as storage:
            await require_enrolled(storage, command.project)

            async def is_deleted(s3_key: str) -> bool:
                async with slots:
                    claims = await read_claims(storage, s3_key)
                return claims["kind"] in ("tombstone", "gone")

            empty = list[str]()
            async for row in storage.list(root + command.prefix):
                if row.size_bytes:
                    yield row.key.removeprefix(root)
                else:
                    empty.append(row.key)
            # A tombstone is an empty object, and plaintext may be empty, too: only metadata
            # decides.
            for at in range(0, len(empty), DELETED_KEYS):
                some = empty[at : at + DELETED_KEYS]
                deleted = await asyncio.gather(*(is_deleted(s3_key) for s3_key in some))
                for s3_key, is_gone in zip(some, deleted, strict=True):
                    if not is_gone:
                        yield s3_key.removeprefix(root)

    async def delete(self, keys: Sequence[str]) -> list[Row]:
        """See `_Way`."""
        async with Publisher.open(self._settings) as publisher:
            return await _delete(keys, partial(self._publish, publisher))

    async def _publish(self, publisher: Publisher, keys: Sequence[str]) -> list[Row]:
        request = request_row(request_id=new_id())
        request_id = request["request_id"]
        publish = partial(publisher.delete_many, self._command.project, keys, request_id=request_id)
        outcomes: dict[str, Event] = {}
        if await publish_row(request, publish) and self._command.timeout_s is not None:
            event = publisher.wait(
                request_id,
                timeout_s=self._command.timeout_s,
                project=self._command.project,
                request_type="delete.requested",
            )
            await wait_for_row(request, event, "deleted")
            outcomes |= publisher.delete_outcomes(request_id)
        return [_row_of(request, key, outcomes.get(key)) for key in keys]


class _ByGateway:
    """Sends the requests to a gateway, which also lists a prefix."""

    def __init__(self, command: _Command, url: str, api_key: SecretStr) -> None:
        self._command = command
        self._url = url
        self._api_key = api_key

    async def keys(self) -> AsyncGenerator[str, None]:
        """See `_Way`."""
        async with gateway_client(self._url, self._api_key) as client:
            try:
                listing = client.list(self._command.project, prefix=self._command.prefix)
            except MalformedRequestError as exc:
                raise typer.BadParameter(str(exc)) from exc
            async with aclosing(listing):
                async for entry in listing:
                    yield entry.key

    async def delete(self, keys: Sequence[str]) -> list[Row]:
        """See `_Way`."""
        async with gateway_client(self._url, self._api_key) as client:
            return await _delete(keys, partial(self._send, client))

    async def _send(self, client: Client, keys: Sequence[str]) -> list[Row]:
        rows = {key: request_row(key=key) for key in keys}
        loop = asyncio.get_running_loop()
        until = loop.time() + (self._command.timeout_s or 0)
        left = list(keys)
        while left:
            try:
                receipt = await self._send_when_allowed(client, left)
            except CodedError as exc:
                _update(rows, left, status="rejected", code=exc.code, detail=exc.detail)
                break
            except GatewayError as exc:
                _update(rows, left, status=_failed_status(exc), detail=str(exc))
                break
            left = _note_receipt(rows, left, receipt)
            if self._command.timeout_s is None:
                _update(rows, left, status="queued")
                break
            if loop.time() >= until:
                _update(rows, left, status="pending", detail=_NOT_FINAL)
                break
        return list(rows.values())

    async def _send_when_allowed(self, client: Client, keys: list[str]) -> DeleteManyReceipt:
        """Send a request; wait while the project has too many deletes pending."""
        timeout_s = self._command.timeout_s
        wait_s = None if timeout_s is None else max(1, math.ceil(timeout_s))
        async for attempt in stamina.retry_context(
            on=TooManyRequestsError,
            attempts=None,
            timeout=timeout_s,
            wait_initial=1.0,
            wait_max=10.0,
        ):
            with attempt:
                return await client.delete_many(self._command.project, keys, wait_s=wait_s)
        raise AssertionError  # the last attempt raises


def _row_of(request: Row, key: str, event: Event | None) -> Row:
    """Return the row of a key: by its event, or by its request if it has none."""
    row = {"key": key, **request, "event": None}
    if event is not None:
        row |= {"status": "deleted", "event": event.model_dump(mode="json")}
        row |= {"code": None, "detail": None}
        if isinstance(event, Rejected):
            row |= {"status": "rejected", "code": event.code, "detail": event.detail}
    return row


def _note_receipt(rows: dict[str, Row], left: list[str], receipt: DeleteManyReceipt) -> list[str]:
    """Note a response's outcome for each key; return the keys without one."""
    _update(rows, left, request_id=receipt.request_id)
    _update(rows, receipt.deleted, status="deleted")
    for each in receipt.rejected:
        rows[each.key].update(status="rejected", code=each.code, detail=each.detail)
    known = {*receipt.deleted, *(each.key for each in receipt.rejected)}
    return [key for key in left if key not in known]


def _update(rows: dict[str, Row], keys: Sequence[str], **fields: Any) -> None:
    for key in keys:
        rows[key].update(fields)


def _failed_status(exc: GatewayError) -> str:
    """Return `unknown` if the delete may have been accepted all the same."""
    is_lost = isinstance(exc, ResponseLostError) or (
        isinstance(exc, UnexpectedResponseError) and exc.status >= _SERVER_ERROR
    )
    return "unknown" if is_lost else "failed"


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
