"""`keyturn delete`: replace objects by tombstones (SPEC 6.6, 8.7, 14).

Every row comes from an event that the workers signed, or from a gateway, which waited for that
event. A delete is reported two leases after its tombstone was put (half a minute), so that no
running copy restores the object.
"""

import asyncio
import math
from functools import partial
from typing import Annotated, Any, Final

import stamina
import typer
from pydantic import SecretStr

from keyturn.errors import (
    CodedError,
    GatewayError,
    ResponseLostError,
    TooManyRequestsError,
    UnexpectedResponseError,
)
from keyturn.gateway import Client, DeleteReceipt
from keyturn.publisher import Publisher
from keyturn.publisher.requests import new_id
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.api_keys import read_api_key
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    GatewayUrl,
    Project,
    TimeoutS,
    validate_object_key,
)
from keyturn_workers.cli.gateway_client import configured_gateway, gateway_client
from keyturn_workers.cli.publishing import (
    print_request_rows,
    publish_row,
    request_row,
    wait_for_row,
)

_CONCURRENCY: Final = 64
# Half of what a gateway lets one project have pending by default; each takes half a minute.
_GATEWAY_CONCURRENCY: Final = 32
_SERVER_ERROR: Final = 500
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
    gateway: GatewayUrl = None,
    api_key_file: ApiKeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Delete objects permanently. Their keys can never be reused.

    Publishes the requests on the broker, or sends them to a gateway if one is configured.
    """
    if url := configured_gateway(gateway):
        api_key = read_api_key(api_key_file, project, confirm=False)
        deleting = _delete_through_gateway(url, api_key, project, keys, timeout_s, wait=wait)
    elif api_key_file is not None:
        raise typer.BadParameter("--api-key-file needs --gateway or KEYTURN_GATEWAY_URL")
    else:
        settings = PublisherSettings.read()
        deleting = _delete_all(settings, project, keys, timeout_s if wait else None)
    rows = asyncio.run(deleting)
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


async def _delete_through_gateway(
    url: str, api_key: SecretStr, project: str, keys: list[str], timeout_s: float, *, wait: bool
) -> list[dict[str, Any]]:
    wait_s = max(1, math.ceil(timeout_s)) if wait else None
    slots = asyncio.Semaphore(_GATEWAY_CONCURRENCY)
    async with gateway_client(url, api_key) as client:

        async def delete_one(key: str) -> dict[str, Any]:
            row = request_row(key=key)
            try:
                async with slots:
                    receipt = await _delete_when_allowed(client, project, key, timeout_s, wait_s)
            except CodedError as exc:
                row.update(status="rejected", code=exc.code, detail=exc.detail)
            except GatewayError as exc:
                row.update(status=_failed_status(exc), detail=str(exc))
            else:
                row.update(request_id=receipt.request_id, **_accepted_status(receipt, wait=wait))
            return row

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(delete_one(key)) for key in keys]
    return [task.result() for task in tasks]


async def _delete_when_allowed(
    client: Client, project: str, key: str, timeout_s: float, wait_s: int | None
) -> DeleteReceipt:
    """Delete one object; wait while the project has too many deletes pending."""
    async for attempt in stamina.retry_context(
        on=TooManyRequestsError, attempts=None, timeout=timeout_s, wait_initial=1.0, wait_max=10.0
    ):
        with attempt:
            return await client.delete(project, key, wait_s=wait_s)
    raise AssertionError  # the last attempt raises


def _accepted_status(receipt: DeleteReceipt, *, wait: bool) -> dict[str, Any]:
    if receipt.deleted:
        return {"status": "deleted"}
    if not wait:
        return {"status": "queued"}
    detail = "not final when the wait ended; the delete continues in the background"
    return {"status": "pending", "detail": detail}


def _failed_status(exc: GatewayError) -> str:
    """`unknown` if the delete may have been accepted all the same."""
    is_lost = isinstance(exc, ResponseLostError) or (
        isinstance(exc, UnexpectedResponseError) and exc.status >= _SERVER_ERROR
    )
    return "unknown" if is_lost else "failed"
