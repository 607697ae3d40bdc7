"""`keyturn sweep`: bring objects to the desired state and prove it (SPEC 6.6, 8, 14).

Without `--watch`, success means that the broker has the request.
"""

import asyncio
from typing import Annotated, Any

import typer

from keyturn.identifiers import ALL_PROJECTS, is_short_name
from keyturn.messages import Event
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, OptionalProject
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.publishing import (
    PendingRequest,
    request_status,
    result_document,
    resumable,
)
from keyturn_workers.cli.watch import check_end, object_counter, print_end, watch


def _check_master_key(value: str | None) -> str | None:
    if value is not None and not is_short_name(value):
        raise typer.BadParameter("a master key's id has 1 to 32 characters from a-z, 0-9 and -")
    return value


def sweep(
    project: OptionalProject = None,
    all_projects: Annotated[bool, typer.Option("--all", help="All enrolled projects.")] = False,
    master_key: Annotated[
        str | None,
        typer.Option(
            help="The id of the master key to reseal keyrings and wraps under. Every worker "
            "must have it already.",
            callback=_check_master_key,
        ),
    ] = None,
    encrypt_plaintext: Annotated[
        bool,
        typer.Option(
            "--encrypt-plaintext",
            help="Encrypt unencrypted objects; after a clean sweep, no longer allow any.",
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Accept a wrap under an earlier API key if nothing else opens the object, and "
            "replace a user wrap that does not open (wraps_disagree).",
        ),
    ] = False,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Wait until it ends; exit with 1 unless it is clean. Ctrl-C leaves it running.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring every object of one or all projects to the desired state, and prove it."""
    if (project is None) is not all_projects:
        raise typer.BadParameter("name a project or use --all")
    target = ALL_PROJECTS if project is None else project
    settings = PublisherSettings.read()
    request = PendingRequest(project=target)
    options = {
        "master_key": master_key,
        "encrypt_plaintext": encrypt_plaintext,
        "repair": repair,
    }
    with resumable(request):
        event = asyncio.run(
            _sweep(settings, target, request, options, watching=watching, as_json=as_json)
        )
    _print_result(target, request.id, event, as_json=as_json)


async def _sweep(
    settings: PublisherSettings,
    project: str,
    request: PendingRequest,
    options: dict[str, Any],
    *,
    watching: bool,
    as_json: bool,
) -> Event | None:
    """Publish, and watch if requested; the last event, or None without watching."""
    async with Publisher.open(settings) as publisher:
        await request.send(lambda: publisher.sweep(project, sweep_id=request.id, **options))
        if not watching:
            return None
        count = None if project == ALL_PROJECTS else object_counter(project)
        events = publisher.progress(request.id, project=project, request_type="sweep.requested")
        return await watch(events, as_json=as_json, count=count)


def _print_result(project: str, sweep_id: str, event: Event | None, *, as_json: bool) -> None:
    status = request_status(event)
    if as_json:
        print_json(result_document({"project": project, "sweep_id": sweep_id}, status, event))
    elif event is None:
        print_table(("project", "status", "sweep_id"), [(project, status, sweep_id)])
    else:
        print_end(event, sweep_id=sweep_id)
    if event is not None:
        check_end(event, sweep_id)
