"""`keyturn delete`: replace objects by tombstones (SPEC 6.6, 8.7, 14).

Every row comes from an event that the workers signed. A deletion is reported two leases
after its tombstone was put (half a minute), so that no running copy restores the object.
"""

import asyncio
from typing import Annotated, Any, Final

import typer

from keyturn.errors import CodedError
from keyturn.messages import Rejected
from keyturn.publisher import OutcomeUnknownError, Publisher, PublisherError
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, Project, TimeoutS, validate_object_key
from keyturn_workers.cli.output import print_json, print_rows
from keyturn_workers.cli.publishing import PendingRequest, rows_error

_CONCURRENCY: Final = 64
_COLUMNS: Final = ("key", "status", "request_id", "code", "detail")


def _validate_object_keys(values: list[str]) -> list[str]:
    return [validate_object_key(value) for value in dict.fromkeys(values)]


def delete(
    project: Project,
    keys: Annotated[
        list[str],
        typer.Argument(
            help="The object keys, without the project.",
            callback=_validate_object_keys,
        ),
    ],
    wait: Annotated[bool, typer.Option(help="Wait until each is deleted or rejected.")] = True,
    timeout_s: TimeoutS = 300,
    as_json: AsJson = False,
) -> None:
    """Delete objects permanently. Their keys can never be reused."""
    settings = PublisherSettings.read()
    rows = asyncio.run(_delete_all(settings, project, keys, timeout_s if wait else None))
    if as_json:
        print_json(rows)
    else:
        used = [name for name in _COLUMNS if any(row[name] is not None for row in rows)]
        print_rows(used, rows)
    if failed := [row for row in rows if row["status"] not in ("queued", "deleted")]:
        raise rows_error(failed, len(rows), "key")


async def _delete_all(
    settings: PublisherSettings, project: str, keys: list[str], timeout_s: float | None
) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(_CONCURRENCY)
    async with Publisher.open(settings) as publisher:

        async def delete_one(key: str) -> dict[str, Any]:
            request = PendingRequest()
            row: dict[str, Any] = {
                "key": key,
                "request_id": request.id,
                "status": "failed",
                "code": None,
                "detail": None,
                "event": None,
            }
            async with slots:
                await _send(publisher, project, key, request, row)
            # The next ones are sent while this one waits for its event.
            if request.sent and timeout_s is not None:
                await _await_event(publisher, project, row, timeout_s)
            return row

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(delete_one(key)) for key in keys]
    return [task.result() for task in tasks]


async def _send(
    publisher: Publisher, project: str, key: str, request: PendingRequest, row: dict[str, Any]
) -> None:
    """Publish one request; its row gets the error, if any."""
    try:
        await request.send(lambda: publisher.delete(project, key, request_id=request.id))
    except CodedError as exc:
        row.update(code=exc.code, detail=exc.detail)
    except PublisherError as exc:
        unknown = isinstance(exc, OutcomeUnknownError)
        row.update(status="unknown" if unknown else "failed", detail=str(exc))
    else:
        row["status"] = "queued"


async def _await_event(
    publisher: Publisher, project: str, row: dict[str, Any], timeout_s: float
) -> None:
    try:
        event = await publisher.wait(
            row["request_id"],
            timeout_s=timeout_s,
            project=project,
            request_type="delete.requested",
        )
    except PublisherError as exc:
        row.update(status="untold", detail=str(exc))
        return
    row.update(status="deleted", event=event.model_dump(mode="json"))
    if isinstance(event, Rejected):
        row.update(status="rejected", code=event.code, detail=event.detail)
