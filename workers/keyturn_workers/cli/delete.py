"""`keyturn delete`: objects replaced by tombstones, for good (SPEC 6.6, 8.7, 14).

Every row is the event that the workers signed. A delete is told two leases after its
tombstone was put, so that no copy under way brings the object back: half a minute.
"""

import asyncio
from typing import Annotated, Any, Final

import typer

from keyturn.errors import CodedError
from keyturn.messages import Rejected
from keyturn.publisher import OutcomeUnknownError, Publisher, PublisherError
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, Project, TimeoutS, checked_key
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.publishing import Sending, not_done

_AT_ONCE: Final = 64
_COLUMNS: Final = ("key", "status", "request_id", "code", "detail")


def _checked_keys(values: list[str]) -> list[str]:
    return [checked_key(value) for value in dict.fromkeys(values)]


def delete(
    project: Project,
    keys: Annotated[
        list[str],
        typer.Argument(
            help="The objects' keys, without their project.",
            callback=_checked_keys,
        ),
    ],
    wait: Annotated[bool, typer.Option(help="Wait until each is deleted or refused.")] = True,
    timeout_s: TimeoutS = 300,
    as_json: AsJson = False,
) -> None:
    """Delete objects, for good: their keys never take another body."""
    settings = PublisherSettings.read()
    rows = asyncio.run(_delete_all(settings, project, keys, timeout_s if wait else None))
    if as_json:
        print_json(rows)
    else:
        used = [name for name in _COLUMNS if any(row[name] is not None for row in rows)]
        print_table(used, ([row[name] for name in used] for row in rows))
    if failed := [row for row in rows if row["status"] not in ("queued", "deleted")]:
        raise not_done(failed, len(rows), "key")


async def _delete_all(
    settings: PublisherSettings, project: str, keys: list[str], timeout_s: float | None
) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(_AT_ONCE)
    async with Publisher.open(settings) as publisher:

        async def one(key: str) -> dict[str, Any]:
            sending = Sending()
            row: dict[str, Any] = {
                "key": key,
                "request_id": sending.id,
                "status": "failed",
                "code": None,
                "detail": None,
                "event": None,
            }
            async with slots:
                await _send(publisher, project, key, sending, row)
            # Others may be sent while this one waits for its event.
            if sending.sent and timeout_s is not None:
                await _await_event(publisher, project, row, timeout_s)
            return row

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(key)) for key in keys]
    return [task.result() for task in tasks]


async def _send(
    publisher: Publisher, project: str, key: str, sending: Sending, row: dict[str, Any]
) -> None:
    """Publish one; what went wrong goes into its row."""
    try:
        await sending.send(lambda: publisher.delete(project, key, request_id=sending.id))
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
