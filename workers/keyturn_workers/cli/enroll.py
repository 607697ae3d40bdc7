"""`keyturn enroll`: enroll a project (SPEC 5.4, 6.5, 14).

The API key itself never leaves this process. The request contains a key derived from it,
sealed to the workers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from keyturn.messages import Event, Rejected
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.api_keys import read_or_generate_api_key, read_v0_api_key
from keyturn_workers.cli.arguments import (
    ApiKeyFile,
    AsJson,
    GenerateApiKey,
    Project,
    SaveTo,
    TimeoutS,
)
from keyturn_workers.cli.output import print_json, print_table
from keyturn_workers.cli.publishing import PendingRequest, event_error, result_document


def enroll(
    project: Project,
    api_key_file: ApiKeyFile = None,
    generate: GenerateApiKey = False,
    save_to: SaveTo = None,
    plaintext: Annotated[
        bool, typer.Option("--plaintext", help="Allow unencrypted objects.")
    ] = False,
    v0: Annotated[
        bool, typer.Option("--v0", help="Allow objects in the legacy v0 format.")
    ] = False,
    v0_api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the API key that the project's v0 objects are wrapped under. Needs "
            "KEYTURN_V0_PEPPER. Implies --v0."
        ),
    ] = None,
    adopt: Annotated[
        bool,
        typer.Option("--adopt", help="Enroll even if objects exist under the project's prefix."),
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="Wait until the project is enrolled or rejected.")
    ] = True,
    timeout_s: TimeoutS = 60,
    as_json: AsJson = False,
) -> None:
    """Enroll a project: create its keyring."""
    settings = PublisherSettings.read()
    # Before a key is generated: an unreadable file must not leave a saved key behind.
    v0_api_key = None if v0_api_key_file is None else read_v0_api_key(v0_api_key_file)
    api_key = read_or_generate_api_key(
        project, api_key_file, save_to, generate=generate, as_json=as_json
    )
    request = PendingRequest(project=project)

    async def publish(publisher: Publisher) -> str:
        return await publisher.enroll(
            project,
            api_key=api_key,
            plaintext=plaintext,
            v0=v0,
            v0_api_key=v0_api_key,
            adopt=adopt,
            request_id=request.id,
        )

    event = asyncio.run(_enroll(settings, project, request, publish, timeout_s if wait else None))
    request.discard_key_if_refused(event, save_to)
    _print_result(project, request.id, event, as_json=as_json)


async def _enroll(
    settings: PublisherSettings,
    project: str,
    request: PendingRequest,
    publish: Callable[[Publisher], Awaitable[str]],
    timeout_s: float | None,
) -> Event | None:
    async with Publisher.open(settings) as publisher:
        await request.send(lambda: publish(publisher))
        if timeout_s is None:
            return None
        return await publisher.wait(
            request.id, timeout_s=timeout_s, project=project, request_type="enroll.requested"
        )


def _print_result(project: str, request_id: str, event: Event | None, *, as_json: bool) -> None:
    rejected = isinstance(event, Rejected)
    if as_json:
        status = "queued" if event is None else "rejected" if rejected else "enrolled"
        ids = {"project": project, "request_id": request_id}
        print_json(result_document(ids, status, event))
    elif event is None:
        print_table(("project", "status", "request_id"), [(project, "queued", request_id)])
    elif not rejected:
        row = (project, "enrolled", getattr(event, "generation", None), request_id)
        print_table(("project", "status", "generation", "request_id"), [row])
    if isinstance(event, Rejected):
        raise event_error(event)
