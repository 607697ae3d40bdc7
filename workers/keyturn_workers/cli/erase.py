"""`keyturn erase`: record for ever that nothing of a project opens any more (SPEC 8.8, 14)."""

import asyncio
import sys
from functools import partial
from typing import Annotated, Any, Final

import typer

from keyturn.publisher.client import Publisher
from keyturn.publisher.requests import new_id
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, Project, TimeoutS, validate_reason
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.publishing import (
    print_request_rows,
    publish_row,
    request_row,
    wait_for_row,
)

_OUTCOME: Final = ("project", "status", "generation", "evidence", "request_id", "code", "detail")


def erase(
    project: Project,
    reason: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="The reason, which evidence and audit trail keep. Do not include secrets.",
            callback=validate_reason,
        ),
    ],
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT",
            help="The project id once more, instead of typing it when asked.",
        ),
    ] = None,
    timeout_s: TimeoutS = 720,
    as_json: AsJson = False,
) -> None:
    """Erase a project whose customer keys are gone. This cannot be undone.

    First disable or delete the keys: workers ask their stores, for up to ten minutes, and refuse
    if one still gives a secret. The objects stay until you delete them.
    """
    _confirm(project, confirm)
    row = asyncio.run(_erase(PublisherSettings.read(), project, reason, timeout_s, as_json=as_json))
    print_request_rows(_OUTCOME, [row], "project", "erased", as_json=as_json)


def _confirm(project: str, confirm: str | None) -> None:
    if confirm is None:
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"not confirmed: add --confirm {project}")
        confirm = typer.prompt(f"Nobody can undo this. Type {project} to erase it", err=True)
    if confirm != project:
        raise typer.BadParameter(f"this is not the name of the project: {confirm}")


async def _erase(
    settings: PublisherSettings, project: str, reason: str, timeout_s: float, *, as_json: bool
) -> dict[str, Any]:
    row = request_row(project=project, request_id=new_id())
    async with Publisher.open(settings) as publisher:
        publish = partial(publisher.erase, project, reason=reason, request_id=row["request_id"])
        if await publish_row(row, publish):
            if not as_json:
                note("the stores of the project's customer keys are asked: up to ten minutes")
            event = publisher.wait(
                row["request_id"],
                timeout_s=timeout_s,
                project=project,
                request_type="erase.requested",
            )
            await wait_for_row(row, event, "erased")
    if row["status"] == "erased":
        row.update({name: row["event"][name] for name in ("generation", "evidence")})
    return row
