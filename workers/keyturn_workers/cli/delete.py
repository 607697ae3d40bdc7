"""`keyturn delete`: replace objects by tombstones (SPEC 6.6, 8.7, 14).

Every row comes from an event that the workers signed. A deletion is reported two leases
after its tombstone was put (half a minute), so that no running copy restores the object.
"""

import asyncio
from functools import partial
from typing import Annotated, Any, Final

import typer

from keyturn.publisher import Publisher
from keyturn.publisher.requests import new_id
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, Project, TimeoutS, validate_object_key
from keyturn_workers.cli.publishing import (
    print_request_rows,
    publish_row,
    request_row,
    wait_for_row,
)

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
    print_request_rows(_COLUMNS, rows, "key", "deleted", as_json=as_json)


async def _delete_all(
    settings: PublisherSettings, project: str, keys: list[str], timeout_s: float | None
) -> list[dict[str, Any]]:
    slots = asyncio.Semaphore(_CONCURRENCY)
    async with Publisher.open(settings) as publisher:

        async def delete_one(key: str) -> dict[str, Any]:
            row = request_row(key=key, request_id=new_id())
            delete = partial(publisher.delete, project, key, request_id=row["request_id"])
            async with slots:
                sent = await publish_row(row, delete)
            # The next ones are sent while this one waits for its event.
            if sent and timeout_s is not None:
                event = publisher.wait(
                    row["request_id"],
                    timeout_s=timeout_s,
                    project=project,
                    request_type="delete.requested",
                )
                await wait_for_row(row, event, "deleted")
            return row

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(delete_one(key)) for key in keys]
    return [task.result() for task in tasks]
