"""`keyturn enroll`, `rotate` and `sweep`: a project and its keys (SPEC 5.4, 6.5, 6.6, 8, 14).

An API key never leaves this process. A request contains a key derived from it, sealed to the
workers. A customer key is only named: the workers ask its store (SPEC 2.6).
"""

import asyncio
from typing import Annotated, Final

import typer

from keyturn.identifiers import ALL_PROJECTS
from keyturn.messages.events import Event, RotationAccepted
from keyturn.publisher.client import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    CustomerKey,
    GenerateApiKey,
    NewApiKeyFile,
    OptionalProject,
    Project,
    SaveTo,
    TimeoutS,
    validate_short_name,
)
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.publishing import (
    PendingRequest,
    request_status,
    result_document,
    resumable,
)
from keyturn_workers.cli.secrets import read_or_generate_api_key
from keyturn_workers.cli.watch import check_end, object_counter, print_end, watch

_ROTATION: Final = "rotation.requested"


def enroll(
    project: Project,
    api_key_file: ApiKeyFile = None,
    generate: GenerateApiKey = False,
    save_to: SaveTo = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Allow unencrypted objects.")
    ] = False,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="Enroll even if objects exist under the project's prefix."),
    ] = False,
    customer_key: CustomerKey = None,
    wait: Annotated[
        bool, typer.Option(help="Wait until the project is enrolled or rejected.")
    ] = True,
    timeout_s: TimeoutS = 60,
    as_json: AsJson = False,
) -> None:
    """Enroll a project: create its keyring."""
    if customer_key is not None and plaintext:
        raise typer.BadParameter("--customer-key and --plaintext cannot be used together")
    settings = PublisherSettings.read()
    api_key = read_or_generate_api_key(
        project, api_key_file, save_to, generate=generate, as_json=as_json
    )
    request = PendingRequest(project=project)
    request.keep_new_key(api_key_file, save_to, generated=generate)

    async def run() -> Event | None:
        async with Publisher.open(settings) as publisher:
            await request.send(
                lambda: publisher.enroll(
                    project,
                    api_key=api_key,
                    plaintext=plaintext,
                    adopt=adopt,
                    customer_key=customer_key,
                    request_id=request.id,
                )
            )
            if not wait:
                return None
            return await publisher.wait(
                request.id, timeout_s=timeout_s, project=project, request_type="enroll.requested"
            )

    with resumable(request):
        event = asyncio.run(run())
    request.discard_key_if_refused(event, save_to)
    _print_result({"project": project, "request_id": request.id}, event, as_json=as_json)


def rotate(
    project: Project,
    api_key_file: NewApiKeyFile = None,
    generate: GenerateApiKey = False,
    save_to: SaveTo = None,
    customer_key: CustomerKey = None,
    expected_generation: Annotated[
        int | None,
        typer.Option(min=1, help="Reject unless the project is at this generation."),
    ] = None,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Wait until every object is under the new keys; exit with 1 if one is not. "
            "Ctrl-C leaves the rotation running.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="Wait until the rotation is accepted or rejected.")
    ] = True,
    timeout_s: TimeoutS = 60,
    as_json: AsJson = False,
) -> None:
    """Rotate a project to a new API key, to a customer key, or to both.

    Every object is rewrapped. No ciphertext changes, and the project stays available. With
    --customer-key, the API key changes only if --api-key-file or --generate gives a new one.
    """
    if watching and not wait:
        raise typer.BadParameter("--watch and --no-wait cannot be used together")
    settings = PublisherSettings.read()
    api_key = None
    if customer_key is None or generate or (api_key_file, save_to) != (None, None):
        api_key = read_or_generate_api_key(
            project, api_key_file, save_to, generate=generate, as_json=as_json, new=True
        )
    request = PendingRequest(project=project)
    request.keep_new_key(api_key_file, save_to, generated=generate)

    async def run() -> Event | None:
        """Publish, wait and watch as requested; return the last event, or None without waiting."""
        async with Publisher.open(settings) as publisher:
            await request.send(
                lambda: publisher.rotate(
                    project,
                    api_key=api_key,
                    customer_key=customer_key,
                    expected_generation=expected_generation,
                    rotation_id=request.id,
                )
            )
            if not wait:
                return None
            event = await publisher.wait(
                request.id, timeout_s=timeout_s, project=project, request_type=_ROTATION
            )
            request.discard_key_if_refused(event, save_to)
            request.new_key = None
            if not watching or not isinstance(event, RotationAccepted):
                return event
            if not as_json:
                note(f"accepted: {project} is at generation {event.generation} ({request.id})")
            events = publisher.progress(request.id, project=project, request_type=_ROTATION)
            count = object_counter(project)
            return await watch(events, as_json=as_json, count=count, known=event)

    with resumable(request):
        event = asyncio.run(run())
    _print_result({"project": project, "rotation_id": request.id}, event, as_json=as_json)


def sweep(
    project: OptionalProject = None,
    all_projects: Annotated[bool, typer.Option("--all", help="All enrolled projects.")] = False,
    master_key: Annotated[
        str | None,
        typer.Option(
            help="The id of the master key to reseal keyrings and wraps under. Every worker "
            "must have it already.",
            callback=validate_short_name,
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
    """Bring every object to the desired state, and prove it."""
    if (project is None) is not all_projects:
        raise typer.BadParameter("name a project or use --all")
    target = ALL_PROJECTS if project is None else project
    settings = PublisherSettings.read()
    request = PendingRequest(project=target)

    async def run() -> Event | None:
        async with Publisher.open(settings) as publisher:
            await request.send(
                lambda: publisher.sweep(
                    target,
                    master_key=master_key,
                    encrypt_plaintext=encrypt_plaintext,
                    repair=repair,
                    sweep_id=request.id,
                )
            )
            if not watching:
                return None
            count = None if project is None else object_counter(project)
            events = publisher.progress(request.id, project=target, request_type="sweep.requested")
            return await watch(events, as_json=as_json, count=count)

    with resumable(request):
        event = asyncio.run(run())
    _print_result({"project": target, "sweep_id": request.id}, event, as_json=as_json)


def _print_result(ids: dict[str, str], event: Event | None, *, as_json: bool) -> None:
    """Print the outcome of a request; `ids` has its project, and its id under the id's name."""
    status = request_status(event)
    ((name, request_id),) = (item for item in ids.items() if item[0] != "project")
    if as_json:
        print_json(result_document(ids, status, event))
    elif status in ("queued", "accepted", "enrolled"):
        row: dict[str, object] = {"project": ids["project"], "status": status}
        if event is not None:
            row["generation"] = getattr(event, "generation", None)
        row[name] = request_id
        print_table(tuple(row), [tuple(row.values())])
    elif event is not None:
        print_end(event, **{name: request_id})
    if event is not None:
        check_end(event, request_id)
