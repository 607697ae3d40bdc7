"""`keyturn rotate`: rotate a project to a new API key (SPEC 6.5, 8.1, 14).

Without `--watch`, success means that the rotation was accepted: from then on the new API key
opens the project and the old one does not. The objects follow in the background; `--watch`
waits until none is left under the old key.
"""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from keyturn.messages import Event, RotationAccepted
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.api_keys import read_or_generate_api_key
from keyturn_workers.cli.arguments import (
    AsJson,
    GenerateApiKey,
    NewApiKeyFile,
    Project,
    SaveTo,
    TimeoutS,
)
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.publishing import (
    PendingRequest,
    request_status,
    result_document,
    resumable,
)
from keyturn_workers.cli.watch import check_end, object_counter, print_end, watch


def rotate(
    project: Project,
    api_key_file: NewApiKeyFile = None,
    generate: GenerateApiKey = False,
    save_to: SaveTo = None,
    expected_generation: Annotated[
        int | None,
        typer.Option(min=1, help="Reject unless the project is at this generation."),
    ] = None,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Wait until every object is under the new key; exit with 1 if one is not. "
            "Ctrl-C leaves the rotation running.",
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="Wait until the rotation is accepted or rejected.")
    ] = True,
    timeout_s: TimeoutS = 60,
    as_json: AsJson = False,
) -> None:
    """Rotate a project to a new API key.

    Every object is rewrapped. No ciphertext changes, and the project stays available.
    """
    if watching and not wait:
        raise typer.BadParameter("--watch and --no-wait cannot be used together")
    settings = PublisherSettings.read()
    api_key = read_or_generate_api_key(
        project, api_key_file, save_to, generate=generate, as_json=as_json, new=True
    )
    request = PendingRequest(project=project)
    with resumable(request):
        event = asyncio.run(
            _rotate(
                settings,
                project,
                api_key,
                request,
                saved_to=save_to,
                expected_generation=expected_generation,
                timeout_s=timeout_s if wait else None,
                watching=watching,
                as_json=as_json,
            )
        )
    _print_result(project, request.id, event, as_json=as_json)


async def _rotate(
    settings: PublisherSettings,
    project: str,
    api_key: SecretStr,
    request: PendingRequest,
    *,
    saved_to: Path | None,
    expected_generation: int | None,
    timeout_s: float | None,
    watching: bool,
    as_json: bool,
) -> Event | None:
    """Publish, wait and watch as requested; the last event, or None without waiting."""
    async with Publisher.open(settings) as publisher:
        await request.send(
            lambda: publisher.rotate(
                project,
                api_key=api_key,
                expected_generation=expected_generation,
                rotation_id=request.id,
            )
        )
        if timeout_s is None:
            return None
        event = await publisher.wait(
            request.id, timeout_s=timeout_s, project=project, request_type="rotation.requested"
        )
        request.discard_key_if_refused(event, saved_to)
        if not watching or not isinstance(event, RotationAccepted):
            return event
        if not as_json:
            note(f"accepted: {project} is at generation {event.generation} ({request.id})")
        events = publisher.progress(request.id, project=project, request_type="rotation.requested")
        return await watch(events, as_json=as_json, count=object_counter(project))


def _print_result(project: str, rotation_id: str, event: Event | None, *, as_json: bool) -> None:
    status = request_status(event)
    if as_json:
        ids = {"project": project, "rotation_id": rotation_id}
        print_json(result_document(ids, status, event))
    elif status in ("queued", "accepted"):
        row = (project, status, getattr(event, "generation", None), rotation_id)
        print_table(("project", "status", "generation", "rotation_id"), [row])
    elif event is not None:
        print_end(event, rotation_id=rotation_id)
    if event is not None:
        check_end(event, rotation_id)
