"""`keyturn rotate`: turn a project's key (SPEC 6.5, 8.1, 14).

Done without `--watch` means that the rotation is accepted: the new API key opens the
project by then, and the old one does not. The objects follow whether anybody watches or
not; `--watch` stays until none is left under the old key.
"""

import asyncio
from typing import Annotated, Any

import typer
from pydantic import SecretStr

from keyturn.messages import Event, Failed, Rejected, RotationAccepted
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.api_keys import Generate, SaveTo, given_or_generated
from keyturn_workers.cli.arguments import AsJson, NewApiKeyFile, Project, TimeoutS
from keyturn_workers.cli.errors import note
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.publishing import Sending, resumable
from keyturn_workers.cli.watch import check_end, counted, tell_end, watch


def rotate(
    project: Project,
    api_key_file: NewApiKeyFile = None,
    generate: Generate = False,
    save_to: SaveTo = None,
    expected_generation: Annotated[
        int | None,
        typer.Option(min=1, help="Refuse unless the project stands at this generation."),
    ] = None,
    watching: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Stay until every object is under the new key; exits 1 where one is not. "
            "Ctrl-C leaves the rotation running.",
        ),
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is accepted or refused.")] = True,
    timeout_s: TimeoutS = 60,
    as_json: AsJson = False,
) -> None:
    """Turn a project's key to a new API key.

    Every object is wrapped anew; no ciphertext changes, and nothing is down meanwhile.
    """
    if watching and not wait:
        raise typer.BadParameter("--watch and --no-wait exclude each other")
    settings = PublisherSettings.read()
    api_key = given_or_generated(
        project, api_key_file, save_to, generate=generate, as_json=as_json, rotated=True
    )
    sending = Sending(project=project)
    with resumable(sending):
        event = asyncio.run(
            _rotate(
                settings,
                project,
                api_key,
                sending,
                expected_generation=expected_generation,
                timeout_s=timeout_s if wait else None,
                watching=watching,
                as_json=as_json,
            )
        )
    _tell(project, sending.id, event, as_json=as_json)


async def _rotate(
    settings: PublisherSettings,
    project: str,
    api_key: SecretStr,
    sending: Sending,
    *,
    expected_generation: int | None,
    timeout_s: float | None,
    watching: bool,
    as_json: bool,
) -> Event | None:
    """Publish, wait and watch as asked; the last event that was waited for."""
    async with Publisher.open(settings) as publisher:
        await sending.send(
            lambda: publisher.rotate(
                project,
                api_key=api_key,
                expected_generation=expected_generation,
                rotation_id=sending.id,
            )
        )
        if timeout_s is None:
            return None
        event = await publisher.wait(
            sending.id, timeout_s=timeout_s, project=project, request_type="rotation.requested"
        )
        if not watching or not isinstance(event, RotationAccepted):
            return event
        if not as_json:
            note(f"accepted: {project} is at generation {event.generation} ({sending.id})")
        events = publisher.progress(sending.id, project=project, request_type="rotation.requested")
        return await watch(events, as_json=as_json, count=counted(project))


def _tell(project: str, rotation_id: str, event: Event | None, *, as_json: bool) -> None:
    status = _status(event)
    if as_json:
        told: dict[str, Any] | None = None if event is None else event.model_dump(mode="json")
        print_json(
            {"project": project, "rotation_id": rotation_id, "status": status, "event": told}
        )
    elif status in ("queued", "accepted"):
        row = (project, status, getattr(event, "generation", None), rotation_id)
        print_table(("project", "status", "generation", "rotation_id"), [row])
    elif event is not None:
        tell_end(event, rotation_id=rotation_id)
    if event is not None:
        check_end(event, rotation_id)


def _status(event: Event | None) -> str:
    if event is None:
        return "queued"
    if isinstance(event, Rejected):
        return "rejected"
    if isinstance(event, Failed):
        return "failed"
    return "accepted" if isinstance(event, RotationAccepted) else "completed"
