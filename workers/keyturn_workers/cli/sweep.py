"""`keyturn sweep`: bring objects to the desired state, and prove it (SPEC 6.6, 8, 14).

Done without `--watch` means that the broker keeps the request.
"""

import asyncio
from typing import Annotated, Any

import typer

from keyturn.identifiers import ALL_PROJECTS, is_short_name
from keyturn.messages import Event, Failed, Rejected
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import AsJson, OptionalProject
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.publishing import Sending, resumable
from keyturn_workers.cli.watch import check_end, counted, tell_end, watch


def _checked_master_key(value: str | None) -> str | None:
    if value is not None and not is_short_name(value):
        raise typer.BadParameter("a master key's id has 1 to 32 characters of a-z, 0-9 and -")
    return value


def sweep(
    project: OptionalProject = None,
    all_projects: Annotated[bool, typer.Option("--all", help="Every enrolled project.")] = False,
    master_key: Annotated[
        str | None,
        typer.Option(
            help="The id of the master key to re-seal keyrings and wraps under; every worker "
            "must hold it by now.",
            callback=_checked_master_key,
        ),
    ] = None,
    encrypt_plaintext: Annotated[
        bool,
        typer.Option(
            "--encrypt-plaintext",
            help="Encrypt unencrypted objects; where clean, allow none any more.",
        ),
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Believe wraps under earlier API keys where an object opens by nothing else.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only look and count.")] = False,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Stay until it ends; exits 1 where it is not clean. Ctrl-C leaves it running.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring every object of a project, or of all, to the desired state, and prove it."""
    if (project is None) is not all_projects:
        raise typer.BadParameter("name a project, or --all")
    asked = ALL_PROJECTS if project is None else project
    settings = PublisherSettings.read()
    sending = Sending(project=asked)
    options = {
        "master_key": master_key,
        "encrypt_plaintext": encrypt_plaintext,
        "repair": repair,
        "dry_run": dry_run,
    }
    with resumable(sending):
        event = asyncio.run(
            _sweep(settings, asked, sending, options, watching=watching, as_json=as_json)
        )
    _tell(asked, sending.id, event, as_json=as_json)


async def _sweep(
    settings: PublisherSettings,
    project: str,
    sending: Sending,
    options: dict[str, Any],
    *,
    watching: bool,
    as_json: bool,
) -> Event | None:
    """Publish, and watch where asked; the sweep's last event then."""
    async with Publisher.open(settings) as publisher:
        await sending.send(lambda: publisher.sweep(project, sweep_id=sending.id, **options))
        if not watching:
            return None
        count = None if project == ALL_PROJECTS else counted(project)
        events = publisher.progress(sending.id, project=project, request_type="sweep.requested")
        return await watch(events, as_json=as_json, count=count)


def _tell(project: str, sweep_id: str, event: Event | None, *, as_json: bool) -> None:
    status = _status(event)
    if as_json:
        told = None if event is None else event.model_dump(mode="json")
        print_json({"project": project, "sweep_id": sweep_id, "status": status, "event": told})
    elif event is None:
        print_table(("project", "status", "sweep_id"), [(project, status, sweep_id)])
    else:
        tell_end(event, sweep_id=sweep_id)
    if event is not None:
        check_end(event, sweep_id)


def _status(event: Event | None) -> str:
    match event:
        case None:
            return "queued"
        case _ if isinstance(event, Rejected):
            return "rejected"
        case _ if isinstance(event, Failed):
            return "failed"
        case _:
            return "completed"
